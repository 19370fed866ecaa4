"""A judge in memory: a local model, rated by the digit that it expects to write."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import ClassVar

from pydantic import Field

from personality_vector.errors import ModelError, some
from personality_vector.judges.spec import NumberJudge, expected_number
from personality_vector.progress import progress
from personality_vector.recipes.schema import Device, Dtype, ModelRef, Whole
from personality_vector.subject import Chat, Subject, TemplatedRecipe, batched, digest_of

_SPACES = " \N{LOWER ONE EIGHTH BLOCK}\u0120"  # as text, in SentencePiece and in byte-level BPE


class LocalJudge(TemplatedRecipe, NumberJudge):
    """An instruction-tuned checkpoint that is asked for a digit: its expectation, times 100 / 9.

    Digits, because longer numbers are several tokens of most tokenizers, and the first would not
    tell 7 from 70. ``batch_size`` answers are rated at once.
    """

    checkpoint: ModelRef
    batch_size: Whole = Field(default=8, ge=1)
    dtype: Dtype = "float32"
    device: Device = "auto"

    highest: ClassVar[int] = 9
    neutral: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint", "device", "chat_template", "template_options"}
    )

    def open(self) -> "LocalJudge":
        """Return this judge; its model is loaded when it rates for the first time.

        Raises:
            CheckpointError: The checkpoint or its tokenizer is missing.
            ModelError: The vocabulary lacks a digit.
        """
        _ = self.tokens
        return self

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Id of every token that is a digit, perhaps after a space, to the digit."""
        from personality_vector.checkpoint import Checkpoint
        from personality_vector.subject.models import load_tokenizer

        path = Checkpoint.open(self.checkpoint).path
        vocabulary = load_tokenizer(path, self.template).get_vocab()
        digits = {str(number) for number in range(self.highest + 1)}
        bare = ((index, token.lstrip(_SPACES)) for token, index in vocabulary.items())
        found = {index: token for index, token in bare if token in digits}
        lacking = digits - set(found.values())
        if lacking:
            raise ModelError(
                f"{self.checkpoint}: has no token for {some(lacking)}, so it cannot judge; "
                "use a model with a token for each digit"
            )
        return found

    @property
    def name(self) -> str:
        """``local`` and the name of the checkpoint."""
        return f"local {PurePath(self.checkpoint).name}"

    @cached_property
    def subject(self) -> Subject:
        """The model, loaded when it is first asked."""
        from personality_vector.subject import subject

        return subject.Subject.load(
            self.checkpoint, dtype=self.dtype, device=self.device, template=self.template
        )

    def identity(self) -> str:
        """Return the digest of the checkpoint, of how it is loaded, and of the prompts."""
        from personality_vector.checkpoint import Checkpoint
        from personality_vector.subject.subject import base_identity

        return digest_of(
            super().identity(),
            base_identity(Checkpoint.open(self.checkpoint), self.dtype, self.device, self.template),
        )

    def expected(self, prompts: Sequence[Chat]) -> list[float | None]:
        """Return the expected digit after each prompt, times 100 / 9."""
        batches, digits = list(batched(prompts, self.batch_size)), list(self.tokens)
        rows = [
            row
            for batch in progress(batches, "judge")
            for row in self.subject.next_token(batch, digits, len(batch)).exp().tolist()
        ]
        found = [expected_number(self._by_digit(row), self.highest) for row in rows]
        return [None if value is None else value * 100 / self.highest for value in found]

    def _by_digit(self, probabilities: Iterable[float]) -> dict[str, float]:
        likely: dict[str, float] = {}
        for digit, p in zip(self.tokens.values(), probabilities, strict=True):
            likely[digit] = likely.get(digit, 0.0) + p
        return likely
