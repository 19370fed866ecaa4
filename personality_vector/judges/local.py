"""A judge in memory: the digit that a local model expects to write."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from personality_vector.errors import ModelError, some
from personality_vector.judges.prompts import VERSION, expected_number, prompt_for, score_of
from personality_vector.judges.spec import JudgeSpec
from personality_vector.progress import progress
from personality_vector.recipes.schema import Device, Dtype, ModelRef, Whole
from personality_vector.subject.identity import digest_of, identity_of
from personality_vector.subject.protocols import Answer, Rubric, Score

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
class LocalJudge:
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

    scale: ClassVar[tuple[float, float]] = (0.0, 100.0)
    version: ClassVar[str] = VERSION

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

    def prepare(self, _base: "Subject", /) -> "LocalJudge":
        """Return it as it is."""
        return self

    def __call__(self, rubric: Rubric, answers: Sequence[Answer], /) -> list[Score]:
        """Return one score for each answer, in order.

        Raises:
            DataError: The chat template refuses a prompt.
            ModelError: The model cannot be loaded.
        """
        from personality_vector.subject.chat import batched

        prompts = [prompt_for(rubric, answer, _HIGHEST) for answer in answers]
        batches = list(batched(prompts, self.batch_size))
        found = [value for batch in progress(batches, "judge") for value in self._expect(batch)]
        return [score_of(value, rubric) for value in found]

    def _expect(self, chats: "Sequence[Chat]") -> list[float | None]:
        """Return the expected digit of each chat, on the scale of the judge."""
        rows = self.subject.next_token(chats, list(self.tokens), self.batch_size).exp().tolist()
        expected = [expected_number(self._by_digit(row), _HIGHEST) for row in rows]
        return [None if value is None else value * 100 / _HIGHEST for value in expected]

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
