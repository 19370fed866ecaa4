"""A discussion: several roles answer, read each other and revise; one more call joins them."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from personality_vector.errors import DataError, LengthError
from personality_vector.interventions.prompts import instructed
from personality_vector.interventions.spec import BaseIntervention, InterventionSpec, require_step
from personality_vector.recipes.schema import Recipe, Whole, Words, distinct
from personality_vector.subject import Chat, Checkpoint, Subject, answered, batched, question

if TYPE_CHECKING:
    from personality_vector.subject.draws import Ask, Draw, Exchange
    from personality_vector.subject.protocols import Reply

_ROLE = "You are {role}, one of {count} people who work on an answer together. Speak as {role}."
_REVISE = """\
The others answered:

{others}

{task} Write your whole answer again."""
_DISCUSS = "Take up what is good there, disagree where you see it otherwise, and add what is new."
_CONVERGE = "This is the last round: settle on what all of you can stand for, and drop the rest."
_JOIN = """\
{count} people worked on an answer to that. Their last words:

{others}

Write the one answer that joins the best of them, in the form that was asked for. Do not mention \
the people or their discussion."""
_SILENT = "(no answer)"


@dataclass(frozen=True, slots=True)
class Discussion(BaseIntervention):
    """At strength 1 each reply is what some roles arrive at, all of them played by the model.

    In the first round each role answers. In each later one it sees its own last answer and those of
    the others, and answers again; the last round asks them to agree. One more call joins the last
    answers. Tokens and seconds of a reply are the sums over all its ``calls``. Strength 0 is one
    call without any of this.

    Attributes:
        roles: Each a person, with an article: ``a futurist``.
        rounds: From 1, in which nobody reads the others.
        label: Defaults to the roles.

    Raises:
        DataError: There are fewer than two roles, one is given twice, or there is no round.

    Source:
        LLM Discussion, Lu et al. 2024, arXiv:2405.06373, a baseline of BILLY, arXiv:2510.10157: 4
        roles, 5 rounds. Deviations: a role sees the answers of the last round, not all that was
        said, so that the length of a prompt is bounded; the joining call is BILLY's one answer,
        where they score each role's own; our own words.
    """

    roles: Sequence[str]
    rounds: int = 3
    label: str = ""
    steps: ClassVar[tuple[float, ...]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", tuple(self.roles))
        object.__setattr__(self, "label", self.label or f"discussion {' + '.join(self.roles)}")
        if len(set(self.roles)) < max(2, len(self.roles)) or self.rounds < 1:
            raise DataError(
                f"{self.label}: needs two different roles or more and at least one round, got "
                f"{len(self.roles)} roles and {self.rounds} rounds"
            )

    @property
    def calls(self) -> int:
        """Calls of the model for one reply."""
        return len(self.roles) * self.rounds + 1

    @contextmanager
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        """Let the roles discuss every chat at strength 1.

        Raises:
            RecipeError: The strength is neither 0 nor 1.
            NonFiniteError: It is NaN or infinite.
        """
        require_step(self, strength)
        yield (
            replace(subject, exchange=partial(self._over, subject.exchange))
            if strength
            else subject
        )

    def _over(self, below: "Exchange", ask: "Ask", draws: "Sequence[Draw]") -> "list[list[Reply]]":
        """Discuss with replies that may themselves be discussions."""
        try:
            return self.replies(partial(below, ask), draws)
        except LengthError as error:
            raise error.remedied(
                "in a discussion each role reads the answers of the others, so take fewer roles or "
                "a smaller max_new_tokens"
            ) from error

    def replies(self, ask: "Ask", draws: "Sequence[Draw]") -> "list[list[Reply]]":
        """Return the reply to each chat of each draw; the calls of a round are asked together."""
        from personality_vector.subject.draws import Draw, call_seed

        spent: list[list[list[Reply]]] = [[[] for _ in draw.chats] for draw in draws]
        said = spent  # by draw and chat, the replies of each role
        for number in range(1, self.rounds + 1):
            asked = [
                Draw(
                    [self._turn(place, *row, number) for row in zip(draw.chats, last, strict=True)],
                    call_seed(draw.seed, f"round {number} role {place}"),
                )
                for draw, last in zip(draws, said, strict=True)
                for place in range(len(self.roles))
            ]
            found = batched(ask(asked), len(self.roles))
            said = [[list(replies) for replies in zip(*each, strict=True)] for each in found]
            spent = [
                [[*before, *now] for before, now in zip(*rows, strict=True)]
                for rows in zip(spent, said, strict=True)
            ]
        asked = [
            Draw(
                [self._joining(*row) for row in zip(draw.chats, last, strict=True)],
                call_seed(draw.seed, "join"),
            )
            for draw, last in zip(draws, said, strict=True)
        ]
        return [
            [_summed(before, reply) for before, reply in zip(*rows, strict=True)]
            for rows in zip(spent, ask(asked), strict=True)
        ]

    def _turn(self, place: int, chat: Chat, last: "Sequence[Reply]", number: int) -> Chat:
        """Return what a role reads in a round, after the last answers of all."""
        role = _ROLE.format(role=self.roles[place], count=len(self.roles))
        start = instructed(role, chat)
        if not last:
            return start
        task = _CONVERGE if number == self.rounds else _DISCUSS
        others = [one for other, one in enumerate(self._heard(last)) if other != place]
        own = last[place].text or _SILENT
        return [
            *answered(start, own),
            *question(_REVISE.format(others="\n\n".join(others), task=task)),
        ]

    def _joining(self, chat: Chat, last: "Sequence[Reply]") -> Chat:
        """Return the chat that asks for one answer."""
        others = "\n\n".join(self._heard(last))
        task = _JOIN.format(count=len(self.roles), others=others)
        return [*chat[:-1], {**chat[-1], "content": f"{chat[-1]['content']}\n\n{task}"}]

    def _heard(self, last: "Sequence[Reply]") -> list[str]:
        return [
            f"{role}:\n{one.text or _SILENT}" for role, one in zip(self.roles, last, strict=True)
        ]


def _summed(before: "Sequence[Reply]", last: "Reply") -> "Reply":
    """Return the last reply with the tokens and seconds of all."""
    calls = [*before, last]
    return replace(
        last,
        tokens_in=sum(one.tokens_in for one in calls),
        tokens_out=sum(one.tokens_out for one in calls),
        seconds=math.fsum(one.seconds for one in calls),
        is_shared=any(one.is_shared for one in calls),
    )


def _several(roles: tuple[str, ...]) -> tuple[str, ...]:
    if len(roles) < 2:
        raise ValueError("a discussion has at least two roles, such as [a futurist, a cook]")
    return roles


class DiscussionOptions(Recipe):
    """Who discusses, and how often; see :class:`Discussion`."""

    roles: Annotated[tuple[Words, ...], AfterValidator(_several), AfterValidator(distinct)]
    rounds: Whole = Field(default=3, ge=1)


class DiscussionSpec(InterventionSpec):
    """``discussion`` holds ``roles``, persons such as ``a futurist``, and ``rounds``."""

    discussion: DiscussionOptions

    def open(self, base: Checkpoint) -> Discussion:  # noqa: ARG002
        """Return the discussion."""
        return Discussion(self.discussion.roles, self.discussion.rounds, self.label)
