"""Comparison at matched effect, on a live model."""

import json

import pandas as pd
import pytest
from personality_vector.study.compare import compare, matched_effect, remarks, shifts, targets_of

from personality_vector.errors import RecipeError
from personality_vector.steering import SteeringVector
from personality_vector.study import compare as module
from personality_vector.study.matched import DosePoint, reach
from personality_vector.study.recipe import CompareRecipe
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.traits import Pole

POLE = Pole("extraversion", "high")
SAID = {"high": ("I love parties", "I talk a lot"), "low": ("I am quiet", "alone again")}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, pico):
    """Return a folder with statements and a steering vector of pico llama."""
    folder = tmp_path_factory.mktemp("compare")
    rows = [
        {"trait": trait, "level": level, "statement": f"{text} {trait} {part}", "part": part}
        for trait in ("extraversion", "openness")
        for level, texts in SAID.items()
        for text in texts
        for part in ("train", "held_out")
    ]
    (folder / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    chats = [
        [[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": t}] for t in texts]
        for texts in SAID.values()
    ]
    SteeringVector.extract(model, tokenizer, *chats, label="v").save(folder / "vector")
    return folder


@pytest.fixture(scope="module")
def recipe(inputs, pico, pico_tuned):
    return CompareRecipe.parse(
        {
            "base": str(pico("llama")),
            "pole": "extraversion:high",
            "points": 2,
            "interventions": [
                {"label": "weights", "tuned": str(pico_tuned("llama"))},
                {"label": "activations", "vector": "vector", "layers": [1]},
                {"label": "prompt", "prompt": "extraversion:high", "strengths": [-2.0, 1.0, 3.0]},
            ],
            "strengths": [-0.4, -0.2, 0.2, 0.4],
            "measure": {
                "traits": ["extraversion", "openness"],
                "statements": "statements.jsonl",
                "generation": {"max_new_tokens": 4},
            },
            "device": "cpu",
        },
        origin="test",
        folder=inputs,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "compare"


@pytest.fixture
def results(recipe, out):
    """Return the results of the comparison; measured once, then resumed."""
    with compare(recipe, out) as found:
        yield found


def test_matched_rows_have_the_shift_of_their_target(results, recipe):
    table = matched_effect(results, POLE)
    live = table[table["intervention"] != "prompt"]
    assert set(live["intervention"]) == {"weights", "activations"}
    assert len(live) == 2 * recipe.points
    # A matched strength is within 1 % of its bracket, and these curves are nearly straight.
    assert live["shift"].tolist() == pytest.approx(live["target"].tolist(), rel=0.05)
    for _, rows in live.groupby("target"):
        assert rows["shift"].max() == pytest.approx(rows["shift"].min(), rel=0.05)


def test_a_matched_cell_is_what_its_intervention_measures_there(results):
    table = matched_effect(results, POLE)
    frame = results.frame("measures")
    base = frame.query("intervention == 'base' and trait == 'extraversion' and measure == 'probe'")
    for row in table.itertuples():
        name = f"{row.intervention} (matched at {row.target:.4g})"
        cell = frame[(frame["intervention"] == name) & (frame["strength"] == row.strength)]
        probe = cell.query("trait == 'extraversion' and measure == 'probe'")["value"].item()
        assert row.shift == pytest.approx(probe - base["value"].item())
        others = cell.query("trait == 'openness' and measure == 'probe'")["value"].item()
        other = frame.query("intervention == 'base' and trait == 'openness' and measure == 'probe'")
        assert row.off_target == pytest.approx(abs(others - other["value"].item()))
        assert row.kl_to_base > 0


def test_a_prompt_is_taken_at_a_strength_that_was_swept(results, recipe):
    rows = matched_effect(results, POLE).query("intervention == 'prompt'")
    assert set(rows["strength"]) <= set(recipe.interventions[2].strengths)


def test_every_target_has_a_row_of_every_intervention_that_reaches_it(results, recipe):
    bench = module.prepare(recipe)
    wanted = {
        (match.target, match.intervention)
        for match in module.find_matches(bench, results, recipe)
        if match.strength is not None
    }
    table = matched_effect(results, POLE)
    assert set(zip(table["target"], table["intervention"], strict=True)) == wanted


def test_remarks_say_who_set_the_targets_and_who_has_no_row(results):
    reaches = {label: reach(curve) for label, curve in shifts(results, POLE).items()}
    weakest = min((label for label in reaches if reaches[label] > 0), key=reaches.get)
    first, *absences = remarks(results, POLE)
    assert first.endswith(f"the furthest that {weakest} reaches")
    table = matched_effect(results, POLE)
    absent = [
        [label for label in reaches if label not in set(rows["intervention"])]
        for _, rows in table.groupby("target")
    ]
    expected = [", ".join(labels) for labels in absent if labels]
    found = [said.partition("no strength of ")[2].removesuffix(" is near") for said in absences]
    assert found == expected


def test_remarks_name_targets_that_nobody_meets(results, monkeypatch):
    monkeypatch.setattr(module, "matched_effect", lambda *_: pd.DataFrame())
    _, *absences = remarks(results, POLE)
    labels = ", ".join(shifts(results, POLE))
    assert len(absences) == results.spec["points"]
    assert all(f"no strength of {labels} is near" in said for said in absences)


@pytest.fixture
def one_step(results, recipe, inputs):
    """Return ``one_step(points, **measure)``: a comparison of one step of the prompt alone.

    It points to where that step leads, which is chance in a random model.
    """
    step = max(shifts(results, POLE)["prompt"], key=lambda point: abs(point.shift))

    def make(points, **measure):
        data = recipe.model_dump(mode="json")
        data |= {"points": points, "strengths": [step.strength]}
        data["pole"] = str(POLE if step.shift > 0 else POLE.opposite)
        data["interventions"] = [{"label": "prompt", "prompt": "extraversion:high"}]
        data["measure"] |= {"side_effects": False, **measure}
        return CompareRecipe.parse(data, origin="test", folder=inputs)

    return make


def test_one_prompt_may_be_the_nearest_to_two_targets(one_step, tmp_path):
    """With one step at shift r and targets r/3, 2r/3 and r, it is the nearest to the last two."""
    alone = one_step(3)
    with compare(alone, tmp_path) as found:
        table = matched_effect(found, alone.pole)
    reach = table["shift"].iloc[0]
    assert table["target"].tolist() == pytest.approx([2 / 3 * reach, reach])


def test_a_comparison_may_measure_the_trait_alone(one_step, tmp_path):
    alone = one_step(1, traits=["extraversion"])
    with compare(alone, tmp_path) as found:
        table = matched_effect(found, alone.pole)
    assert len(table) == 1
    assert table["off_target"].isna().all()


def test_a_finished_comparison_measures_no_cell_again(results, recipe, out, monkeypatch):
    def refuse(_self, label, strength):
        pytest.fail(f"measured {label} at {strength} again")

    monkeypatch.setattr(module.Bench, "findings", refuse)
    before = matched_effect(results, POLE)
    with compare(recipe, out) as again:
        assert matched_effect(again, POLE).equals(before)


def test_shifts_count_towards_the_pole(results):
    up, down = shifts(results, POLE), shifts(results, POLE.opposite)
    assert set(up) == {"weights", "activations", "prompt"}
    for label, curve in up.items():
        assert [point.shift for point in curve] == [-point.shift for point in down[label]]
        assert all(isinstance(point, DosePoint) for point in curve)


@pytest.mark.parametrize("points", [1, 2, 5])
def test_targets_are_equal_steps_up_to_the_weakest_reach(points):
    curves = [[DosePoint(1.0, 0.4)], [DosePoint(1.0, 0.2), DosePoint(2.0, 0.9)]]
    expected = [0.4 * step / points for step in range(1, points + 1)]
    assert targets_of(curves, points) == pytest.approx(expected)


def test_an_intervention_without_effect_sets_no_target():
    useless = [DosePoint(1.0, -0.1)]
    assert targets_of([useless, [DosePoint(1.0, 0.4)]], 1) == [0.4]
    assert targets_of([useless], 3) == targets_of([], 3) == []


def test_the_pole_must_be_measured(recipe, inputs):
    data = {**recipe.model_dump(mode="json"), "pole": "neuroticism:high"}
    with pytest.raises(RecipeError, match=r"measure\.traits does not list neuroticism"):
        CompareRecipe.parse(data, origin="test", folder=inputs)
