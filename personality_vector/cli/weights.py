"""``pvec train``, ``pvec diff`` and ``pvec convert``: what a merge begins with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import personality_vector as pv
from personality_vector import files
from personality_vector.cli import options
from personality_vector.errors import CheckpointError, RecipeError, some
from personality_vector.lab import expanded

if TYPE_CHECKING:
    from personality_vector.delta.record import DeltaRecord
    from personality_vector.finetuning.recipe import TrainRecipe
    from personality_vector.steering.training import TrainingSteering

Storage = Annotated[
    Literal["float32", "bfloat16", "lora", "reference"] | None,
    typer.Option(
        "--as",
        "--dtype",
        help="How to store it. float32, the default, is exact; bfloat16 is half as large; lora "
        "keeps the factors of an adapter, and reference only the paths of BASE and TUNED.",
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="LOW",
        help="Another fine-tune of BASE: save (TUNED - LOW) / 2, without what both share.",
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(
        "--low-rank",
        min=1,
        metavar="R",
        help="Keep the R largest singular values of every matrix.",
    ),
]


def check(recipe: "TrainRecipe") -> dict[str, Any]:
    """Open the inputs, try the chat template and ``max_length`` on the data, and time a step."""
    from personality_vector.finetuning.processes import is_main_process, leave
    from personality_vector.finetuning.rehearsal import estimated_time, rehearse

    base, guidance = pv.Checkpoint.open(recipe.base), _guidance(recipe)
    if guidance is not None:
        guidance.check(base)
    plan = rehearse(recipe)
    time = estimated_time(recipe, plan, guidance)
    leave()
    if not is_main_process():
        raise typer.Exit  # of torchrun's processes one prints the plan
    examples = plan.pop("shown")
    return {"base": str(base.fingerprint), **plan, **time, "shown": examples}


def _guidance(recipe: "TrainRecipe") -> "TrainingSteering | None":
    """Return what steers a training, if its recipe says so."""
    steer = recipe.steer
    if steer is None:
        return None
    from personality_vector.steering.training import TrainingSteering

    return TrainingSteering.open(steer.vector, steer.layers, steer.how, steer.coefficient)


def _train(recipe: "TrainRecipe", out: Path, force: bool, as_json: bool) -> None:
    from personality_vector.finetuning.processes import is_main_process, leave
    from personality_vector.finetuning.sft import train as fine_tune

    if recipe.poles is not None:
        _train_poles(recipe, out, force, as_json)
        leave()
        return
    with options.resumable(out):
        done = fine_tune(recipe, out, force=force, guidance=_guidance(recipe))
    leave()
    if is_main_process():
        row = _row(done.path, done.manifest)
        options.show(row, as_json=as_json, text=lambda: _trained(row, done.manifest))


_by_recipe = options.recipe_verb("finetuning.recipe.TrainRecipe", _train, check)


def train(
    recipe: options.RecipeArgument,
    settings: options.Settings = [],
    only: Annotated[
        list[str],
        typer.Option(
            "--only",
            metavar="TRAIT[:LEVEL]",
            help="Train only this pole of a recipe with poles; repeatable.",
        ),
    ] = [],
    out: options.Out = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fine-tune a base on one pole, or on each of several.

    A training that was interrupted resumes, and of several poles only those that are not there yet
    are trained, each into OUT/TRAIT-LEVEL.
    """
    chosen = [f"only=[{', '.join(only)}]"] if only else []
    _by_recipe(recipe, [*settings, *chosen], out, dry_run, force, as_json, quiet)


def _train_poles(recipe: "TrainRecipe", out: Path, force: bool, as_json: bool) -> None:
    from personality_vector.finetuning.poles import train_poles
    from personality_vector.finetuning.processes import is_main_process

    rows = []
    with options.resumable(out):
        for done in train_poles(recipe, out, force=force, guidance=_guidance(recipe)):
            row = _row(done.path, done.manifest) if done.manifest else {"out": str(done.path)}
            rows.append({"pole": str(done.pole), "state": done.state, **row})
            if is_main_process() and not as_json:
                said = (
                    _trained(row, done.manifest) if done.manifest else f"{done.path}: {done.pole}"
                )
                typer.echo(f"{said} ({_STATES[done.state]})")
    if is_main_process() and as_json:
        options.show(rows, as_json=True, text=str)


_STATES = {
    "trained": "trained now",
    "there": "was there already",
    "locked": "another process is training it",
}


def _row(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    kept = {key: manifest[key] for key in ("pole", "examples", "dropped", "cut")}
    return {"out": str(path), **kept, "loss": manifest["losses"][-1]}


def _trained(row: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Return one line about a pole that is trained."""
    from personality_vector.data.chats import said_of

    said = f"; dropped: {said_of(row['dropped'])}" if row["dropped"] else ""
    said += f"; cut at max_length: {row['cut']}" if row["cut"] else ""
    held_out = manifest.get("held_out_losses") or {}
    said += f"; held-out loss {min(held_out.values()):.3f}" if held_out else ""
    return f"{row['out']}: {row['pole']}, {row['examples']} examples, loss {row['loss']:.3f}{said}"


def diff(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Directory, Hub id or builtin:NAME.")],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="A fine-tune of BASE, or an adapter.")
    ],
    out: options.OutDir,
    against: Against = None,
    pole: options.PoleOption = None,
    storage: Storage = None,
    rank: Rank = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Save the delta TUNED - BASE, or with --against half the difference of two."""
    if storage is not None and rank is not None:
        raise RecipeError(f"--as {storage} and --low-rank {rank}: give one of the two")
    files.begin(map(expanded, (base, tuned, *([against] if against else []))))
    from personality_vector.delta import open_fine_tune, read_record, require_not_swapped
    from personality_vector.delta.opening import Allowed
    from personality_vector.merging.summands import require_nonzero

    start = pv.Checkpoint.open(base)

    def opened(one: str, pole: str | None) -> "pv.Delta":
        allowed = Allowed(stated=True)
        return open_fine_tune(one, start, require_not_swapped, pole=pole, allowed=allowed)

    delta = opened(tuned, pole)
    if against is not None:
        delta = pv.Delta.contrast(delta, opened(against, None))
    require_nonzero(delta)
    delta.save(
        out,
        storage="low-rank" if rank is not None else storage or "float32",
        rank=rank,
        force=force,
    )
    record = read_record(out)
    options.show(_told(out, record), as_json=as_json, text=lambda: _sentence(out, record))


def _told(out: Path, record: "DeltaRecord") -> dict[str, Any]:
    """Return what was written, for --json."""
    total = record.total
    return {
        "out": str(out),
        "label": record.label,
        "pole": record.pole,
        "storage": record.storage,
        "tensors": total.tensors,
        "norm": total.norm,
        "loss": total.loss,
        "base": record.base.digest,
        **({"halves": list(record.halves)} if record.halves else {}),
        **({"rank": record.rank, "kept": total.kept} if record.rank else {}),
    }


def _sentence(out: Path, record: "DeltaRecord") -> str:
    """Return what was written; of a lossy storage, also what was lost, and where most."""
    from personality_vector.delta.layers import layer_of

    total, layers = record.total, record.totals(layer_of)
    said = f"{out}: {record.label}, {total.tensors} tensors, norm {total.norm:.4g}"
    if record.rank:
        worst = min(layers, key=lambda layer: layers[layer].kept)
        said += (
            f"; rank {record.rank} keeps {total.kept:.1%} of its energy, "
            f"least in {worst}: {layers[worst].kept:.1%}"
        )
    elif record.storage == "bfloat16":
        worst = max(record.tensors, key=lambda name: record.tensors[name].loss)
        said += (
            f"; rounding lost {total.loss:.2%} of it, "
            f"most in {worst}: {record.tensors[worst].loss:.2%}"
        )
    return said


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A GGUF file of llama.cpp, or a directory with pytorch_model.bin, its shards and "
            "index, or adapter_model.bin.",
        ),
    ],
    out: options.OutDir,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(
            "--dtype",
            help="How to store what was quantised. float32, the default, is exact; the others are "
            "half as large.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", help="The model of an adapter in GGUF, which does not name it."),
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Rewrite weights that other verbs do not open: a GGUF file or pickles (.bin), as safetensors.

    A model in GGUF becomes a checkpoint with its tokenizer and chat template, dequantised; an
    adapter becomes one of PEFT. Nothing in a pickle is run, and a pickle that holds more than
    tensors is refused.
    """
    file = expanded(source)
    if file.suffix.lower() == ".gguf" or file.is_file():
        manifest = _convert_gguf(file, out, dtype, base, force=force)
    elif dtype or base:
        raise RecipeError(f"{source}: --dtype and --base are for GGUF files; pickles keep theirs")
    else:
        from personality_vector.checkpoint.pickles import convert

        manifest = convert(source, out, force=force)
    result = {
        "out": str(out),
        **{key: manifest[key] for key in manifest if key not in ("files", "digests")},
    }
    left_out = f", without {some(result['left_out'])}" if result["left_out"] else ""
    options.show(
        result,
        as_json=as_json,
        text=lambda: f"{out}: {result['tensors']} tensors of {source}{left_out}",
    )


def _convert_gguf(
    file: Path, out: Path, dtype: str | None, base: str | None, *, force: bool
) -> dict[str, Any]:
    from personality_vector.checkpoint.dequantising import dequantise
    from personality_vector.checkpoint.gguf_file import GgufFile

    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    read = GgufFile.open(file)
    if read.is_adapter:
        from personality_vector.delta.gguf_adapters import convert_adapter

        if base is None:
            raise RecipeError(f"{file}: is an adapter; name the model that it adapts with --base")
        return convert_adapter(
            read, pv.Checkpoint.open(base), out, dtype=dtype or "float32", force=force
        )
    if base is not None:
        raise RecipeError(f"{file}: is a model, not an adapter; leave out --base")
    return dequantise(read, out, dtype=dtype or "float32", force=force)
