"""``pvec steer between`` and ``fuse``: steering vectors without a recipe."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.errors import RecipeError
from personality_vector.recipes.reading import override

if TYPE_CHECKING:
    from personality_vector.merging.fusion import Fused

Scale = Annotated[
    Literal["raw", "unit", "equal"],
    typer.Option(
        "--scale",
        help="raw keeps the lengths, so the longest vector dominates; unit gives each norm 1; "
        "equal gives each the mean norm.",
    ),
]


def between(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Directory, Hub id or builtin:NAME.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="A fine-tuned checkpoint of BASE.")],
    *,
    prompts: options.Prompts,
    layer: options.Layers = [],
    pooling: Annotated[
        Literal["prompt_last", "prompt_mean"],
        typer.Option("--pooling", help="Tokens whose activations are averaged."),
    ] = "prompt_last",
    settings: options.ChatSettings = [],
    batch_size: options.BatchSize = 16,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    out: options.OutDir,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Save the mean activation of TUNED minus that of BASE over the same prompts.

    This steering vector corresponds to the weight vector TUNED - BASE, and it belongs to BASE.
    Layers before the first tuned one do not move; leave them out with --layer.
    """
    from personality_vector.data.chats import read_prompts
    from personality_vector.steering import block_numbers
    from personality_vector.steering.fit import require_same_shape
    from personality_vector.subject.chat import question
    from personality_vector.subject.config import read_config

    template = options.template(settings)
    chats = [question(text) for text in read_prompts(prompts)]
    (start, place), (end, _) = (options.opened(model, device) for model in (base, tuned))
    require_same_shape(read_config(start.path), read_config(end.path))
    layers = block_numbers(layer, start) if layer else ()
    if options.plan_only(
        lambda: {
            "base": str(start.fingerprint),
            "tuned": str(end.fingerprint),
            "prompts": len(chats),
            "layers": list(layers) or layer or "all",
            "pooling": pooling,
        },
        *(out, dry_run, force, as_json),
    ):
        return
    plain, moved = (pv.load_model(each.path, dtype=dtype, device=place) for each in (start, end))
    vector = pv.SteeringVector.between(
        *(plain, moved, pv.load_tokenizer(start.path, template), chats),
        layers=layer or None,
        pooling=pooling,
        batch_size=batch_size,
    )
    options.save_vector(vector, start, out, force=force, as_json=as_json)


def fuse(
    vectors: Annotated[
        list[Path], typer.Argument(metavar="V1 V2 ...", help="Steering vectors of one model.")
    ],
    *,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="1,1,2", help="Default: 1 for each vector.")
    ] = None,
    scale: Scale = "raw",
    method: Annotated[
        str, typer.Option("--method", help="mean, or a method of a merge, such as ties.")
    ] = "mean",
    option: options.MethodOption = [],
    label: Annotated[str, typer.Option("--label", help="Default: the formula.")] = "",
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Print the shares of each layer as well.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of random numbers.")] = 0,
    out: options.OutDir,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Fuse steering vectors into one and print the share of each."""
    given: dict[str, Any] = {"scale": scale, "method": method, "seed": seed, "label": label}
    for setting in option:
        override(given, f"options.{setting}")
    numbers = _numbers(weights) if weights is not None else None
    fused = pv.fuse([pv.SteeringVector.load(path) for path in vectors], numbers, **given)
    vector = fused.vector
    norms = {layer: vector.norm(layer) for layer in vector.layers}
    result = {
        "out": str(out),
        "label": vector.label,
        "vectors": [str(path) for path in vectors],
        "norms": norms,
        "shares": [asdict(share) for share in fused.shares],
    }
    if options.plan_only(lambda: result, out, dry_run, force, as_json):
        return
    vector.save(out, force=force)
    lengths = ", ".join(f"{norm:.3g}" for norm in norms.values())
    options.show(
        result,
        as_json=as_json,
        text=lambda: f"{out}: {vector.label}, {len(norms)} layers, norm {lengths}",
    )
    if not as_json:
        _print_shares(fused, per_layer=per_layer)


def _print_shares(fused: "Fused[pv.SteeringVector]", *, per_layer: bool) -> None:
    import pandas as pd

    from personality_vector.report.tables import print_frame

    columns, count = ["layer", "weight", "norm", "share", "cosine"], len(fused.overall)
    shares = pd.DataFrame([asdict(share) for share in fused.shares], columns=columns)
    # Numbered, since two may have one label.
    names = [f"{index % count + 1} {share.label}" for index, share in enumerate(fused.shares)]
    shares.insert(0, "vector", names)
    title, is_whole = "share of the fused vector", shares["layer"].isna()
    print_frame(title, shares[is_whole].drop(columns="layer"))
    if per_layer:
        print_frame(f"{title}, by layer", shares[~is_whole].astype({"layer": int}))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(
            f"--weights {text}: give numbers separated by commas, such as 1,1,2"
        ) from error
