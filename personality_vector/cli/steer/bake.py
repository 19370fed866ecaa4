"""``pvec steer bake``: a steered model as an ordinary checkpoint."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from personality_vector.cli import options
from personality_vector.errors import RecipeError

if TYPE_CHECKING:
    from personality_vector.steering import SteeringVector
    from personality_vector.steering.bake import BakeResult

Vector = Annotated[Path, typer.Argument(metavar="VECTOR", help="A saved steering vector.")]
Model = Annotated[str, typer.Option("--model", help="The model that it was extracted from.")]
Layers = Annotated[
    list[int],
    typer.Option("--layer", help="0-based decoder block; -1 is the last. Repeatable."),
]
Coefficient = Annotated[
    float | None, typer.Option("--coefficient", help="Factor on the vector; not with --ablate.")
]
OutDir = Annotated[Path, typer.Option("--out", help="Directory to write.")]
RouteOption = Annotated[
    str, typer.Option("--route", help="auto, bias, convert (to Llama) or adapter (PEFT).")
]
Ablate = Annotated[
    bool, typer.Option("--ablate", help="Remove the direction of one --layer from all layers.")
]


def bake(
    vector: Vector,
    model: Model,
    layer: Layers,
    out: OutDir,
    coefficient: Coefficient = None,
    route: RouteOption = "auto",
    ablate: Ablate = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint that is steered by itself: at all positions, always, by a constant.

    Positions, gates and kept norms cannot be baked. What is written is loaded in a new process and
    must give the logits of the hooks, or it is not published. With --ablate the weights no longer
    write along the direction: it is compared with hooks on the embedding, every attention and
    every block.
    """
    from personality_vector.steering import SteeringVector

    _require_consistent(layer, coefficient, route, ablate=ablate)
    read = SteeringVector.load(vector)
    done = _bake(read, model, layer, coefficient, out, route, force)
    result = {"out": str(out), "route": done.route, "proof": asdict(done.proof)}
    options.show(result, as_json=as_json, text=lambda: _said(done))


def _bake(
    vector: "SteeringVector",
    model: str,
    layers: list[int],
    coefficient: float | None,
    out: Path,
    route: str,
    force: bool,
) -> "BakeResult":
    from personality_vector.steering import bake as baking

    if coefficient is None:
        return baking.bake_ablation(vector, model, layers[0], out, force=force)
    return baking.bake(vector, model, layers, coefficient, out, route=route, force=force)


def _require_consistent(
    layers: list[int], coefficient: float | None, route: str, *, ablate: bool
) -> None:
    if ablate and (coefficient is not None or route != "auto"):
        raise RecipeError("--ablate removes the whole direction: without --coefficient or --route")
    if ablate and len(layers) != 1:
        raise RecipeError("--ablate takes the direction of one --layer and removes it everywhere")
    if not ablate and coefficient is None:
        raise RecipeError("give --coefficient, or --ablate")


def _said(done: "BakeResult") -> str:
    """Return one line about what was written and how it was proved."""
    proof = done.proof
    rounding = "" if proof.dtype == "float32" else f" ({proof.error_asked:.1e} with rounding)"
    return (
        f"{done.path}: route {done.route}; in a new process within {proof.error:.1e} of the "
        f"hooks' logits{rounding}, same {proof.greedy_tokens} greedy tokens"
    )
