"""``pvec steer bake`` and ``export-gguf``: steering for programs that have no hooks."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.errors import RecipeError

Vector = Annotated[Path, typer.Argument(metavar="VECTOR", help="A saved steering vector.")]


def bake(
    vector: Vector,
    model: Annotated[str, typer.Option("--model", help="The model that it was extracted from.")],
    layer: options.Layers,
    out: options.OutDir,
    coefficient: Annotated[
        float | None, typer.Option("--coefficient", help="Factor on the vector; not with --ablate.")
    ] = None,
    route: Annotated[
        str, typer.Option("--route", help="auto, bias, convert (to Llama) or adapter (PEFT).")
    ] = "auto",
    ablate: Annotated[
        bool, typer.Option("--ablate", help="Remove the direction of one --layer from every layer.")
    ] = False,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint that steers itself: at all positions, always, by a constant.

    Positions, gates and kept norms cannot be baked. The result is loaded in a new process and is
    published only if it gives the logits of the hooks. With --ablate no weight writes along the
    direction any more; the result is compared with hooks on the embedding, every attention and
    every block.
    """
    _require_consistent(layer, coefficient, route, ablate=ablate)
    from personality_vector.steering.bake import bake_ablation

    read = pv.SteeringVector.load(vector)

    def plan() -> dict[str, Any]:
        how = _fitting(read, model, layer, "ablate" if ablate else route)
        return {"vector": read.label, **how, "coefficient": coefficient}

    if options.plan_only(plan, out, dry_run=dry_run, force=force, as_json=as_json, kind="bake"):
        return
    if coefficient is None:
        done = bake_ablation(read, model, layer[0], out, force=force)
    else:
        done = pv.bake(read, model, layer, coefficient, out, route=route, force=force)
    proof = done.proof
    rounding = "" if proof.dtype == "float32" else f" ({proof.error_asked:.1e} with rounding)"
    options.show(
        {"out": str(out), "route": done.route, "proof": asdict(proof)},
        as_json=as_json,
        text=lambda: (
            f"{done.path}: route {done.route}; in a new process within {proof.error:.1e} of the "
            f"hooks' logits{rounding}, same {proof.greedy_tokens} greedy tokens"
        ),
    )


def _require_consistent(
    layer: list[int], coefficient: float | None, route: str, *, ablate: bool
) -> None:
    if ablate and (coefficient is not None or route != "auto"):
        raise RecipeError(
            "--ablate removes the whole direction: use it without --coefficient and --route"
        )
    if ablate and len(layer) != 1:
        raise RecipeError("--ablate takes the direction of one --layer and removes it everywhere")
    if not ablate and coefficient is None:
        raise RecipeError("give --coefficient, or --ablate")


def _fitting(
    vector: "pv.SteeringVector", model: str, layers: list[int], route: str
) -> dict[str, Any]:
    """Check that a vector fits a model, and return the model, the layers and the route."""
    from personality_vector.steering.bake import route_for
    from personality_vector.steering.bake.base import read_config
    from personality_vector.steering.fit import require_made_from, resolved

    checkpoint = pv.Checkpoint.open(model)
    config = read_config(checkpoint)
    name = route_for(config, route).name
    require_made_from(vector.label, vector.model, checkpoint)
    found = resolved(layers, config.num_hidden_layers)
    for layer in found:
        vector.norm(layer)  # refuses a layer that the vector has no direction for
    return {"model": str(checkpoint.fingerprint), "layers": found, "route": name}


def export_gguf(
    vector: Vector,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")],
    layer: Annotated[
        list[int],
        typer.Option(
            "--layer", help="0-based decoder block, not 0; repeatable. Default: all of VECTOR."
        ),
    ] = [],
    coefficient: Annotated[
        float, typer.Option("--coefficient", help="Factor on the vector.")
    ] = 1.0,
    model_hint: Annotated[
        str,
        typer.Option("--model-hint", help="Name of the architecture in llama.cpp, such as llama."),
    ] = "",
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a control vector for llama.cpp, which steers all positions but cannot steer layer 0."""
    from personality_vector.steering.storage import export_gguf as export

    read = pv.SteeringVector.load(vector)
    layers = layer or list(read.layers)
    export(read, out, layers=layers, coefficient=coefficient, model_hint=model_hint, force=force)
    result = {"out": str(out), "layers": layers, "coefficient": coefficient}
    options.show(
        result, as_json=as_json, text=lambda: f"{out}: {len(layers)} directions for llama.cpp"
    )
