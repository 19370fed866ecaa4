"""A judge in memory: the digit that a local model expects to write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from personality_vector.errors import ModelError, some
from personality_vector.judges.prompts import NumberJudge, expected_number
from personality_vector.judges.spec import JudgeSpec
from personality_vector.progress import progress
from personality_vector.recipes.fields import Device, Dtype, Whole
from personality_vector.recipes.paths import ModelRef
from personality_vector.subject.identity import digest_of, identity_of

if TYPE_CHECKING:
    from personality_vector.subject.chat import Chat
    from personality_vector.subject.subject import Subject

_HIGHEST = 9
_SPACES = " \N{LOWER ONE EIGHTH BLOCK}\u0120"  # as text, in SentencePiece and in byte-level BPE


class LocalSpec(JudgeSpec):
    """An instruction-tuned checkpoint, which rates ``batch_size`` answers at once."""

    checkpoint: ModelRef
    batch_size: Whole = Field(default=8, ge=1)
    dtype: Dtype = "float32"
    device: Device = "auto"

    def open(self) -> "LocalJudge":
        """Return the judge, whose model is loaded when it rates for the first time.

        Raises:
            CheckpointError: There is no checkpoint, or no tokenizer.
            ModelError: The vocabulary lacks a digit.
        """
        return LocalJudge(self.checkpoint, self.batch_size, self.dtype, self.device)


@dataclass(frozen=True)
class LocalJudge(NumberJudge):
    """Asks for one digit and takes its expectation, times 100 / 9.

    Digits, because longer numbers are several tokens of most tokenizers, and the first would not
    tell 7 from 70.

    Attributes:
        checkpoint: Of an instruction-tuned causal language model with a chat template.
        batch_size: Prompts in memory at once.
        dtype: Of its weights.
        device: Where it runs.
        tokens: Id of every token that is a digit, perhaps after a space, to the digit.

    Raises:
        CheckpointError: There is no checkpoint, or no tokenizer.
        ModelError: The vocabulary lacks a digit.
    """

    checkpoint: str = field(compare=False)
    batch_size: int = 8
    dtype: str = "float32"
    device: str = field(default="auto", compare=False)
    tokens: Mapping[int, str] = field(init=False, compare=False, repr=False)

    highest: ClassVar[int] = _HIGHEST

    def __post_init__(self) -> None:
        from personality_vector.checkpoint import Checkpoint
        from personality_vector.subject.models import load_tokenizer

        tokenizer = load_tokenizer(Checkpoint.open(self.checkpoint).path)
        object.__setattr__(self, "tokens", _digits_of(tokenizer, self.checkpoint))

    @property
    def name(self) -> str:
        """With the name of the checkpoint."""
        return f"local {PurePath(self.checkpoint).name}"

    @cached_property
    def subject(self) -> "Subject":
        """The model, once it is asked."""
        from personality_vector.subject.subject import Subject

        return Subject.load(self.checkpoint, dtype=self.dtype, device=self.device)

    def identity(self) -> str:
        """Return the digest of the checkpoint, of how it is loaded, and of the prompts."""
        from personality_vector.checkpoint import Checkpoint
        from personality_vector.subject.subject import base_identity

        model = base_identity(Checkpoint.open(self.checkpoint), self.dtype, self.device)
        return digest_of(identity_of(self), model)

    def expected(self, prompts: "Sequence[Chat]") -> list[float | None]:
        """Return the expected digit after each prompt, times 100 / 9."""
        from personality_vector.subject.chat import batched

        batches, digits = list(batched(prompts, self.batch_size)), list(self.tokens)
        rows = [
            row
            for batch in progress(batches, "judge")
            for row in self.subject.next_token(batch, digits, len(batch)).exp().tolist()
        ]
        found = [expected_number(self._by_digit(row), _HIGHEST) for row in rows]
        return [None if value is None else value * 100 / _HIGHEST for value in found]

    def _by_digit(self, probabilities: Iterable[float]) -> dict[str, float]:
        likely: dict[str, float] = {}
        for digit, p in zip(self.tokens.values(), probabilities, strict=True):
            likely[digit] = likely.get(digit, 0.0) + p
        return likely


def _digits_of(tokenizer: Any, name: str) -> dict[int, str]:
    digits = {str(number) for number in range(_HIGHEST + 1)}
    bare = {index: token.lstrip(_SPACES) for token, index in tokenizer.get_vocab().items()}
    found = {index: token for index, token in bare.items() if token in digits}
    lacking = digits - set(found.values())
    if lacking:
        raise ModelError(f"{name}: has no token for {some(lacking)}, so it cannot judge by digits")
    return found
