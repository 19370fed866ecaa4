"""What measures have in common: their keys in a recipe, and how a subject is asked items."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny, model_serializer, model_validator

from personality_vector.data.personas import Instrument, Item, Persona, evaluation_instrument
from personality_vector.errors import DataError
from personality_vector.progress import progress
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import LocalPath, Recipe, Words, by_only_key, key_of, kinds
from personality_vector.subject.identity import identity_of
from personality_vector.subject.protocols import Better, Findings
from personality_vector.subject.spec import GenerationSpec

if TYPE_CHECKING:
    from typing import Self

    from pydantic import SerializerFunctionWrapHandler

    from personality_vector.subject.protocols import Measure
    from personality_vector.subject.spec import Sampling
    from personality_vector.subject.subject import Reply, Subject

KINDS = kinds("measures", "Spec")
"""The key that says what is measured, to its schema."""


QUESTION = "What kind of person are you?"
ASKED = ("instrument", "persona", "question", "generation")
"""The keys that say what is asked and how."""


class MeasureSpec(Recipe):
    """Something that is measured; ``name`` tells two measures of one kind apart."""

    name: Words | None = None

    @property
    def key(self) -> str:
        """The key that it is recognised by."""
        return key_of(KINDS, type(self))

    @property
    def called(self) -> str:
        """Its name in tables."""
        return self.name or self.key

    @abstractmethod
    def open(self) -> "Measure":
        """Return the measure; what it needs is read and checked, but no model is loaded yet."""

    @model_serializer(mode="wrap")
    def _under_its_key(self, handler: "SerializerFunctionWrapHandler") -> dict[str, Any]:
        return {self.key: handler(self)}


class BaseMeasure:
    """What most measures have in common: they are compared with nothing, and collect readings."""

    __slots__ = ()
    version: ClassVar[int] = 1
    scale: ClassVar[tuple[float, float] | None] = None
    better: ClassVar[Better] = "towards_pole"

    def identity(self) -> str:
        """Return a digest of all fields, but for those that change speed and memory only."""
        return identity_of(self)

    def prepare(self, base: "Subject", /) -> "Self":  # noqa: ARG002
        """Return it as it is."""
        return self

    def finish(self, base: "Subject", collected: Any, /) -> Findings:  # noqa: ARG002
        """Return what was collected."""
        return Findings(readings=collected)


AnyMeasure = Annotated[
    SerializeAsAny[MeasureSpec], BeforeValidator(partial(by_only_key, KINDS, what="a measure"))
]
"""A measure of a recipe, recognised by its only key."""


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
        if self.instrument is not None:
            instrument = read_recipe(self.instrument, Instrument)
        elif self.persona is not None:
            instrument = evaluation_instrument(read_recipe(self.persona, Persona))
        else:
            instrument = Instrument(
                name="question", version="1", items=(Item(id="question", text=self.question),)
            )
        return Asking(instrument, self.generation.sampling(), self.generation.samples)


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
        from personality_vector.subject.chat import question
        from personality_vector.subject.subject import sample_seed

        asked = replace(subject, sampling=self.sampling)
        items = self.instrument.items
        chats = [question(item.text, system=self.instrument.system) for item in items]
        for sample in progress(range(self.samples), "ask"):
            replies = asked.replies(chats, sample_seed(seed, sample))
            yield from ((item, sample, reply) for item, reply in zip(items, replies, strict=True))
