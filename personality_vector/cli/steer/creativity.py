"""``pvec steer creativity``: the direction from uncreative to creative prompts."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from personality_vector.cli import options
from personality_vector.lab import BUILTIN, builtin

PAIRS = f"{BUILTIN}training/steering/creativity.jsonl"


def creativity(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Directory, Hub id or builtin:demo.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")],
    pairs: Annotated[
        str, typer.Option("--pairs", metavar="FILE", help="JSONL rows {creative, uncreative}.")
    ] = PAIRS,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    dtype: options.Dtype = "float32",
    device: options.Device = "auto",
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Save the creativity direction of Olson et al., of unit length at every layer."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.elicitation.extract import (
        creativity_direction,
        read_creativity_pairs,
    )
    from personality_vector.subject.models import load_model, load_tokenizer, resolve_device

    file = builtin(pairs) if pairs.startswith(BUILTIN) else Path(pairs)
    read = read_creativity_pairs(file)
    checkpoint = Checkpoint.open(model)
    loaded = load_model(checkpoint.path, dtype=dtype, device=resolve_device(device))
    tokenizer = load_tokenizer(checkpoint.path)
    vector = creativity_direction(loaded, tokenizer, read, batch_size=batch_size)
    options.save_vector(
        replace(vector, model=checkpoint.fingerprint.digest), out, force=force, as_json=as_json
    )
