"""A sweep: every intervention at every strength, measured on one resident base; resumable."""

import hashlib
import json
import logging
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from personality_vector.checkpoint import LOCK, Checkpoint, locked
from personality_vector.delta import Delta, combine, open_delta
from personality_vector.errors import BaseMismatchError, DataError, ModelError, OutputExistsError
from personality_vector.evaluation.instruments import read_instrument
from personality_vector.evaluation.suite import Findings, Suite, require_statements
from personality_vector.intervention import ActivationSteering, Intervention, Prompted, WeightEdit
from personality_vector.manifest import MANIFEST, write_manifest
from personality_vector.models import load_model, load_tokenizer, resolve_device
from personality_vector.progress import progress
from personality_vector.recipes import EvalRecipe, InterventionSpec, SweepRecipe
from personality_vector.results import Measure, Results
from personality_vector.steering import SteeringVector

log = logging.getLogger(__name__)

_FILE = "results.sqlite"

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


@contextmanager
def running(
    recipe: SweepRecipe | EvalRecipe, out: Path, *, force: bool = False
) -> Generator[Results]:
    """Hold ``out`` for this process and yield its open results; they stay open on success.

    After an error they are closed, and a run that has measured nothing leaves nothing.
    """
    spec = spec_of(recipe)  # first, since it opens and checks every input
    is_new = not out.exists()
    if not is_new and not (out / _FILE).exists() and {p.name for p in out.iterdir()} - {LOCK}:
        raise OutputExistsError(f"{out}: exists and holds no results of ours; choose another --out")
    with locked(out):
        results = open_results(spec, out, force=force)
        try:
            yield results
        except BaseException:
            is_empty = results.frame("cells").empty
            results.close()
            if is_empty:
                _remove(out, is_new=is_new)
            raise


def _remove(out: Path, *, is_new: bool) -> None:
    for file in out.glob("results.sqlite*"):
        file.unlink()
    if is_new:
        (out / LOCK).unlink()
        out.rmdir()


def open_results(spec: Mapping[str, Any], out: Path, *, force: bool) -> Results:
    """Open the results of a run for resuming, or anew with ``force``.

    Raises:
        OutputExistsError: ``out`` holds another recipe's results.
        CheckpointError: What lies there under that name is no results file.
    """
    path = out / _FILE
    if force and path.exists():
        Results.reopen(path).close()  # it is ours, or this refuses
        for old in out.glob("results.sqlite*"):
            old.unlink()
    return Results.open(path, spec)


def spec_of(recipe: SweepRecipe | EvalRecipe) -> dict[str, Any]:
    """Return everything that the numbers depend on: the recipe, and the content of its inputs.

    Raises:
        PersonalityVectorError: An input is missing, unreadable or of another base.
    """
    base = Checkpoint.open(recipe.base if isinstance(recipe, SweepRecipe) else recipe.model)
    measure = recipe.measure
    contents = {"base": base.fingerprint.digest, "statements": content_of(measure.statements)}
    if measure.instrument is not None:
        read_instrument(measure.instrument)
        contents["instrument"] = content_of(measure.instrument)
    require_statements(measure)
    if isinstance(recipe, SweepRecipe):
        for given in recipe.interventions:
            opened = open_intervention(given, base)
            require_strengths(given, recipe.strengths, base)
            if isinstance(opened, WeightEdit):
                contents[given.label] = opened.delta.identity
            elif given.vector is not None:
                contents[given.label] = content_of(given.vector)
    spec: dict[str, Any] = json.loads(recipe.model_dump_json())
    return spec | {"contents": contents}


def require_strengths(given: InterventionSpec, default: Sequence[float], base: Checkpoint) -> None:
    """Check layers and prompt grades before a model is loaded.

    Raises:
        RecipeError: A prompt has no such grade.
        ModelError: The base has no such layer.
    """
    for strength in given.strengths or default:
        if given.prompt is not None:
            Prompted(given.prompt).sentence(strength)
    count = base.config.get("text_config", base.config).get("num_hidden_layers")
    for layer in given.layers:
        if isinstance(count, int) and not -count <= layer < count:
            raise ModelError(
                f"{given.label}: layer {layer} is not one of the {count} decoder blocks of "
                f"{base.path}, numbered from 0"
            )


def content_of(path: Path) -> str:
    """Return a digest of a file, or of every file in a folder.

    Raises:
        DataError: There is nothing.
    """
    files = sorted(found for found in path.rglob("*") if found.is_file()) or [path]
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in files:
            digest.update(file.name.encode() + file.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def measure_cells(bench: Bench, results: Results) -> None:
    """Measure the base and then every cell that is not finished."""
    cells = [(BASE, 0.0)]
    cells += [(label, s) for label, strengths in bench.strengths.items() for s in strengths]
    todo = [cell for cell in cells if not results.finished(*cell)]
    for label, strength in progress(todo, "sweep"):
        started = time.monotonic()
        found = bench.findings(label, strength)
        seconds = time.monotonic() - started
        measures = [*found.measures, *(bench.suite.quality() if label == BASE else [])]
        results.write_cell(label, strength, found.answers, measures, seconds)


def open_intervention(spec: InterventionSpec, base: Checkpoint) -> Intervention:
    """Return the intervention that a recipe describes.

    Raises:
        BaseMismatchError: It was made from another model.
    """
    if spec.prompt is not None:
        return Prompted(spec.prompt, label=spec.label)
    if spec.vector is not None:
        vector = SteeringVector.load(spec.vector)
        if vector.model not in ("", base.fingerprint.digest):
            raise BaseMismatchError(
                f"{spec.vector}: was extracted from model {vector.model[:12]}, but {base.path} "
                f"is {base.fingerprint}"
            )
        return ActivationSteering(vector, spec.layers, label=spec.label)
    return WeightEdit(_delta_of(spec, base), label=spec.label)


def _delta_of(spec: InterventionSpec, base: Checkpoint) -> Delta:
    if not spec.terms:
        return open_delta(spec.delta or spec.tuned or "", base, label=spec.label)
    opened = [(open_delta(term.source, base), term.alpha) for term in spec.terms]
    return combine(opened, spec.label)


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


def write_run_manifest(folder: Path, spec: Mapping[str, Any], kind: str) -> None:
    """Write the manifest of a finished run, after its results are closed."""
    (folder / MANIFEST).unlink(missing_ok=True)
    write_manifest(folder, kind, {"recipe": spec, "seed": spec["seed"]})
