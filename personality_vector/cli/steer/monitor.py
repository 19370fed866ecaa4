"""``pvec steer monitor``: how far a model is along a vector before and after it replies."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality_vector.cli import options
from personality_vector.errors import BaseMismatchError, DataError, RecipeError

if TYPE_CHECKING:
    from personality_vector.chat import Chat
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.steering import SteeringVector

_SHOWN = 48
"""Characters of a text in the table."""


def monitor(
    vector: Annotated[Path, typer.Argument(metavar="VECTOR", help="A steering vector.")],
    model: Annotated[str, typer.Option("--model", help="Directory, Hub id or builtin:demo.")],
    prompts: Annotated[
        Path, typer.Option("--prompts", metavar="FILE", help="A text file, a prompt on each line.")
    ],
    layer: Annotated[
        int | None,
        typer.Option("--layer", help="0-based block, -1 the last; needed if VECTOR has several."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message.")] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Longest reply.")
    ] = 64,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 16,
    another_model: Annotated[
        bool,
        typer.Option("--another-model", help="VECTOR is of another model, such as its base."),
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Print the projection of each prompt, before generation, and of a greedy reply."""
    texts = _read_prompts(prompts)
    from personality_vector.chat import question
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.models import DTYPES, load_model, load_tokenizer, resolve_device
    from personality_vector.steering import SteeringVector

    if dtype not in DTYPES:
        raise RecipeError(f"--dtype {dtype}: write {', '.join(DTYPES)}")
    found, checkpoint = SteeringVector.load(vector), Checkpoint.open(model)
    place = _layer(found, layer)
    if not another_model:
        _require_same_model(found, checkpoint)
    loaded = load_model(checkpoint.path, dtype=dtype, device=resolve_device(device))
    tokenizer = load_tokenizer(checkpoint.path)
    chats = [question(text, system=system) for text in texts]
    rows = _measured(loaded, tokenizer, chats, (found, place), (max_new_tokens, batch_size))
    if as_json:
        result = {"vector": found.label, "layer": place, "model": str(checkpoint.path)}
        options.show({**result, "prompts": rows}, as_json=True, text=str)
    else:
        _print(f"projection on {found.label}, layer {place}", rows)


def _measured(
    model: Any,
    tokenizer: Any,
    chats: "Sequence[Chat]",
    along: "tuple[SteeringVector, int]",
    sizes: tuple[int, int],
) -> list[dict[str, Any]]:
    """Return a row of each chat: what was asked and said, and the two projections."""
    from personality_vector.chat import Generation, answered, generate_replies
    from personality_vector.steering.monitor import projections

    longest, batch_size = sizes
    before = projections(model, tokenizer, chats, *along, "prompt_last", batch_size)
    greedy = Generation(max_new_tokens=longest, temperature=0.0, batch_size=batch_size)
    replies = generate_replies(model, tokenizer, chats, greedy, seed=0)
    said = [i for i, reply in enumerate(replies) if reply]
    replied = [answered(chats[i], replies[i]) for i in said]
    after = dict.fromkeys(range(len(chats)))
    if said:
        found = projections(model, tokenizer, replied, *along, "response_mean", batch_size)
        after |= dict(zip(said, found.tolist(), strict=True))
    return [
        {"prompt": chat[-1]["content"], "before": b, "response": after[i], "reply": replies[i]}
        for i, (chat, b) in enumerate(zip(chats, before.tolist(), strict=True))
    ]


def _read_prompts(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{file}: has no prompt; write one on each line")
    return texts


def _layer(vector: "SteeringVector", layer: int | None) -> int:
    if layer is not None:
        return layer
    if len(vector.layers) > 1:
        raise RecipeError(
            f"{vector.label} has directions for layers {list(vector.layers)}; choose one by --layer"
        )
    return vector.layers[0]


def _require_same_model(vector: "SteeringVector", checkpoint: "Checkpoint") -> None:
    if vector.model not in ("", checkpoint.fingerprint.digest):
        raise BaseMismatchError(
            f"{vector.label} is of model {vector.model[:12]}, {checkpoint.path} is "
            f"{checkpoint.fingerprint}; if one is fine-tuned from the other, add --another-model"
        )


def _print(title: str, rows: Sequence[dict[str, Any]]) -> None:
    import pandas as pd

    from personality_vector.tables import print_frame

    frame = pd.DataFrame(rows).astype({"before": float, "response": float})
    for column in ("prompt", "reply"):
        frame[column] = [_short(text) for text in frame[column]]
    print_frame(title, frame)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}..."
