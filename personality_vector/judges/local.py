"""A judge in memory: a local model, rated by the digit that it expects to write."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import ClassVar

from pydantic import Field

from personality_vector.errors import ModelError, some
from personality_vector.judges.spec import Likely, NumberJudge
from personality_vector.progress import progress
from personality_vector.recipes.schema import Device, Dtype, ModelRef, Whole
from personality_vector.subject import Chat, Subject, TemplatedRecipe, batched, digest_of

_DIGITS = tuple("0123456789")


class LocalJudge(TemplatedRecipe, NumberJudge):
    """An instruction-tuned checkpoint that is asked for a digit: its expectation, times 100 / 9.

    Digits, because longer numbers are several tokens of most tokenizers, and the first would not
    tell 7 from 70. ``batch_size`` answers are rated at once. A small model that would rather begin
    with other words can be given an ``opening`` of its reply, such as "Rating: ", after which the
    digit is read.
    """

    checkpoint: ModelRef
    batch_size: Whole = Field(default=8, ge=1)
    opening: str = Field(default="", exclude_if=lambda value: not value)
    dtype: Dtype = "float32"
    device: Device = "auto"

    highest: ClassVar[int] = 9
    neutral: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint", "device", "chat_template", "template_options", "opening"}
    )

    def open(self) -> "LocalJudge":
        """Return this judge; its model is loaded when it rates for the first time.

        Raises:
            CheckpointError: The checkpoint or its tokenizer is missing.
            ModelError: The vocabulary lacks a digit.
        """
        self.tokens(_DIGITS)
        return self

    def tokens(self, words: Sequence[str]) -> dict[int, str]:
        """Return the id of every token that is one of ``words``, perhaps after a space.

        Raises:
            ModelError: The vocabulary lacks one.
        """
        if tuple(words) not in self._found:
            self._found[tuple(words)] = self._tokens(set(words))
        return self._found[tuple(words)]

    @cached_property
    def _found(self) -> dict[tuple[str, ...], dict[int, str]]:
        return {}

    def _tokens(self, words: set[str]) -> dict[int, str]:
        from personality_vector.checkpoint import Checkpoint
        from personality_vector.subject.continuations import words_as_tokens
        from personality_vector.subject.models import load_tokenizer

        path = Checkpoint.open(self.checkpoint).path
        vocabulary = load_tokenizer(path, self.template).get_vocab()
        found = words_as_tokens(vocabulary, words)
        lacking = words - set(found.values())
        if lacking:
            raise ModelError(
                f"{self.checkpoint}: has no token for {some(lacking)}, so it cannot judge; "
                f"use a model with a token for each {'digit' if '0' in words else 'letter'}"
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
        """Return the digest of the checkpoint, of how it is loaded and opens, and of the prompts.

        Without an opening it is what it was before there were openings.
        """
        from personality_vector.checkpoint import Checkpoint
        from personality_vector.subject.identity import base_identity

        return digest_of(
            super().identity(),
            base_identity(Checkpoint.open(self.checkpoint), self.dtype, self.device, self.template),
            *([self.opening] if self.opening else []),
        )

    def first_tokens(self, prompts: Sequence[Chat], among: Sequence[str]) -> list[Likely | str]:
        """Return the probabilities of the tokens ``among`` as the first of each reply."""
        batches, tokens = list(batched(prompts, self.batch_size)), self.tokens(among)
        rows = [
            row for batch in progress(batches, "judge") for row in self._likely(batch, list(tokens))
        ]
        return [_added(tokens.values(), row) for row in rows]

    def _likely(self, prompts: Sequence[Chat], tokens: Sequence[int]) -> list[list[float]]:
        found = self.subject.next_token(prompts, tokens, len(prompts), self.opening)
        likely: list[list[float]] = found.exp().tolist()
        return likely


def _added(texts: Iterable[str], probabilities: Iterable[float]) -> dict[str, float]:
    """Return the probability of each text, of which there may be several tokens."""
    likely: dict[str, float] = {}
    for text, p in zip(texts, probabilities, strict=True):
        likely[text] = likely.get(text, 0.0) + p
    return likely
