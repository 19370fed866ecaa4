"""Asking a subject the items of an instrument, for interviews and the measures beside them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import model_validator

from personality_vector.data.personas import (
    Instrument,
    Item,
    Persona,
    evaluation_instrument,
)
from personality_vector.errors import DataError
from personality_vector.measures.spec import MeasureSpec
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import LocalPath, Words
from personality_vector.subject.spec import GenerationSpec

if TYPE_CHECKING:
    from personality_vector.subject.spec import Sampling
    from personality_vector.subject.subject import Reply, Subject

QUESTION = "What kind of person are you?"
ASKED = ("instrument", "persona", "question", "generation")
"""The keys that say what is asked and how."""


class AskingSpec(MeasureSpec):
    """What is asked: an instrument, the evaluation questions of a persona, or one question."""

    instrument: LocalPath | None = None
    persona: LocalPath | None = None
    question: Words = QUESTION
    generation: GenerationSpec = GenerationSpec()

    @model_validator(mode="after")
    def _one_source(self) -> "AskingSpec":
        if self.instrument is not None and self.persona is not None:
            raise ValueError("give an instrument or a persona, not both")
        return self

    def asking(self) -> "Asking":
        """Return what is asked.

        Raises:
            RecipeError: A file is missing or not what it should be.
        """
        return Asking(self._instrument(), self.generation.sampling(), self.generation.samples)

    def _instrument(self) -> Instrument:
        if self.instrument is not None:
            return read_recipe(self.instrument, Instrument)
        if self.persona is not None:
            return evaluation_instrument(read_recipe(self.persona, Persona))
        item = Item(id="question", text=self.question)
        return Instrument(name="question", version="1", items=(item,))


@dataclass(frozen=True, slots=True)
class Asking:
    """The items of an instrument, each asked in a new chat, ``samples`` times.

    Attributes:
        instrument: The questions.
        sampling: How replies are drawn, unless an intervention fixes it.
        samples: Replies to each item.

    Raises:
        DataError: ``samples`` is not positive, or they would be copies of one reply.
    """

    instrument: Instrument
    sampling: "Sampling"
    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DataError(f"samples must be at least 1, got {self.samples}")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise DataError(f"{self.samples} samples at temperature 0 are copies of one reply")

    def __call__(self, subject: "Subject", seed: int) -> Iterator[tuple[Item, int, "Reply"]]:
        """Yield item, number of the sample and reply, sample by sample, items in order.

        Sample ``k`` draws from a seed fixed by ``(seed, k)`` and nothing else, so interventions
        share random numbers, and the first samples of a longer run are those of a shorter one.

        Raises:
            DataError: The chat template refuses a chat.
            NonFiniteError: The model predicts NaN or infinity.
        """
        from personality_vector.progress import progress
        from personality_vector.subject.chat import question
        from personality_vector.subject.subject import sample_seed

        asked = replace(subject, sampling=self.sampling)
        items = self.instrument.items
        chats = [question(item.text, system=self.instrument.system) for item in items]
        for sample in progress(range(self.samples), "ask"):
            replies = asked.replies(chats, sample_seed(seed, sample))
            yield from ((item, sample, reply) for item, reply in zip(items, replies, strict=True))
