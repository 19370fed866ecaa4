"""The folder of a run: held by one process, resumable, tied to the content of its inputs."""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from personality_vector.checkpoint import LOCK, Checkpoint, content_of, locked
from personality_vector.checkpoint.reader import read_json
from personality_vector.data.instruments import read_instrument
from personality_vector.errors import DataError, ModelError, OutputExistsError
from personality_vector.interventions.opening import open_intervention
from personality_vector.interventions.protocol import Intervention
from personality_vector.interventions.system_prompt import SystemPrompt
from personality_vector.interventions.weights import WeightEdit
from personality_vector.manifest import MANIFEST, write_manifest
from personality_vector.measures.suite import require_statements
from personality_vector.recipes.schema import EvalRecipe, InterventionSpec, MeasureSpec, SweepRecipe
from personality_vector.study.results import Results

_FILE = "results.sqlite"


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
            require_strengths(opened, given.strengths or recipe.strengths)
            require_layers(given, base)
            require_held_out(given, measure)
            if isinstance(opened, WeightEdit):
                contents[given.label] = opened.delta.identity
            contents |= {name: content_of(path) for name, path in _files_of(given).items()}
    spec: dict[str, Any] = json.loads(recipe.model_dump_json())
    return spec | {"contents": contents}


def _files_of(given: InterventionSpec) -> dict[str, Path]:
    """Return what an intervention reads that has no digest of its own."""
    read = {
        given.label: given.vector or given.neurons,
        f"{given.label}, gate": given.gate.vector if given.gate else None,
    }
    return {name: path for name, path in read.items() if path is not None}


def require_strengths(opened: Intervention, strengths: Sequence[float]) -> None:
    """Check the steps of a prompt before a model is loaded.

    Raises:
        RecipeError: A prompt has no such step.
    """
    if isinstance(opened, SystemPrompt):
        for strength in strengths:
            opened.sentence(strength)


def require_layers(given: InterventionSpec, base: Checkpoint) -> None:
    """Check the layers of a vector, and that of its gate, before a model is loaded.

    Raises:
        ModelError: The base has no such layer, or the gate lies behind a steered one.
    """
    count = base.config.get("text_config", base.config).get("num_hidden_layers")
    if not isinstance(count, int):
        return
    for layer in (*given.layers, *([given.gate.layer] if given.gate else [])):
        if not -count <= layer < count:
            raise ModelError(
                f"{given.label}: layer {layer} is not one of the {count} decoder blocks of "
                f"{base.path}, numbered from 0"
            )
    first = min((layer % count for layer in given.layers), default=count)
    if given.gate and given.gate.layer > first:
        raise ModelError(
            f"{given.label}: the gate at layer {given.gate.layer} lies behind the first steered "
            f"layer, {first}; move it to {first} or before"
        )


def require_held_out(given: InterventionSpec, measure: MeasureSpec) -> None:
    """Check that a fine-tune of ours was not trained on the statements that measure it.

    Raises:
        DataError: Its recipe split the same statements elsewhere.
    """
    for tuned in (given.tuned, *(term.tuned for term in given.terms)):
        manifest = Path(tuned or "") / MANIFEST
        data = read_json(manifest).get("recipe", {}).get("data") if manifest.is_file() else None
        if not isinstance(data, dict) or data.get("format") != "statements":
            continue
        ours, theirs = measure.statements.resolve(), Path(str(data.get("source"))).resolve()
        is_same = ours == theirs or ours in theirs.parents or theirs in ours.parents
        if is_same and (data.get("part"), data.get("held_out")) != ("train", measure.held_out):
            raise DataError(
                f"{tuned}: was trained on part {data.get('part')} with held_out "
                f"{data.get('held_out')} of {theirs}; measure.held_out {measure.held_out} would "
                "measure it on its own training text"
            )


def write_run_manifest(folder: Path, spec: Mapping[str, Any], kind: str) -> None:
    """Write the manifest of a finished run, after its results are closed."""
    (folder / MANIFEST).unlink(missing_ok=True)
    write_manifest(folder, kind, {"recipe": spec, "seed": spec["seed"]})
