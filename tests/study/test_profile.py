"""A target profile: exact where traits are linear, and honest where it is out of reach."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli.main import run
from personality_vector.delta import Delta
from personality_vector.errors import DataError, RecipeError
from personality_vector.merging.recipe import MergeRecipe
from personality_vector.numeric.random import generator_for
from personality_vector.numeric.statistics import Interval
from personality_vector.recipes.reading import read_recipe
from personality_vector.report.profile import save_profile
from personality_vector.study.profile.recipe import ProfileRecipe
from personality_vector.study.profile.run import Search, profile
from personality_vector.study.profile.solving import Aim, Linear
from personality_vector.study.run import Run
from personality_vector.study.worker import Worker
from personality_vector.subject.identity import digest_of
from personality_vector.subject.protocols import Findings, Observation, Reading
from personality_vector.subject.subject import Subject

CROSS_TALK = {"boldness": (1.0, -0.4), "calm": (0.3, 0.8), "wit": (0.2, 0.1)}
HEAD = "lm_head.weight"
ITEMS = 12


@dataclass(frozen=True)
class Weighed:
    """Traits that are read off the head, linearly: item by item, and bent if ``most`` says so."""

    traits: Sequence[str] = tuple(CROSS_TALK)
    most: float = 0.0
    items: int = ITEMS
    name: str = "weighed"
    unit: str = "weight"
    scale: None = None
    better: str = "towards_pole"

    def identity(self) -> str:
        return digest_of("weighed", self.traits, self.most, self.items)

    def prepare(self, base: Subject) -> "Weighed":
        return self

    def collect(self, subject: Subject, seed: int) -> Any:
        weight = subject.model.get_parameter(HEAD).detach().double()
        return [float(weight[row, 0]) for row in range(len(CROSS_TALK))]

    def finish(self, base: Subject, collected: list[float]) -> Findings:
        first = base.model.get_parameter(HEAD).detach().double()
        readings, observations = [], []
        for row, trait in enumerate(self.traits):
            moved = collected[row] - float(first[row, 0])
            if self.most:
                moved = self.most * float(np.tanh(moved / self.most))
            # Items differ, in the base and in how far they move.
            values = [n + moved * (1 + 0.1 * (-1) ** n) for n in range(self.items)]
            mean = float(np.mean(values))
            readings.append(Reading(self.name, mean, trait, n=self.items))
            observations += [
                Observation(self.name, trait, f"i{n}", value)
                for n, value in enumerate(values)
                if self.items > 1
            ]
        return Findings(readings=readings, observations=observations)


@pytest.fixture(scope="module")
def terms(pico, tmp_path_factory):
    """Return two saved deltas of pico that move the traits by the columns of ``CROSS_TALK``."""
    folder, base = tmp_path_factory.mktemp("terms"), pico("llama")
    found = []
    for column, pole in enumerate(("boldness:high", "calm:high")):
        tuned = folder / f"tuned-{column}"
        tuned.mkdir()
        for file in base.iterdir():
            (tuned / file.name).write_bytes(file.read_bytes())
        tensors = load_file(tuned / "model.safetensors")
        for row, slopes in enumerate(CROSS_TALK.values()):
            tensors[HEAD][row, 0] += slopes[column]
        save_file(tensors, tuned / "model.safetensors", {"format": "pt"})
        name = pole.partition(":")[0]
        Delta.between(base, tuned, pole=pole, label=name).save(folder / name)
        found.append({"delta": str(folder / name)})
    return found


@pytest.fixture
def recipe(pico, terms, tmp_path):
    """Return ``recipe(target, **changes)``."""

    def make(target, **changes):
        data = {"base": str(pico("llama")), "terms": terms, "target": target, "device": "cpu"}
        return ProfileRecipe.parse(data | changes, origin="test", folder=tmp_path)

    return make


@pytest.fixture
def found(recipe, tmp_path):
    """Return ``found(target, measure, **changes)``: what a search finds."""

    def search(target, measure=None, **changes):
        opened = Search.open(recipe(target, **changes), measure or Weighed())
        return profile(opened, tmp_path / "out.run")

    return search


# Laws


def test_where_traits_are_linear_the_first_try_is_the_solution_of_the_equations(found):
    target = {"boldness": 0.6, "calm": -0.4}
    one = found(target, others="free")
    slopes = np.array([CROSS_TALK[trait] for trait in target])
    assert one.best.alphas == pytest.approx(np.linalg.solve(slopes, [0.6, -0.4]), abs=1e-4)
    assert len(one.tries) == 1
    assert one.is_reached
    assert one.curve == ()
    for trait, wanted in target.items():
        assert one.best.shifts[trait].value == pytest.approx(wanted, abs=1e-4)
    for trait, row in CROSS_TALK.items():
        assert [slope.value for slope in one.slopes[trait]] == pytest.approx(row, abs=1e-6)
    assert one.verdict().startswith("reached: boldness +0.6 is +0.6 (95 % interval +0.")
    assert one.poles == ["boldness:high", "calm:high"]


def test_traits_that_are_kept_decide_only_between_alphas_that_reach_the_target(found):
    """One equation, two alphas: the others are moved as little as that allows."""
    one, free = (found({"wit": 0.1}, others=word) for word in ("keep", "free"))
    wit = np.array([CROSS_TALK["wit"]])
    assert free.best.alphas == pytest.approx(0.1 * np.linalg.pinv(wit)[:, 0], abs=1e-4)
    rest = np.array([CROSS_TALK["boldness"], CROSS_TALK["calm"]])
    multiplier = np.block([[rest.T @ rest, wit.T], [wit, np.zeros((1, 1))]])
    expected = np.linalg.solve(multiplier, [0.0, 0.0, 0.1])[:2]
    assert one.best.alphas == pytest.approx(expected, abs=1e-3)
    assert free.best.alphas != pytest.approx(expected, rel=0.05)
    assert one.is_reached
    assert free.is_reached


def test_a_bent_measure_is_reached_after_a_correction(found):
    one = found({"boldness": 0.6, "calm": -0.3}, Weighed(most=0.8), others="free")
    assert one.is_reached
    assert 1 < len(one.tries) <= 4
    missed = [
        sum(abs(each.shifts[trait].value - wanted) for trait, wanted in one.target.items())
        for each in one.tries
    ]
    assert missed == sorted(missed, reverse=True)


@pytest.mark.parametrize("curvature", [0.0, 0.3, 0.8])
def test_corrections_converge_on_smooth_shifts(curvature):
    matrix = np.array([[1.0, -0.4, 0.2], [0.3, 0.8, -0.5]])
    wanted, weights = np.array([0.7, -0.5]), np.ones(2)

    def shifts(alphas):
        return np.tanh(curvature * (matrix @ alphas)) / curvature if curvature else matrix @ alphas

    model = Linear(np.zeros(3), np.zeros(2), matrix)
    alphas = model.alphas
    while (alphas != model.solved(wanted, weights, 5.0)).any():
        alphas = model.solved(wanted, weights, 5.0)
        model = model.after(alphas, shifts(alphas))
    assert shifts(alphas) == pytest.approx(wanted, abs=1e-3)


def test_the_model_after_a_step_leads_through_both_points():
    draw = np.random.default_rng(0)
    first = Linear(draw.normal(size=3), draw.normal(size=2), draw.normal(size=(2, 3)))
    alphas, shifts = draw.normal(size=3), draw.normal(size=2)
    then = first.after(alphas, shifts)
    assert then.shifts + then.slopes @ (first.alphas - alphas) == pytest.approx(first.shifts)
    across = np.linalg.svd((alphas - first.alphas)[None])[2][1:]
    assert then.slopes @ across.T == pytest.approx(first.slopes @ across.T)


def test_an_unreachable_target_is_said_to_be_with_the_nearest_and_the_curve(found, tmp_path):
    one = found({"boldness": 3.0}, most=0.5, others="free")
    assert not one.is_reached
    assert one.best.alphas == (0.5, -0.5)
    assert one.best.shifts["boldness"].value == pytest.approx(0.7, abs=1e-4)
    assert one.verdict().startswith("out of reach: boldness +3 is wanted, and the nearest is +0.7 ")
    assert one.verdict().endswith("the alpha of boldness and calm is at its bound of 0.5")
    assert [times for times, _ in one.curve] == [0.25, 0.5, 0.75, 1.0, 1.25]
    for times, shifts in one.curve:
        assert shifts["boldness"].value == pytest.approx(0.7 * times, abs=1e-4)
    save_profile(one, tmp_path / "out", force=False)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("MANIFEST.json", "curve.png", "curve.svg", "merge.yaml", "profile.json")
    }


def test_little_is_not_bought_dearly_where_the_target_is_out_of_reach(found):
    """Both vectors hardly move wit; at their bounds they would move the others much further."""
    kept, free = (found({"wit": 2.0}, most=3.0, others=word) for word in ("keep", "free"))
    assert not kept.is_reached
    assert len(kept.tries) == len(free.tries) == 1, "a linear model of it promises nothing better"
    assert free.best.alphas == (3.0, 3.0)
    slopes = np.array(list(CROSS_TALK.values()))
    weighted = np.array([0.3, 0.3, 1.0])[:, None] * slopes
    expected = np.linalg.lstsq(weighted, [0.0, 0.0, 2.0], rcond=None)[0]
    assert kept.best.alphas == pytest.approx(expected, abs=2e-4)
    assert any(
        one.startswith("calm, which has no target, moves by +3.3 ") for one in free.remarks()
    )


def test_noise_drives_no_alpha_to_its_bound():
    """A slope that cannot be told from 0 is no way to come nearer to a target out of reach."""
    slopes = {
        "boldness": [Interval(0.1, 0.05, 0.15), Interval(0.02, -0.03, 0.07)],
        "calm": [Interval(0.0, -0.01, 0.01), Interval(0.03, 0.02, 0.04)],
    }
    aim = Aim(
        *({"boldness": 5.0}, np.array([5.0, 0.0]), np.array([True, False])),
        np.array([[not one.low <= 0.0 <= one.high for one in row] for row in slopes.values()]),
        *(0.3, 4.0),
    )
    values = np.array([[one.value for one in row] for row in slopes.values()])
    assert aim.solved(Linear(np.zeros(2), np.zeros(2), values)).tolist() == [4.0, 0.0]


def test_contrary_wishes_of_one_vector_leave_the_base(found, terms, tmp_path):
    """What the vector gives to one wish it takes from the other, so the nearest is the base."""
    one = found({"boldness": 0.3, "calm": -1.0}, terms=terms[:1], others="free")
    assert one.best.alphas == (0.0,)
    assert [shift.value for shift in one.best.shifts.values()] == [0.0, 0.0, 0.0]
    assert one.verdict().endswith("a linear model of these vectors knows no better alphas")
    assert not one.curve
    save_profile(one, tmp_path / "out", force=False)
    assert not (tmp_path / "out" / "curve.svg").exists()


def test_tries_that_are_used_up_are_said_to_be(found):
    one = found({"boldness": 0.75}, Weighed(most=0.8), tries=1)
    assert one.verdict().endswith("1 try was made, which is what tries allows")


def test_the_merge_recipe_makes_the_model_that_was_measured(found, tmp_path):
    one = found({"boldness": 0.6, "calm": -0.4}, others="free")
    save_profile(one, tmp_path / "out", force=False)
    read = read_recipe(tmp_path / "out" / "merge.yaml", MergeRecipe)
    assert [term.alpha for term in read.terms] == list(one.best.alphas)
    assert run(["merge", str(tmp_path / "out/merge.yaml"), "--out", str(tmp_path / "merged")]) == 0
    base, merged = Checkpoint.open(read.base), Checkpoint.open(tmp_path / "merged")
    moved = (merged[HEAD] - base[HEAD])[: len(CROSS_TALK), 0]
    expected = np.array(list(CROSS_TALK.values())) @ np.array(one.best.alphas)
    assert moved.numpy() == pytest.approx(expected, abs=1e-5)
    record = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert record["alphas"] == dict(zip(one.labels, one.best.alphas, strict=True))
    assert record["reached"] is True


class Killed(BaseException):
    """What ends a process in the middle of its work."""


def test_an_interrupted_search_measures_nothing_twice(found, tmp_path, monkeypatch):
    measured, take = [], Worker._measure_group

    def until(limit):
        def measure(worker, points, measures):
            if len(measured) >= limit:
                raise Killed
            measured.extend(worker.study.cell(point, m) for point in points for m in measures)
            take(worker, points, measures)

        return measure

    def again():
        return found({"boldness": 0.6}, Weighed(most=0.8))

    monkeypatch.setattr(Worker, "_measure_group", until(3))
    with pytest.raises(Killed):
        again()
    monkeypatch.setattr(Worker, "_measure_group", until(99))
    whole = again()
    assert len(measured) == len(set(measured)) == 1 + 4 + len(whole.tries)
    assert again().record() == whole.record()
    assert len(measured) == 1 + 4 + len(whole.tries)
    labels = set(Run(tmp_path / "out.run").readings()["intervention"])
    assert labels == {"base", "boldness", "calm"} | {
        f"try {n}" for n in range(1, 1 + len(whole.tries))
    }


# Refusals


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("boldness", r"target: 'boldness' is not trait=shift; write it like extraversion=\+0.6"),
        ("boldness=much", "'boldness=much' is not trait=shift"),
        ("boldness=1.2.3", "'boldness=1.2.3' is not trait=shift"),
        ("boldness=0.1,boldness=0.2", "boldness is given twice"),
        ("boldness=0", "needs a shift other than 0"),
        ({}, "target: needs at least one"),
        ({"boldness": float("nan")}, r"target.boldness: Input should be a finite number"),
    ],
)
def test_a_wrong_target_is_refused(recipe, target, match):
    with pytest.raises(RecipeError, match=match):
        recipe(target)


def test_a_target_can_be_written_as_one_text(recipe):
    assert recipe("boldness=+0.6, calm=-4e-1").target == {"boldness": 0.6, "calm": -0.4}


def test_a_trait_that_is_not_measured_is_refused_before_a_model_is_loaded(recipe):
    with pytest.raises(RecipeError, match="target: humour is not measured; the measure has bold"):
        Search.open(recipe({"humour": 0.5}), Weighed())


def test_a_trait_that_no_vector_moves_is_refused(found, monkeypatch):
    monkeypatch.setitem(CROSS_TALK, "wit", (0.0, 0.0))
    still = generator_for(0, "still")

    class Noisy(Weighed):
        def finish(self, base, collected):
            found = super().finish(base, collected)
            draw = torch.randn(self.items, generator=still).tolist()
            noisy = [
                one._replace(value=draw[int(one.item[1:])]) if one.trait == "wit" else one
                for one in found.observations
            ]
            mean = float(np.mean(draw))
            read = [
                replace(one, value=mean) if one.trait == "wit" else one for one in found.readings
            ]
            return Findings(readings=read, observations=noisy)

    with pytest.raises(DataError, match="target: no term moves wit, since the interval of every"):
        found({"wit": 0.5}, Noisy())


@dataclass(frozen=True)
class Silent(Weighed):
    """Has nothing to say about the last trait."""

    def finish(self, base: Subject, collected: list[float]) -> Findings:
        found = super().finish(base, collected)
        *others, last = self.traits
        readings = [one for one in found.readings if one.trait in others]
        seen = [one for one in found.observations if one.trait in others]
        return Findings(readings=[*readings, Reading(self.name, None, last)], observations=seen)


def test_a_trait_that_nobody_can_score_is_left_out_unless_it_is_wanted(found):
    got = found({"boldness": 0.5}, Silent())
    assert got.is_reached
    assert list(got.slopes) == ["boldness", "calm"]
    with pytest.raises(DataError, match="gives no interval of a shift of wit"):
        found({"wit": 0.5}, Silent())


def test_a_measure_without_items_needs_seeds(found):
    with pytest.raises(
        DataError, match="weighed: gives no interval of a shift of boldness; take a"
    ):
        found({"boldness": 0.5}, Weighed(items=1))


def test_two_terms_of_one_name_are_refused(recipe, terms):
    with pytest.raises(RecipeError, match="two terms are called boldness; give each its own label"):
        Search.open(recipe({"boldness": 0.5}, terms=[terms[0], terms[0]]), Weighed())


def test_a_measure_of_no_trait_is_refused(recipe, tmp_path):
    search = Search.open(recipe({"boldness": 0.5}, measure={"divergence": {}}))
    with pytest.raises(RecipeError, match="this measure gives none"):
        profile(search, tmp_path / "run")


# The command


def test_the_verb_prints_what_it_reached(pico, pico_tuned, inputs, tmp_path, capsys):
    text = (
        f"base: {pico('llama')}\nterms:\n"
        f"  - {{tuned: {pico_tuned('llama')}, label: one}}\n"
        f"  - {{tuned: {pico_tuned('llama', seed=1)}, label: two}}\n"
        "target: {extraversion: 0.01}\ndevice: cpu\nmeasure:\n"
        "  likelihood:\n    traits: [extraversion, openness]\n"
        f"    statements: {inputs}/statements.jsonl\n"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    words = ["profile", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"), "--quiet"]
    assert run([*words, "--dry-run"]) == 0
    assert "tries_at_most: 4" in capsys.readouterr().out
    assert run([*words, "--target", "extraversion=0.02,humour=1"]) == 1
    assert "target: humour is not measured" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["recipe.yaml"]
    assert run([*words, "--target", "extraversion=50"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cross-talk: nats per token per unit of alpha" in said
    assert "out of reach: extraversion +50 is wanted" in said
    assert run(words) == 1
    assert "exists; choose another --out, or add --force" in capsys.readouterr().err
    assert run([*words, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == {"extraversion": 0.01}
