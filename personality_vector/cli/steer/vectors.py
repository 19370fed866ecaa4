"""``pvec steer between``, ``creativity`` and ``fuse``: steering vectors without a recipe."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from personality_vector.cli import options
from personality_vector.errors import RecipeError
from personality_vector.lab import BUILTIN, builtin
from personality_vector.recipes.reading import override

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from personality_vector.merging.fusion import Fused, Share
    from personality_vector.steering import SteeringVector


def between(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Directory, Hub id or builtin:demo.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="A fine-tuned checkpoint of BASE.")],
    prompts: options.Prompts,
    out: options.OutDir,
    pooling: Annotated[
        Literal["prompt_last", "prompt_mean"], typer.Option(help="Which tokens are averaged.")
    ] = "prompt_last",
    layer: Annotated[
        list[int],
        typer.Option("--layer", help="0-based block, -1 the last; repeatable. Default: all."),
    ] = [],
    batch_size: options.BatchSize = 16,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Save the mean activation of TUNED minus that of BASE over the same prompts.

    It is the steering vector that corresponds to the weight vector TUNED - BASE, and it belongs to
    BASE. Layers before the first tuned one do not move; leave them out by --layer.
    """
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.data.chats import read_prompts
    from personality_vector.steering import SteeringVector
    from personality_vector.subject.chat import question
    from personality_vector.subject.models import load_model, load_tokenizer, resolve_device

    chats = [question(text) for text in read_prompts(prompts)]
    ends = [Checkpoint.open(base), Checkpoint.open(tuned)]
    place = resolve_device(device)
    plain, moved = (load_model(end.path, dtype=dtype, device=place) for end in ends)
    vector = SteeringVector.between(
        plain,
        moved,
        load_tokenizer(ends[0].path),
        chats,
        layers=layer or None,
        pooling=pooling,
        batch_size=batch_size,
    )
    options.save_vector(
        replace(vector, model=ends[0].fingerprint.digest), out, force=force, as_json=as_json
    )


def creativity(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Directory, Hub id or builtin:demo.")
    ],
    out: options.OutDir,
    pairs: Annotated[
        str, typer.Option("--pairs", metavar="FILE", help="JSONL rows {creative, uncreative}.")
    ] = f"{BUILTIN}training/steering/creativity.jsonl",
    batch_size: options.BatchSize = 16,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Save the creativity direction of Olson et al., of unit length at every layer."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.elicitation.extract import creativity_direction, read_creativity_pairs
    from personality_vector.subject.subject import Subject

    read = read_creativity_pairs(builtin(pairs) if pairs.startswith(BUILTIN) else Path(pairs))
    checkpoint = Checkpoint.open(model)
    subject = Subject.load(checkpoint, dtype=dtype, device=device)
    vector = creativity_direction(subject.model, subject.tokenizer, read, batch_size=batch_size)
    options.save_vector(
        replace(vector, model=checkpoint.fingerprint.digest), out, force=force, as_json=as_json
    )


def fuse(
    vectors: Annotated[
        list[Path], typer.Argument(metavar="V1 V2 ...", help="Steering vectors of one model.")
    ],
    out: options.OutDir,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="1,1,2", help="One for each; by default 1.")
    ] = None,
    scale: Annotated[
        Literal["raw", "unit", "equal"],
        typer.Option(help="raw: the longest dominates; unit: norm 1; equal: the mean norm."),
    ] = "raw",
    method: Annotated[
        str, typer.Option("--method", help="mean, or a method of a merge, such as ties.")
    ] = "mean",
    option: Annotated[
        list[str], typer.Option("--option", metavar="NAME=VALUE", help="Of --method; repeatable.")
    ] = [],
    seed: Annotated[int, typer.Option("--seed", help="Of random masks.")] = 0,
    label: Annotated[str, typer.Option("--label", help="Default: the formula.")] = "",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also print the shares layer by layer.")
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fuse steering vectors into one and print the share of each."""
    given: dict[str, Any] = {"options": {}}
    for setting in option:
        override(given, f"options.{setting}")
    numbers = _numbers(weights) if weights is not None else None
    from personality_vector.merging.fusion import fuse
    from personality_vector.steering import SteeringVector

    fused = fuse(
        [SteeringVector.load(path) for path in vectors],
        numbers,
        scale=scale,
        method=method,
        options=given["options"],
        seed=seed,
        label=label,
    )
    fused.vector.save(out, force=force)
    if as_json:
        options.show(_result(fused, vectors, out), as_json=True, text=str)
    else:
        _print(fused, out, per_layer=per_layer)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(
            f"--weights {text}: give numbers with commas between, such as 1,1,2"
        ) from error
    if not all(map(math.isfinite, numbers)):
        raise RecipeError(f"--weights {text}: weights must be finite, such as 1,1,2")
    return numbers


def _result(fused: "Fused[SteeringVector]", vectors: "Sequence[Path]", out: Path) -> dict[str, Any]:
    vector = fused.vector
    return {
        "out": str(out),
        "label": vector.label,
        "vectors": [str(path) for path in vectors],
        "norms": {layer: vector.norm(layer) for layer in vector.layers},
        "shares": [asdict(share) for share in fused.shares],
    }


def _print(fused: "Fused[SteeringVector]", out: Path, *, per_layer: bool) -> None:
    from personality_vector.report.tables import print_frame

    vector = fused.vector
    norms = ", ".join(f"{vector.norm(layer):.3g}" for layer in vector.layers)
    text = f"{out}: {vector.label}, {len(vector.layers)} layers, norm {norms}"
    typer.echo(text)
    count = len(fused.overall)
    print_frame("share of the fused vector", _frame(fused.overall, count).drop(columns="layer"))
    if per_layer:
        layers = [share for share in fused.shares if share.layer is not None]
        print_frame("share of the fused vector, by layer", _frame(layers, count))


def _frame(shares: "Sequence[Share]", vectors: int) -> "pd.DataFrame":
    """Return a row of each share; vectors are numbered, since two may have one label."""
    import pandas as pd

    columns = ("layer", "weight", "norm", "share", "cosine")
    rows = [
        [f"{index % vectors + 1} {share.label}", *(getattr(share, column) for column in columns)]
        for index, share in enumerate(shares)
    ]
    return pd.DataFrame(rows, columns=["vector", *columns])
