"""Designs by name: what short lines stand for, what is on top of what, and the tables."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from personality_vector.errors import CheckpointError, RecipeError
from personality_vector.lab import find_recipe, folder_of, lab_folder
from personality_vector.report.figures import dose_response_figure
from personality_vector.study.comparison import Comparison
from personality_vector.study.design import BASE, Point
from personality_vector.study.poles import (
    COMPOSED,
    GRID,
    KEPT,
    OWN,
    against_sum,
    at_each_strength,
    compositions,
    own_trait,
)
from personality_vector.study.recipe import CompareRecipe, SweepRecipe, open_study
from personality_vector.study.tables import on_grid, tables_of
from personality_vector.traits import BIG_FIVE, Pole

TRAITS = ("extraversion", "openness")
POLES = [Pole(trait, level) for trait in TRAITS for level in ("high", "low")]


@pytest.fixture
def parsed(tmp_path):
    """Return ``parsed(*interventions, **more)``: a sweep whose vectors lie in ``v``."""

    def parse(*interventions, **more):
        data = {"base": "b", "interventions": list(interventions), "strengths": [1.0]}
        data |= {"measures": ["likelihood"], "vectors": "v/{trait}-{level}", **more}
        return SweepRecipe.parse(data, origin="r.yaml", folder=tmp_path)

    return parse


@pytest.fixture(scope="module")
def vectors(tmp_path_factory, pico_tuned):
    """Return the path of four fine-tunes, one for each pole."""
    folder = tmp_path_factory.mktemp("vectors")
    for seed, pole in enumerate(POLES):
        (folder / f"{pole.trait}-{pole.level}").symlink_to(pico_tuned("llama", seed=seed))
    return str(folder / "{trait}-{level}")


def test_vectors_are_what_the_word_stands_for(parsed, tmp_path):
    recipe = parsed({"tuned": "{vectors}", "poles": ["openness:low"]})
    (spec,) = recipe.interventions
    assert spec.tuned == str(tmp_path / "v" / "openness-low")
    assert (spec.label, spec.poles) == ("openness:low", (Pole("openness", "low"),))
    assert spec.group == "all poles"
    with pytest.raises(RecipeError, match="vectors is given, but no intervention contains"):
        parsed({"label": "w", "tuned": "./t"})


def test_half_differences_are_meant_to_raise_their_trait(parsed):
    recipe = parsed({"tuned": "{vectors}"}, vectors="v/{trait}")
    assert [spec.poles for spec in recipe.interventions] == [(Pole(t, "high"),) for t in BIG_FIVE]


def test_each_value_is_an_intervention_and_keeps_its_type(parsed):
    arm = {"label": "{layer} {trait} {level}", "vector": "{vectors}", "layers": ["{layer}"]}
    recipe = parsed(arm | {"each": {"layer": [3, 7]}, "poles": ["openness:low"]})
    assert [(s.label, s.layers, s.group) for s in recipe.interventions] == [
        (f"{layer} openness low", (layer,), f"{layer} all traits") for layer in (3, 7)
    ]


@pytest.mark.parametrize("path", ["v/{trait}-{level}", "v/{trait}"])
def test_a_composition_is_every_combination_of_poles(parsed, tmp_path, path):
    arm = {"label": "{method} {signs}", "composed": "{vectors}", "method": "{method}"}
    recipe = parsed(arm | {"each": {"method": ["ties", "dare"]}}, vectors=path)
    assert len({spec.label for spec in recipe.interventions}) == len(recipe.interventions) == 64
    for spec, (method, levels) in zip(
        recipe.interventions,
        product(["ties", "dare"], product(["high", "low"], repeat=5)),
        strict=True,
    ):
        signs = "".join(
            f"{trait[0].upper()}{'+' if level == 'high' else '-'}"
            for trait, level in zip(BIG_FIVE, levels, strict=True)
        )
        assert (spec.label, spec.method) == (f"{method} {signs}", method)
        assert spec.poles == tuple(map(Pole, BIG_FIVE, levels))
        for term, trait, level in zip(spec.terms, BIG_FIVE, levels, strict=True):
            assert term.tuned == str(tmp_path / path.format(trait=trait, level=level))
            is_subtracted = level == "low" and "{level}" not in path
            assert term.alpha == (-1.0 if is_subtracted else 1.0)


def test_missing_vectors_are_named_at_once_and_before_anything_else(parsed, vectors):
    recipe = parsed({"tuned": "{vectors}"}, vectors=vectors, base="no/such-model")
    with pytest.raises(CheckpointError, match="no such folders; train these vectors") as refused:
        open_study(recipe)
    for trait, level in product(BIG_FIVE, ("high", "low")):
        is_missing = vectors.format(trait=trait, level=level) in str(refused.value)
        assert is_missing == (trait not in TRAITS)


@pytest.fixture(scope="module")
def stacked(recipe, vectors, tmp_path_factory, measures):
    """Return a study of one vector over another at two strengths, and its run."""
    lower, upper = (vectors.format(trait=pole.trait, level=pole.level) for pole in POLES[1:3])
    both = [{"tuned": lower, "alpha": 0.5}, {"tuned": upper, "alpha": 2.0}]
    over = {"tuned": upper, "strengths": [0.0, 2.0], "poles": ["openness:high"]}
    over |= {"label": "over {alpha}", "each": {"alpha": [0.0, 0.5]}}
    arms = [
        over | {"on_top_of": [{"tuned": lower, "strength": "{alpha}"}]},
        {"label": "below", "tuned": lower, "strengths": [0.5]},
        {"label": "top", "tuned": upper, "strengths": [2.0]},
        {"label": "sum", "terms": both, "strengths": [1.0]},
        {"label": "asked", "prompt": "openness:high", "strengths": [3.0]}
        | {"on_top_of": [{"tuned": lower, "strength": 0.5}, {"tuned": upper, "strength": 2.0}]},
    ]
    study = open_study(recipe(interventions=arms, measures=measures(*TRAITS)[:1]))
    return study, study.run(tmp_path_factory.mktemp("runs") / "stacked")


def values(run, label, strength):
    """Return what a run measured at a point, by trait."""
    frame = run.readings()
    own = frame[(frame["intervention"] == label) & (frame["strength"] == strength)]
    return own.set_index("trait")["value"].to_dict()


def test_strength_0_on_top_of_another_is_that_other(stacked):
    _, run = stacked
    assert values(run, "over 0.5", 0.0) == values(run, "below", 0.5) != values(run, BASE, 0.0)
    assert values(run, "over 0", 0.0) == values(run, BASE, 0.0)
    assert values(run, "over 0", 2.0) == values(run, "top", 2.0)
    total = values(run, "sum", 1.0)
    assert values(run, "over 0.5", 2.0) == pytest.approx(total, abs=1e-5)
    assert values(run, "asked", 3.0) != pytest.approx(total, abs=1e-3)


def test_only_what_changes_nothing_shares_the_cell_of_the_base(stacked):
    study, _ = stacked
    measure = study.measures[0]
    base = study.cell(Point(BASE, 0.0, 0), measure)
    assert study.cell(Point("over 0", 0.0, 0), measure) == base
    assert study.cell(Point("over 0.5", 0.0, 0), measure) != base
    cells = {study.cell(Point(f"over {alpha}", 2.0, 0), measure) for alpha in ("0", "0.5")}
    assert len(cells) == 2


def test_a_curve_on_top_of_another_does_not_pass_through_the_base(stacked):
    _, run = stacked
    lines = {
        (axes.get_title(), curve.get_label()): curve.lines[0].get_xydata().tolist()
        for axes in dose_response_figure(run).axes
        for curve in axes.containers
    }
    for trait, label in product(TRAITS, ("over 0", "over 0.5")):
        expected = [[at, values(run, label, at)[trait]] for at in (0.0, 2.0)]
        assert lines[trait, label] == expected


def test_a_table_of_alpha_under_each_beta(stacked):
    _, run = stacked
    table = tables_of(run)[GRID]
    assert list(table.columns) == ["trait", "measure", "judge", "intervention", "0", "2"]
    assert table["intervention"].tolist() == ["over 0", "over 0.5"]
    for row in table.to_dict("records"):
        own = [values(run, row["intervention"], float(s))["openness"] for s in ("0", "2")]
        assert [row["0"], row["2"]] == own


def test_a_hybrid_is_matched_from_the_effect_of_what_is_below(recipe, vectors, tmp_path, measures):
    """Half of a vector on top of half of it is the whole vector at once."""
    high = {"tuned": vectors.format(trait="openness", level="high")}
    whole = {"label": "whole", **high, "strengths": [0.5, 1.0, 1.5]}
    hybrid = {"label": "hybrid", **high, "strengths": [0.5, 1.0]}
    hybrid["on_top_of"] = [high | {"strength": 0.5}]
    given = {"interventions": [whole, hybrid], "pole": "openness:high", "points": 1}
    run = open_study(recipe(CompareRecipe, measures=measures("openness")[:1], **given)).run(
        tmp_path / "hybrid"
    )
    curves = Comparison(run).curves("likelihood")
    sign = 1 if curves["whole"][-1].shift > 0 else -1
    assert curves["hybrid"][0].strength == 0.0
    for one, other in zip(curves["hybrid"], curves["whole"], strict=True):
        assert one.shift == pytest.approx(other.shift, abs=1e-5)
    if sign > 0:
        found = Comparison(run).matched_on("likelihood").set_index("intervention")["strength"]
        assert found["whole"] == pytest.approx(found["hybrid"] + 0.5, abs=0.02)


def test_a_prompt_below_has_steps_too(recipe):
    arm = {"label": "w", "portrait": "openness:high", "on_top_of": [{"prompt": "openness:low"}]}
    arm["on_top_of"][0]["strength"] = 0.5
    with pytest.raises(RecipeError, match=r"below: has the strengths -3, -2.* got 0.5"):
        open_study(recipe(interventions=[arm]))


@pytest.fixture(scope="module")
def composed(recipe, vectors, tmp_path_factory, measures):
    """Return the run of four combinations by two methods, and of the four vectors alone."""
    arm = {"label": "{method} {signs}", "composed": "{vectors}", "traits": list(TRAITS)}
    arm |= {"method": "{method}", "each": {"method": ["task_arithmetic", "dare"]}}
    single = {"tuned": "{vectors}", "poles": list(map(str, POLES))}
    asked = {"instructions": {"generation": {"max_new_tokens": 4}}}
    more = {"strengths": [0.5, 1.0, 2.0], "measures": [measures(*TRAITS)[0], asked]}
    study = open_study(recipe(interventions=[arm, single], vectors=vectors, **more))
    return study.run(tmp_path_factory.mktemp("runs") / "composed")


def aimed(run):
    """Return the readings of a run's traits, each with the sign of its intervention's pole."""
    frame = on_grid(run, run.readings()).query("trait != '' and intervention != 'base'")
    noted = run["poles"]
    signs = [
        {"high": 1, "low": -1}.get(dict(p.split(":") for p in noted[label]["poles"]).get(t))
        for label, t in zip(frame["intervention"], frame["trait"], strict=True)
    ]
    groups = [noted[label]["group"] for label in frame["intervention"]]
    return frame.assign(sign=signs, group=groups).dropna(subset="sign")


def test_the_own_trait_of_a_group_is_the_mean_of_its_vectors(composed):
    (row,) = tables_of(composed)[OWN].to_dict("records")
    frame = aimed(composed)
    single = frame[frame["group"] == "all poles"]
    found = [
        own["sign"].iloc[0] * np.corrcoef(own["strength"], own["value"])[0, 1]
        for _, own in single.groupby("intervention")
    ]
    assert (row["group"], row["vectors"]) == ("all poles", 4)
    assert row["mean"] == pytest.approx(np.abs(found).mean())
    assert [row["lowest"], row["highest"]] == pytest.approx(
        [min(map(abs, found)), max(map(abs, found))]
    )
    assert row["backwards"] == sum(r < 0 for r in found)


def test_a_composition_is_correlated_with_the_signed_alpha(composed):
    table = tables_of(composed)[COMPOSED]
    frame = aimed(composed)
    for group, rows in table.groupby("group", sort=False):
        own = frame[frame["group"] == group]
        expected = {
            trait: stats.pearsonr(of["sign"] * of["strength"], of["value"]).statistic
            for trait, of in own.groupby("trait")
        }
        r = rows.set_index("trait")["r"]
        assert r[list(TRAITS)].to_dict() == pytest.approx(expected)
        assert r["mean"] == pytest.approx(np.mean(list(expected.values())))
        assert rows["n"].tolist() == [12, 12, 24]
    first, second = table.query("trait == 'mean'").to_dict("records")
    assert first["gain"] == first["gain_low"] == first["gain_high"] == 0.0
    assert second["gain"] == pytest.approx(second["r"] - first["r"])
    assert second["gain_low"] <= second["gain"] <= second["gain_high"]


def test_a_figure_draws_the_mean_of_a_group_at_each_signed_alpha(composed):
    frame = aimed(composed).query("measure == 'likelihood'")
    frame["at"] = frame["sign"] * frame["strength"]
    expected = frame.groupby(["trait", "group", "at"])["value"].mean()
    curves = {
        (axes.get_title(), curve.get_label()): curve.lines[0].get_xydata().tolist()
        for axes in dose_response_figure(composed).axes
        for curve in axes.containers
    }
    for trait, group in product(TRAITS, ("task_arithmetic", "dare")):
        own = expected[trait, group]
        drawn = {at: value for at, value in curves[trait, group] if at}
        assert drawn == pytest.approx(own.to_dict())


def test_instructions_are_held_against_the_sum_of_alphas(composed):
    table = tables_of(composed)[KEPT].set_index("group")
    assert list(table.index) == ["task_arithmetic", "dare", "all poles"]
    rows = pd.DataFrame(
        {"strength": [0.1, -0.2, 0.4], "poles": [5, 5, 1], "value": [3.0, 2.0, 4.0]}
    )
    (found,) = against_sum(rows.assign(group="g", measure="m", judge="")).to_dict("records")
    expected = stats.pearsonr([0.5, 1.0, 0.4], [3.0, 2.0, 4.0]).statistic
    assert (found["n"], found["pearson"]) == (3, pytest.approx(expected))


def frame_of(noise, seed=0):
    """Return readings of two groups of all combinations of three traits; the second is noisy."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        [
            {"group": group, "measure": "m", "judge": "", "intervention": f"{group} {signs}"}
            | {"strength": alpha, "trait": trait, "sign": sign}
            | {"value": sign * alpha + 5.0 + noise[group] * rng.normal()}
            for group in noise
            for signs in product([1, -1], repeat=3)
            for alpha in (0.1, 0.2, 0.3, 0.4)
            for trait, sign in zip("abc", signs, strict=True)
        ]
    )


def test_a_gain_is_clear_where_one_group_is_noisier_and_not_where_none_is():
    table = compositions(frame_of({"first": 0.05, "noisy": 1.0, "same": 0.05}))
    mean = table[table["trait"] == "mean"].set_index("group")
    assert mean.loc["first", "r"] > 0.95
    assert mean.loc["noisy", "gain_high"] < 0.0
    assert mean.loc["same", "gain_low"] < 0.0 < mean.loc["same", "gain_high"]
    assert ((table["r_low"] <= table["r"]) & (table["r"] <= table["r_high"])).all()


def test_a_composition_without_a_value_somewhere_leaves_that_point_out():
    frame = frame_of({"first": 0.5}).drop(index=[0, 7, 50])
    expected = {
        trait: np.corrcoef(own["sign"] * own["strength"], own["value"])[0, 1]
        for trait, own in frame.groupby("trait")
    }
    r = compositions(frame).set_index("trait")["r"]
    assert r[list("abc")].to_dict() == pytest.approx(expected)


def test_tables_of_nothing_have_no_rows():
    nothing = frame_of({"first": 0.5})[:0].assign(poles=[])
    assert own_trait(nothing).empty
    assert at_each_strength(nothing).empty
    assert compositions(nothing).empty
    assert against_sum(nothing).empty


@pytest.mark.parametrize(
    "name", ["scaling", "composition", "negation", "transfer", "baselines", "layers"]
)
def test_a_design_is_found_by_its_last_word(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == lab_folder() / "eval" / "sweeps" / f"{name}.yaml"
    assert folder_of(name) == tmp_path / "eval" / "sweeps"


def test_a_word_that_many_recipes_end_with_is_not_enough():
    with pytest.raises(RecipeError, match=r"smoke: there is no such file .* like it: eval/choose"):
        find_recipe("smoke")
