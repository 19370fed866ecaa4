"""Other ways to a steering vector than from chats: from plain texts, and from prompts to create."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from personality_vector.errors import DataError
from personality_vector.recipes.fields import Words
from personality_vector.steering.activations import Pooling, TextPooling, text_reader
from personality_vector.steering.estimators import EstimatorName, contrast
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject.chat import question


def from_texts(  # noqa: PLR0913  (two sides and how to read them, as SteeringVector.extract)
    model: nn.Module,
    tokenizer: Any,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    pooling: TextPooling = "mean",
    estimator: EstimatorName = "mean_difference",
    batch_size: int = 16,
    label: str = "",
) -> SteeringVector:
    """Return the direction from the negative to the positive plain texts.

    Otherwise as :meth:`SteeringVector.extract`; no chat template is needed. For ``pca``, text
    ``i`` of the two sides is a pair. The pooling is stored as ``text_mean`` or ``text_last``.

    Raises:
        DataError: A side or a text is empty, the two sides are equal, or ``pca`` gets no pairs.
        NonFiniteError: The model's activations are NaN or infinite.
        ModelError: The model has no such layer.
    """
    reader = text_reader(model, tokenizer, layers, pooling, batch_size)
    return SteeringVector(
        contrast(reader, positive, negative, estimator),
        model="",
        pole=None,
        label=label,
        pooling=f"text_{pooling}",
        counts=(len(positive), len(negative)),
        estimator=estimator,
    )


class CreativityPair(BaseModel):
    """A prompt that asks for something creative, and its uncreative counterpart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    creative: Words
    uncreative: Words


def read_creativity_pairs(file: Path) -> list[CreativityPair]:
    """Return the pairs of a JSONL file: rows ``{creative, uncreative}``, in file order.

    Raises:
        DataError: The file cannot be read, holds no pair, or a line is none (named by number).
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    pairs = [_pair(line, f"{file} line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise DataError(f"{file}: holds no pair of a creative and an uncreative prompt")
    return pairs


def creativity_direction(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[CreativityPair],
    *,
    layers: Sequence[int] | None = None,
    pooling: Pooling = "prompt_last",
    batch_size: int = 16,
) -> SteeringVector:
    """Return the direction of creativity: of unit length, so a coefficient is in activation units.

    Each prompt is read as the message of a user; no reply is generated.

    Raises:
        DataError: There are no pairs, the two sides are equal, or the pooling needs a response.
        NonFiniteError: The model's activations are NaN or infinite.
        ModelError: The model has no such layer.

    Source:
        Olson et al. 2024, arXiv:2412.06060: ``a = unit(mean h_l(creative) - mean h_l(uncreative))``
        with ``h_l`` the output of layer 8 of Llama-3-8B, over 500 story prompts and versions of
        them that were made uncreative; ``h_8 + 3 a``. Not verified: over which tokens they pool
        and how they count layers, for which there is no public code. The last token of the prompt
        is our choice, because what is generated next depends on it; ``prompt_mean`` is the other.
    """
    sides = (
        [question(pair.creative) for pair in pairs],
        [question(pair.uncreative) for pair in pairs],
    )
    vector = SteeringVector.extract(
        model, tokenizer, *sides, layers=layers, pooling=pooling, batch_size=batch_size
    )
    return replace(vector.unit(), label="creativity")


def _pair(line: str, place: str) -> CreativityPair:
    try:
        return CreativityPair.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"]) or "the line"
        raise DataError(
            f"{place}: {where}: {first['msg']}; a row is one object {{creative, uncreative}}"
        ) from error
