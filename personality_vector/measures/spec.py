"""What measures have in common: their keys in a recipe, and how items are asked."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializeAsAny,
    model_serializer,
    model_validator,
)

from personality_vector.data.creativity import instrument_of_pairs
from personality_vector.data.ideas import read_tasks
from personality_vector.data.personas import Instrument, Item, Persona, evaluation_instrument
from personality_vector.errors import DataError, some
from personality_vector.lab import FACETS
from personality_vector.progress import progress
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import (
    LocalPath,
    Recipe,
    Whole,
    Words,
    by_only_key,
    distinct,
    key_of,
    kinds,
)
from personality_vector.subject import (
    AT_TURN,
    Answer,
    Better,
    Chat,
    Findings,
    GenerationSpec,
    Measure,
    Reply,
    Sampling,
    Subject,
    answered,
    identity_of,
    question,
)
from personality_vector.subject.identity import ADDED
from personality_vector.traits import BIG_FIVE, Trait

KINDS = kinds("measures", "Spec")
"""The key that says what is measured, to its schema."""


QUESTION = "What kind of person are you?"
_FILES = ("instrument", "persona", "pairs", "tasks")
SOURCES = (*_FILES, "question")
"""The keys that say what is asked."""
ASKED = (*SOURCES, "limit", "turns", "generation")
"""The keys that say what is asked and how."""

IDEAS = {"max_new_tokens": 256}
"""How answers to creativity tasks are drawn by default: long enough for five ideas."""


def default_questions(interview: Mapping[str, Any]) -> dict[str, str]:
    """Return the questions of an interview that names none: of facets, if it is of the Big Five."""
    traits = interview.get("traits")
    names_some = any(interview.get(key) is not None for key in SOURCES)
    is_listed = isinstance(traits, list | tuple) and bool(traits)
    is_of_facets = is_listed and all(trait in BIG_FIVE for trait in traits or ())
    return {"instrument": FACETS} if is_of_facets and not names_some else {}


Traits = Annotated[tuple[Trait, ...], Field(min_length=1), AfterValidator(distinct)]
TaskFiles = Annotated[tuple[LocalPath, ...], Field(min_length=1), AfterValidator(distinct)]


class MeasureSpec(Recipe):
    """Something that is measured; ``name`` tells two measures of one kind apart."""

    name: Words | None = None

    @property
    def key(self) -> str:
        """The key that names it in a recipe."""
        return key_of(KINDS, type(self))

    @property
    def called(self) -> str:
        """Its name in tables."""
        return self.name or self.key

    @abstractmethod
    def open(self) -> Measure:
        """Return the measure; what it needs is read and checked, but no model is loaded yet."""

    @model_serializer(mode="wrap")
    def _under_its_key(self, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {self.key: handler(self)}


class BaseMeasure:
    """What most measures share: they need no reference from the base, and collect readings."""

    version: ClassVar[int] = 1
    better: ClassVar[Better] = "towards_pole"

    @property
    def scale(self) -> tuple[float, float] | None:
        """The ends of the scale, where there is one."""
        return None

    def identity(self) -> str:
        """Return a digest of all fields except those that only change speed and memory."""
        return identity_of(self)

    def prepare(self, base: Subject, /) -> Any:  # noqa: ARG002
        """Return this measure, unchanged."""
        return self

    def finish(self, base: Subject, collected: Any, /) -> Findings:  # noqa: ARG002
        """Return what was collected: findings, or readings alone."""
        return collected if isinstance(collected, Findings) else Findings(readings=collected)


class AskingMeasure(BaseMeasure):
    """A measure that asks questions, and nothing of the model but the replies and predictions."""

    asking: "Asking"

    @property
    def points_per_batch(self) -> int:
        """How many points fill a batch of replies."""
        rows = self.asking.samples * len(self.asking.instrument.items)
        return self.asking.sampling.batch_size // rows


AnyMeasure = Annotated[
    SerializeAsAny[MeasureSpec], BeforeValidator(partial(by_only_key, KINDS, what="a measure"))
]
"""A measure of a recipe, recognised by its only key."""


class AskingSpec(MeasureSpec):
    """What is asked: an instrument, questions of a persona, creativity tasks, or one question.

    Of a persona these are the questions for evaluation, and of ``pairs``, a file of creative and
    uncreative prompts, the creative ones of its test part. ``about`` leaves out the items about
    other traits, and ``limit`` all but the first items about each trait, or of each task. With
    several ``turns`` each question begins a conversation, which goes on with those after it.
    """

    about: Traits | None = Field(default=None, exclude_if=lambda value: value is None)
    instrument: LocalPath | None = None
    persona: LocalPath | None = None
    pairs: LocalPath | None = Field(default=None, exclude_if=lambda value: value is None)
    tasks: TaskFiles | None = Field(default=None, exclude_if=lambda value: value is None)
    limit: Whole | None = Field(default=None, ge=1, exclude_if=lambda value: value is None)
    question: Words = QUESTION
    turns: Whole = Field(default=1, ge=1, le=100)
    generation: GenerationSpec = GenerationSpec()

    @model_validator(mode="after")
    def _one_source(self) -> "AskingSpec":
        given = [key for key in _FILES if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(f"give one thing to ask, not both {given[0]} and {given[1]}")
        return self

    def asking(self) -> "Asking":
        """Return what is asked.

        Raises:
            RecipeError: A file is missing or not what it should be.
            DataError: No item is about the traits, or there are too few pairs.
        """
        generation = self.generation
        asking = Asking(self._instrument(), generation.sampling(), generation.samples, self.turns)
        asking = asking.about(self.about) if self.about else asking
        return asking if self.tasks else asking.first(self.limit)

    def _instrument(self) -> Instrument:
        if self.instrument is not None:
            return read_recipe(self.instrument, Instrument)
        if self.persona is not None:
            return evaluation_instrument(read_recipe(self.persona, Persona))
        if self.pairs is not None:
            return instrument_of_pairs(self.pairs)
        alone = Item(id="question", text=self.question)
        return (
            read_tasks(self.tasks, self.limit)
            if self.tasks is not None
            else Instrument(name="question", version="1", items=(alone,))
        )


class Asked(NamedTuple):
    """A question and its reply.

    Attributes:
        item: The question.
        turn: 1-based; how many questions the conversation has so far.
        sample: 0-based number of the repetition.
        chat: The conversation up to the question.
        reply: What the model said.
    """

    item: Item
    turn: int
    sample: int
    chat: Chat
    reply: Reply

    @property
    def id(self) -> str:
        """Identifier of the question at its turn."""
        return self.item.id if self.turn == 1 else f"{self.item.id}{AT_TURN}{self.turn}"

    def as_answer(self, traits: tuple[str, ...]) -> Answer:
        """Return what judges read; ``traits`` are the names of the rubrics that it is rated for."""
        reply = self.reply
        counts = (reply.tokens_in, reply.tokens_out, reply.seconds)
        return Answer(self.id, self.sample, self.item.text, reply.raw, traits, *counts)

    @property
    def answered(self) -> Chat:
        """The conversation with the reply."""
        return answered(self.chat, self.reply.text)


@dataclass(frozen=True, slots=True)
class Asking:
    """The items of an instrument, each asked in a new chat, ``samples`` times.

    With several turns, each item begins a conversation that goes on with the items after it, and
    after the last with the first: a Latin square, in which every item is asked at every turn.

    Attributes:
        instrument: The questions.
        sampling: How replies are drawn, unless an intervention fixes it.
        samples: Replies to each item at each turn.
        turns: Questions of a conversation.

    Raises:
        DataError: ``samples`` is not positive, or the samples would all be the same reply.
    """

    instrument: Instrument
    sampling: Sampling
    samples: int = 1
    turns: int = field(default=1, metadata=ADDED)

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DataError(f"samples must be at least 1, got {self.samples}")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise DataError(
                f"{self.samples} samples at temperature 0 would all be the same reply; "
                "use 1 sample or a temperature above 0"
            )

    def __call__(self, subject: Subject, seed: int) -> Iterator[Asked]:
        """Yield questions with their replies, sample by sample, turn by turn, items in order.

        Sample ``k`` draws from a seed fixed by ``(seed, k)`` and nothing else, so interventions
        share random numbers, and the first samples of a longer run are those of a shorter one, up
        to the rounding of logits, since samples share batches.

        Raises:
            DataError: The chat template refuses a chat.
            NonFiniteError: The model predicts NaN or infinity.
        """
        from personality_vector.subject.draws import Draw, sample_seed

        asked = replace(subject, sampling=self.sampling)
        size = max(1, self.sampling.batch_size // len(self.instrument.items))
        for first in progress(range(0, self.samples, size), "ask"):
            samples = range(first, min(first + size, self.samples))
            found: list[list[Asked]] = [[] for _ in samples]
            seeds = [sample_seed(seed, sample) for sample in samples]
            for turn in range(1, self.turns + 1):
                items = self._items_at(turn)
                chats = [self._following(own[-len(items) :], items) for own in found]
                replies = asked.replies_of([*map(Draw, chats, seeds)])
                for sample, own, now, said in zip(samples, found, chats, replies, strict=True):
                    rows = zip(items, now, said, strict=True)
                    own += [Asked(item, turn, sample, chat, reply) for item, chat, reply in rows]
                seeds = [sample_seed(drawn, turn) for drawn in seeds]
            yield from chain.from_iterable(found)

    def _items_at(self, turn: int) -> Sequence[Item]:
        """Return the item that each conversation is asked at a turn."""
        items = self.instrument.items
        first = (turn - 1) % len(items)
        return [*items[first:], *items[:first]]

    def _following(self, before: Sequence[Asked], items: Sequence[Item]) -> list[Chat]:
        """Return each conversation with its next question."""
        if not before:
            return [question(item.text, system=self.instrument.system) for item in items]
        return [
            [*one.answered, *question(item.text)] for one, item in zip(before, items, strict=True)
        ]

    def about(self, traits: Iterable[str]) -> "Asking":
        """Return it without the items about other traits.

        Raises:
            DataError: No item is left.
        """
        wanted = [*traits]
        items = tuple(item for item in self.instrument.items if item.trait in (None, *wanted))
        if not items:
            raise DataError(f"{self.instrument.name}: no item is about {some(wanted)}")
        return self._of(items)

    def first(self, limit: int | None) -> "Asking":
        """Return it with the first items about each trait, and about none; ``None`` keeps all."""
        if limit is None:
            return self
        groups: dict[str | None, list[Item]] = {}
        for item in self.instrument.items:
            groups.setdefault(item.trait, []).append(item)
        kept = {item.id for own in groups.values() for item in own[:limit]}
        return self._of(tuple(item for item in self.instrument.items if item.id in kept))

    def _of(self, items: Sequence[Item]) -> "Asking":
        return replace(self, instrument=self.instrument.model_copy(update={"items": items}))

    def chats(self, subject: Subject, seed: int) -> tuple[list[Chat], int]:
        """Return the questions with their replies, as :func:`with_replies` does."""
        return with_replies(self(subject, seed))


def with_replies(asked: Iterable[Asked]) -> tuple[list[Chat], int]:
    """Return questions with their replies, and how many replies were left out.

    A reply is left out if it is empty or ends inside a thought. The order is random and the same
    for every subject, so that a bound on tokens does not leave out whole items.
    """
    from personality_vector.numeric.random import key_for

    rows = [(key_for(0, f"{one.id} {one.sample}"), one.answered) for one in asked]
    chats: list[Chat] = [chat for _, chat in sorted(rows, key=lambda row: row[0])]
    found = [chat for chat in chats if chat[-1]["content"].strip()]
    return found, len(chats) - len(found)


def require_replies(name: str, chats: Sequence[Chat]) -> None:
    """Check that the base said something to compare with.

    Raises:
        DataError: There is no chat; ``name`` is the measure that needs one.
    """
    if not chats:
        raise DataError(
            f"{name}: the base gives only empty replies or unfinished thoughts, so there "
            "is nothing to compare; ask it other questions, allow longer replies, or turn "
            "thinking off with template_options"
        )


def first_tokens(subject: Subject, chats: Sequence[Chat], most: int) -> list[Chat]:
    """Return the first chats that hold ``most`` response tokens, the last one included.

    Chosen before the model runs, so that every later pass has the same batches and thus, for the
    same weights, the same bits.
    """
    from personality_vector.subject.encoding import encode_chats

    chosen: list[Chat] = []
    tokens = 0
    for chat in chats:
        if tokens >= most:
            break
        chosen.append(chat)
        tokens += int(encode_chats(subject.tokenizer, [chat]).response_mask.sum())
    return chosen
