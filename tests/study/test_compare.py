"""Comparison at matched effect, on a live model."""

import pytest

from personality_vector.errors import RecipeError
from personality_vector.study.comparison import Comparison, at_matched, cross_talk, differences
from personality_vector.study.curves import DosePoint, reach, targets_of
from personality_vector.study.recipe import CompareRecipe, open_study
from personality_vector.study.run import Run
from personality_vector.study.tables import remarks, tables_of
from personality_vector.study.worker import Worker
from personality_vector.traits import Pole

POLE = Pole("extraversion", "high")
INTERVENTIONS = [
    {"label": "activations", "vector": "vector", "layers": [1]},
    {"label": "prompt", "prompt": "extraversion:high", "strengths": [-2.0, 1.0, 3.0]},
]


def matched_effect(run):
    return at_matched(Comparison(run), "likelihood")


def shifts(run):
    return Comparison(run).curves("likelihood")


@pytest.fixture(scope="module")
def comparison(recipe, measures, pico_tuned):
    """Return ``comparison(**changes)``: weights, activations and a prompt, at two targets."""

    def make(**changes):
        weights = {"label": "weights", "tuned": str(pico_tuned("llama"))}
        given = {
            "pole": "extraversion:high",
            "points": 2,
            "interventions": [weights, *INTERVENTIONS],
            "strengths": [-0.4, -0.2, 0.2, 0.4],
            "measures": measures("extraversion", "openness"),
        }
        return recipe(CompareRecipe, **{**given, **changes})

    return make


@pytest.fixture(scope="module")
def run(comparison, tmp_path_factory):
    """Return the run of the comparison, measured once."""
    return open_study(comparison()).run(tmp_path_factory.mktemp("runs") / "compare")


def test_matched_rows_have_the_shift_of_their_target(run, comparison):
    table = matched_effect(run)
    live = table[table["intervention"] != "prompt"]
    assert set(live["intervention"]) == {"weights", "activations"}
    assert len(live) == 2 * comparison().points
    # A matched strength is within 1 % of its bracket, and these curves are nearly straight.
    assert live["shift"].tolist() == pytest.approx(live["target"].tolist(), rel=0.05)
    for _, rows in live.groupby("target"):
        assert rows["shift"].max() == pytest.approx(rows["shift"].min(), rel=0.05)


def test_a_matched_row_is_what_its_intervention_measures_there(run):
    keys = ["intervention", "strength", "measure", "trait"]
    value = run.readings().set_index(keys)["value"]
    table = matched_effect(run).rename(columns={"divergence mean": "divergence"})
    for row in table.dropna(subset="strength").itertuples():
        here = (row.intervention, row.strength, "likelihood")
        moved = [
            value[(*here, trait)] - value["base", 0.0, "likelihood", trait]
            for trait in ("extraversion", "openness")
        ]
        assert row.shift == pytest.approx(moved[0])
        assert row.off_target == pytest.approx(abs(moved[1]))
        assert row.divergence == value[(*here[:2], "divergence.mean", "")] > 0


def test_a_prompt_is_taken_at_a_strength_that_was_swept(run):
    rows = matched_effect(run).query("intervention == 'prompt'").dropna(subset="strength")
    assert set(rows["strength"]) <= set(INTERVENTIONS[1]["strengths"])


def test_the_search_is_kept_and_shows_in_no_table(run, comparison, monkeypatch):
    """Every strength that Brent's method tried is a cell of the store, of the trait alone."""

    def refuse(*_):
        pytest.fail("measured again")

    monkeypatch.setattr(Worker, "_found", refuse)
    before = matched_effect(run)
    again = open_study(comparison()).run(run.folder)
    assert matched_effect(again).equals(before)
    shown = set(run.readings()["strength"])
    listed = {0.0, -0.4, -0.2, 0.2, 0.4, -2.0, 1.0, 3.0}
    assert shown == listed | {strength for *_, strength in run["matches"] if strength}


def test_remarks_say_who_set_the_targets_and_who_has_no_row(run):
    reaches = {label: reach(curve) for label, curve in shifts(run).items()}
    weakest = min((label for label in reaches if reaches[label] > 0), key=reaches.get)
    first, *absences, intervals = remarks(run)
    assert intervals.startswith("intervals are 95 %: over items and seeds for likelihood, and")
    assert first.endswith(f"the furthest that {weakest} reaches")
    table = matched_effect(run)
    assert table.groupby("intervention")["reach"].first().to_dict() == pytest.approx(reaches)
    absent = [
        [label for label in reaches if label in set(rows[rows["strength"].isna()]["intervention"])]
        for _, rows in table.groupby("target")
    ]
    expected = [", ".join(labels) for labels in absent if labels]
    found = [said.partition("no strength of ")[2].removesuffix(" is near") for said in absences]
    assert found == expected


def test_remarks_name_targets_that_nobody_meets(run, monkeypatch):
    real = Run.__getitem__

    def unmet(self, key):
        found = real(self, key)
        return [(*rest, None) for *rest, _ in found] if key == "matches" else found

    monkeypatch.setattr(Run, "__getitem__", unmet)
    _, *absences, _ = remarks(run)
    labels = ", ".join(shifts(run))
    assert len(absences) == run["recipe"]["points"]
    assert all(f"no strength of {labels} is near" in said for said in absences)


@pytest.fixture
def one_step(run, comparison):
    """Return ``one_step(points, **changes)``: a comparison of one step of the prompt alone.

    It points to where that step leads, which is chance in a random model.
    """
    step = max(shifts(run)["prompt"], key=lambda point: abs(point.shift))

    def make(points, **changes):
        given = {
            "points": points,
            "strengths": [step.strength],
            "pole": str(POLE if step.shift > 0 else POLE.opposite),
            "interventions": [{"label": "prompt", "prompt": "extraversion:high"}],
        }
        return comparison(**{**given, **changes})

    return make


def test_one_prompt_may_be_the_nearest_to_two_targets(one_step, tmp_path):
    """With one step at shift r and targets r/3, 2r/3 and r, it is the nearest to the last two."""
    table = matched_effect(open_study(one_step(3)).run(tmp_path / "run"))
    assert table["strength"].isna().tolist() == [True, False, False]
    table = table.dropna(subset="strength")
    reached = table["shift"].iloc[0]
    assert table["target"].tolist() == pytest.approx([2 / 3 * reached, reached])


def test_a_comparison_may_measure_the_trait_alone(one_step, tmp_path, measures):
    alone = one_step(1, measures=measures("extraversion"))
    table = matched_effect(open_study(alone).run(tmp_path / "run"))
    assert len(table) == 1
    assert table["off_target"].isna().all()


def test_seeds_are_matched_at_one_strength_and_shown_as_their_mean(comparison, tmp_path):
    arms = [INTERVENTIONS[0]]
    both = open_study(comparison(interventions=arms, points=1, seeds=[0, 1])).run(tmp_path / "run")
    ((*_, strength),) = both["matches"]
    rows = both.readings().query(f"strength == {strength} and measure == 'guards.words'")
    assert rows["seed"].tolist() == [0, 1]
    assert matched_effect(both)["words"].item() == pytest.approx(rows["value"].mean())


def test_a_folder_may_hold_a_comparison_and_then_a_sweep(comparison, recipe, tmp_path):
    """What a comparison noted of its pole does not outlive it."""
    arms = [INTERVENTIONS[0]]
    folder = tmp_path / "run"
    assert open_study(comparison(interventions=arms, points=1)).run(folder)["pole"] is not None
    swept = open_study(recipe(interventions=arms, strengths=[0.2])).run(folder)
    assert swept["pole"] is swept["matches"] is None
    assert set(swept.readings()["strength"]) == {0.0, 0.2}


@pytest.mark.parametrize("points", [1, 2, 5])
def test_targets_are_equal_steps_up_to_the_weakest_reach(points):
    curves = [[DosePoint(1.0, 0.4)], [DosePoint(1.0, 0.2), DosePoint(2.0, 0.9)]]
    expected = [0.4 * step / points for step in range(1, points + 1)]
    assert targets_of(curves, points) == pytest.approx(expected)


def test_an_intervention_without_effect_sets_no_target():
    useless = [DosePoint(1.0, -0.1)]
    assert targets_of([useless, [DosePoint(1.0, 0.4)]], 1) == [0.4]
    assert targets_of([useless], 3) == targets_of([], 3) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pole": "neuroticism:high"}, "traits do not list neuroticism"),
        ({"measures": ["divergence"]}, "a comparison needs a likelihood among its measures"),
    ],
)
def test_the_pole_must_be_measured(comparison, changes, says):
    with pytest.raises(RecipeError, match=says):
        comparison(**changes)


AXIS = "divergence.base_replies"


@pytest.fixture(scope="module")
def two_axes(comparison, tmp_path_factory):
    """Return a run that is matched in its effect, and in a divergence at two targets."""
    axes = ["likelihood", {"number": AXIS, "targets": [0.02, 1e6]}]
    arms = comparison().model_dump(mode="json")["interventions"]
    given = comparison(match=axes, points=1, interventions=arms)
    return open_study(given).run(tmp_path_factory.mktemp("runs") / "axes")


def test_every_axis_has_a_table_in_which_its_number_is_that_of_the_target(two_axes):
    found = at_matched(Comparison(two_axes), AXIS).query("intervention != 'prompt'")
    near = found.dropna(subset="strength")
    assert len(near) > 0
    assert set(near["target"]) == {0.02}
    assert near["shift"].tolist() == pytest.approx(near["target"].tolist(), rel=0.1)
    names = [name for name in tables_of(two_axes) if name.startswith("at matched")]
    assert names == ["at matched likelihood", f"at matched {AXIS}"]
    value = two_axes.readings().set_index(["intervention", "strength", "measure"])["value"]
    for row in near.itertuples():
        assert row.shift == pytest.approx(value[row.intervention, row.strength, AXIS])


def test_a_target_that_nobody_reaches_is_said_with_how_far_each_reaches(two_axes):
    (said,) = [line for line in remarks(two_axes) if "at 1e+06" in line]
    curves = Comparison(two_axes).curves(AXIS)
    for label, curve in curves.items():
        assert f"{label} {reach(curve):.3g}" in said


def test_a_search_on_any_axis_is_kept(two_axes, monkeypatch):
    monkeypatch.setattr(Worker, "_found", lambda *_: pytest.fail("measured again"))
    before = at_matched(Comparison(two_axes), AXIS)
    axes = two_axes["recipe"]
    again = open_study(CompareRecipe.model_validate(axes)).run(two_axes.folder)
    assert at_matched(Comparison(again), AXIS).equals(before)


def test_differences_are_those_of_rows_at_the_same_target(two_axes):
    comparison = Comparison(two_axes)
    table = at_matched(comparison, "likelihood").set_index("intervention")
    found = differences(comparison, "likelihood").set_index("intervention")
    assert set(found["minus"]) == {"weights"}
    for label, row in found.iterrows():
        for name in ("shift", "divergence mean", "off_target"):
            assert row[name] == pytest.approx(table[name][label] - table[name]["weights"])
        assert row["shift low"] <= row["shift"] <= row["shift high"]


def test_cross_talk_has_the_shift_of_every_trait(two_axes):
    comparison = Comparison(two_axes)
    rows = cross_talk(comparison).query("matched == 'likelihood' and number == 'likelihood'")
    table = at_matched(comparison, "likelihood").set_index("intervention")
    for row in rows.itertuples():
        assert row.extraversion == pytest.approx(table["shift"][row.intervention])
        assert abs(row.openness) == pytest.approx(table["off_target"][row.intervention])


@pytest.mark.parametrize(
    ("axis", "says"),
    [
        (
            "interview by nobody",
            "they give likelihood, divergence, guards, interview by classifier",
        ),
        ("divergence.p96", "divergence.mean, divergence.p95, divergence.max"),
    ],
)
def test_an_unknown_number_is_refused_and_the_known_ones_are_named(
    comparison, tmp_path, axis, says
):
    with pytest.raises(RecipeError, match=f"match: {axis} is not a number .*{says}"):
        open_study(comparison(match=[axis])).run(tmp_path / "run")


@pytest.mark.parametrize("targets", [[0.2, 0.1], [0.0, 0.1], []])
def test_targets_rise_from_above_zero(comparison, targets):
    with pytest.raises(RecipeError, match="targets"):
        comparison(match=[{"number": "likelihood", "targets": targets}])


def test_what_is_dear_is_measured_where_interventions_are_matched(run, comparison, tmp_path):
    """The matches are those of the whole; on the grid there is nothing of it."""
    dear = comparison(where_matched=["divergence"])
    short = open_study(dear).run(tmp_path / "short")
    matches = [Comparison(one).matches for one in (run, short)]
    assert matches[0].equals(matches[1])
    kept = {
        name: set(frame[["intervention", "strength"]].itertuples(index=False, name=None))
        for name, frame in short.readings().groupby("measure")
    }
    matched = matches[1].dropna()[["intervention", "strength"]]
    expected = {("base", 0.0), *matched.itertuples(index=False, name=None)}
    assert kept["divergence.mean"] == expected < kept["likelihood"]
    assert short.cells()["finished"].all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"where_matched": ["divergences"]},
            "where_matched: divergences is not among the measures",
        ),
        (
            {"where_matched": ["likelihood"]},
            "where_matched: likelihood is needed on the grid",
        ),
        (
            {"where_matched": ["divergence"], "match": ["divergence.p95"]},
            "where_matched: divergence.p95 is needed on the grid",
        ),
    ],
)
def test_a_measure_that_cannot_wait_is_refused(comparison, changes, says):
    with pytest.raises(RecipeError, match=says):
        open_study(comparison(**changes))


@pytest.mark.parametrize("pole", ["extraversion:high", "openness:low"])
def test_interventions_and_measures_may_name_the_trait_of_the_pole(comparison, pole):
    trait, level = pole.split(":")
    arm = {"label": "{level} {trait}", "tuned": "v/{trait}-{level}"}
    measures = [{"likelihood": {"name": "{level}", "traits": ["{trait}"]}}]
    found = comparison(pole=pole, interventions=[arm], measures=measures, match=["likelihood"])
    assert found.interventions[0].label == f"{level} {trait}"
    assert (found.measures[0].called, found.measures[0].traits) == (level, (trait,))


def test_what_the_interview_leaves_out_no_measure_asks_in_its_place(comparison):
    interview = {"traits": ["openness"], "instrument": "builtin:eval/instruments/interview.yaml"}
    other = {"name": "other", "traits": ["extraversion"]}
    rows = [{"likelihood": {"traits": ["extraversion"]}}, {"interview": interview}]
    rows += ["guards", {"interview": other}, {"guards": {"name": "own", "question": "Why?"}}]
    found = [spec.open().asking.instrument.items for spec in comparison(measures=rows).measures[1:]]
    traits = [{item.trait for item in items} for items in found]
    assert traits == [{"openness"}, {"openness"}, {"extraversion"}, {None}]
    assert found[0] == found[1]
