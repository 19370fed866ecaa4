"""``pvec convert``: pickled weights become safetensors."""

from pathlib import Path
from typing import Annotated

import typer

from personality_vector.cli import options


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Directory with pytorch_model.bin.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")],
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a checkpoint of pickled weights (.bin) again as safetensors.

    Nothing in a pickle is run; one that holds more than tensors is refused.
    """
    from personality_vector.checkpoint.pickles import convert

    manifest = convert(source, out, force=force)
    result = {"out": str(out), **{key: manifest[key] for key in manifest if key != "files"}}
    left_out = f", without {', '.join(result['left_out'])}" if result["left_out"] else ""
    options.show(
        result,
        as_json=as_json,
        text=lambda: f"{out}: {result['tensors']} tensors of {source}{left_out}",
    )
