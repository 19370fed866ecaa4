"""``pvec diff``: save fine-tuned minus base."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from personality_vector.cli import options


def diff(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Directory, Hub id or builtin:demo.")],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="A fine-tune of BASE, or an adapter.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")],
    pole: Annotated[str | None, typer.Option("--pole", metavar="TRAIT:LEVEL")] = None,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option("--dtype")] = "float32",
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Save the delta TUNED - BASE."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.delta import Delta
    from personality_vector.delta.lora import is_adapter
    from personality_vector.delta.provenance import (
        require_not_swapped,
        require_trained_on,
        trained_pole,
    )
    from personality_vector.delta.storage import saved_norm

    start, pole = Checkpoint.open(base), pole or trained_pole(Path(tuned))
    if is_adapter(Path(tuned)):
        delta = Delta.from_lora(tuned, start, pole=pole)
    else:
        end = Checkpoint.open(tuned)
        require_not_swapped(start, end)
        require_trained_on(end.path, start)
        delta = Delta.between(start, end, pole=pole)
    delta.save(out, dtype=dtype, force=force)
    result = {
        "out": str(out),
        "pole": str(delta.pole) if delta.pole else None,
        "tensors": len(delta.names),
        "norm": saved_norm(out),
        "base": delta.base.digest,
        "dtype": dtype,
    }
    options.show(
        result,
        as_json=as_json,
        text=lambda: f"{out}: {delta.label}, {len(delta.names)} tensors, norm {result['norm']:.4g}",
    )
