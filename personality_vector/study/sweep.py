"""A sweep: every intervention at every strength, measured on one resident base; resumable."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from personality_vector.checkpoint import Checkpoint
from personality_vector.interventions.opening import open_intervention
from personality_vector.interventions.weights import WeightEdit
from personality_vector.measures.suite import Findings, Suite
from personality_vector.progress import progress
from personality_vector.recipes.schema import EvalRecipe, SweepRecipe
from personality_vector.study.results import Measure, Results
from personality_vector.study.runs import running
from personality_vector.subject.models import load_model, load_tokenizer, resolve_device
from personality_vector.subject.protocols import Intervention

BASE = "base"
"""Label of the unedited model in the results."""


@dataclass(frozen=True, slots=True)
class Bench:
    """A loaded base with its measurements and interventions: what a sweep and a compare share."""

    model: Any
    tokenizer: Any
    suite: Suite
    interventions: Mapping[str, Intervention]
    strengths: Mapping[str, Sequence[float]]

    def findings(self, label: str, strength: float) -> Findings:
        """Return every measurement of one cell."""
        if label == BASE or strength == 0.0:
            return self.suite(self.model, self.tokenizer)
        intervention = self.interventions[label]
        with intervention.applied(self.model, strength) as edit:
            found = self.suite(self.model, self.tokenizer, edit)
        if isinstance(intervention, WeightEdit):
            share = Measure("", "realised", intervention.realised.share, None, 1)
            return Findings(found.answers, [*found.measures, share])
        return found

    def effect(self, label: str, strength: float, trait: str) -> float:
        """Return the likelihood probe of ``trait`` under one intervention."""
        probe = self.suite.probe_of(trait)
        with self.interventions[label].applied(self.model, strength) as edit:
            return probe(self.model, self.tokenizer, edit)[trait].value


def prepare(recipe: SweepRecipe) -> Bench:
    """Load the base once, open every intervention and check that it belongs to the base."""
    base = Checkpoint.open(recipe.base)
    interventions = {spec.label: open_intervention(spec, base) for spec in recipe.interventions}
    model = load_model(base.path, dtype=recipe.dtype, device=resolve_device(recipe.device))
    tokenizer = load_tokenizer(base.path)
    suite = Suite.prepare(recipe.measure, recipe.seed, model, tokenizer)
    strengths = {spec.label: spec.strengths or recipe.strengths for spec in recipe.interventions}
    return Bench(model, tokenizer, suite, interventions, strengths)


def sweep(recipe: SweepRecipe, out: Path, *, force: bool = False) -> Results:
    """Measure every cell that ``out/results.sqlite`` does not hold yet; return the open results.

    No checkpoint is written: weights are edited in place and restored bit for bit.

    Raises:
        OutputExistsError: ``out`` holds the results of another recipe.
        BaseMismatchError: An intervention belongs to another base.
    """
    with running(recipe, out, force=force) as results:
        measure_cells(prepare(recipe), results)
    return results


def evaluate(recipe: EvalRecipe, out: Path, *, force: bool = False) -> Results:
    """Measure one model as it is; return the open results, with one cell called ``base``.

    Raises:
        OutputExistsError: ``out`` holds the results of another recipe.
    """
    with running(recipe, out, force=force) as results:
        path = Checkpoint.open(recipe.model).path
        model = load_model(path, dtype=recipe.dtype, device=resolve_device(recipe.device))
        tokenizer = load_tokenizer(path)
        alone = recipe.measure.model_copy(update={"side_effects": False})
        suite = Suite.prepare(alone, recipe.seed, model, tokenizer)
        measure_cells(Bench(model, tokenizer, suite, {}, {}), results)
    return results


def measure_cells(bench: Bench, results: Results) -> None:
    """Measure the base and then every cell that is not finished."""
    cells = [(BASE, 0.0)]
    cells += [(label, s) for label, strengths in bench.strengths.items() for s in strengths]
    todo = [cell for cell in cells if not results.finished(*cell)]
    for label, strength in progress(todo, "sweep"):
        quality = bench.suite.quality() if label == BASE else []
        measure_cell(bench, results, label, strength, label, quality)


def measure_cell(
    bench: Bench,
    results: Results,
    label: str,
    strength: float,
    stored_as: str,
    more: Sequence[Measure],
) -> None:
    """Measure one intervention at one strength and store it, with ``more`` measures, as a cell."""
    started = time.monotonic()
    found = bench.findings(label, strength)
    seconds = time.monotonic() - started
    results.write_cell(stored_as, strength, found.answers, [*found.measures, *more], seconds)


def measured(results: Results) -> pd.DataFrame:
    """Return the probe and the judge's mean of every trait, of a run without interventions."""
    measures = results.frame("measures")
    shown = measures[measures["measure"].isin(["probe", "judge"])]
    return shown.drop(columns=["intervention", "strength"])


def dose_response(results: Results) -> pd.DataFrame:
    """Return one row per intervention, trait and measure: how the measure follows the strength.

    Columns: ``intervention, trait, measure, n, unscored, base, spearman, pearson, ci_low, ci_high,
    slope``. ``pearson`` has a 95 % confidence interval (Fisher's z); ``base`` is the value of the
    unedited model. A measure without a value at some strength is left out there and counted.
    """
    frame = results.frame("measures")
    frame = frame[frame["measure"].isin(["probe", "judge"])]
    base = frame[frame["intervention"] == BASE].set_index(["trait", "measure"])["value"]
    rows = []
    keys = ["intervention", "trait", "measure"]
    swept = frame[frame["intervention"].isin(labels_of(results))]
    for key, group in swept.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True))
        scored = group.dropna(subset=["value"])
        rows.append(
            row
            | {"n": len(scored), "unscored": int(group["unscored"].sum())}
            | {"base": float(base.get((row["trait"], row["measure"]), float("nan")))}
            | correlation(scored["strength"].tolist(), scored["value"].tolist())
        )
    return pd.DataFrame(rows)


def by_strength(results: Results) -> pd.DataFrame:
    """Return one row per intervention and strength: probe and judge of every trait.

    The base comes first, at strength 0.
    """
    frame = results.frame("measures")
    shown = frame[frame["measure"].isin(["probe", "judge"])]
    shown = shown[shown["intervention"].isin([BASE, *labels_of(results)])]
    names = shown["trait"] + " " + shown["measure"]
    keys = ["intervention", "strength", "name"]
    values = shown.assign(name=names).set_index(keys)["value"].astype(float)
    return values.unstack("name", sort=False).reset_index().rename_axis(columns=None)


def labels_of(results: Results) -> list[str]:
    """Return the labels of the interventions of a run, in the order of its recipe."""
    return [spec["label"] for spec in results.spec.get("interventions", [])]


def correlation(strengths: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Return Spearman, Pearson with its 95 % interval, and the slope; NaN where undefined."""
    from scipy import stats

    undefined = dict.fromkeys(["spearman", "pearson", "ci_low", "ci_high", "slope"], float("nan"))
    if len(set(strengths)) < 3 or len(set(values)) < 2:
        return undefined
    pearson = stats.pearsonr(strengths, values)
    interval = pearson.confidence_interval(0.95) if len(values) > 3 else (float("nan"),) * 2
    return {
        "spearman": float(stats.spearmanr(strengths, values).statistic),
        "pearson": float(pearson.statistic),
        "ci_low": float(interval[0]),
        "ci_high": float(interval[1]),
        "slope": float(stats.linregress(strengths, values).slope),
    }
