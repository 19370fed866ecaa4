"""``pvec steer between``: what fine-tuning did to the activations, as a steering vector."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from personality_vector.cli import options


def between(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Directory, Hub id or builtin:demo.")],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="A fine-tuned checkpoint of BASE.")],
    prompts: options.Prompts,
    out: Annotated[Path, typer.Option("--out", help="Directory to write.")],
    pooling: Annotated[
        Literal["prompt_last", "prompt_mean"], typer.Option(help="Which tokens are averaged.")
    ] = "prompt_last",
    layer: Annotated[
        list[int],
        typer.Option("--layer", help="0-based block, -1 the last; repeatable. Default: all."),
    ] = [],
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
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
