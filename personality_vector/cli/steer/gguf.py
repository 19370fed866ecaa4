"""``pvec steer export-gguf``: a steering vector for llama.cpp."""

from pathlib import Path
from typing import Annotated

import typer

from personality_vector.cli import options

Vector = Annotated[Path, typer.Argument(metavar="VECTOR", help="A saved steering vector.")]
OutFile = Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")]
Layers = Annotated[
    list[int],
    typer.Option("--layer", help="0-based block, not 0; repeatable. Default: all of VECTOR."),
]
Coefficient = Annotated[float, typer.Option("--coefficient", help="Factor on the vector.")]
Hint = Annotated[
    str, typer.Option("--model-hint", help="Architecture by llama.cpp's name, such as llama.")
]


def export_gguf(
    vector: Vector,
    out: OutFile,
    layer: Layers = [],
    coefficient: Coefficient = 1.0,
    model_hint: Hint = "",
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a control vector for llama.cpp, which steers all positions; it has no layer 0."""
    from personality_vector.steering import SteeringVector
    from personality_vector.steering.storage import export_gguf as export

    read = SteeringVector.load(vector)
    layers = layer or list(read.layers)
    export(read, out, layers=layers, coefficient=coefficient, model_hint=model_hint, force=force)
    result = {"out": str(out), "layers": layers, "coefficient": coefficient}
    options.show(
        result, as_json=as_json, text=lambda: f"{out}: {len(layers)} directions for llama.cpp"
    )
