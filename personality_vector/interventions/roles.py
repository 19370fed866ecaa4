"""Prompts that give the model one role, or several to think from; and the best among them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Generic, TypeVar

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.interventions.system_prompt import SystemPrompt, enumerated, require_step
from personality_vector.subject.chat import ChatEdit
from personality_vector.subject.protocols import Intervention

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SingleAgent(SystemPrompt):
    """The plain model with a prompt of its own, which is empty: the floor of a comparison.

    Strengths are 0 and 1, and both are the model as it was.

    Source:
        The single agent of BILLY, arXiv:2510.10157.
    """

    label: str = "single agent"

    def sentence(self, strength: float) -> str:
        """Return "", at strength 0 or 1.

        Raises:
            RecipeError: The strength is another number.
            NonFiniteError: It is NaN or infinite.
        """
        require_step(self.label, strength, (0, 1))
        return ""


@dataclass(frozen=True, slots=True)
class RolePrompt(SystemPrompt):
    """A system prompt that gives the model one role, or several whose views it has to join.

    Strength 1 is the prompt, 0 none.

    >>> RolePrompt(["a futurist"]).sentence(1.0)
    'You are a futurist. Answer as one.'

    Attributes:
        roles: Each a person, with an article: ``a futurist``.
        label: Defaults to the roles.

    Raises:
        DataError: There is no role, one is blank or given twice, or they are one text.

    Source:
        With several roles, multi-role prompting as BILLY has it for a baseline, arXiv:2510.10157:
        one call, in which one model takes every view and answers once. Deviation: our own words.
    """

    roles: Sequence[str]
    label: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.roles, str):
            raise DataError(f"roles are a list, such as [{self.roles!r}]")
        object.__setattr__(self, "roles", tuple(self.roles))
        object.__setattr__(self, "label", self.label or f"roles {' + '.join(self.roles)}")
        if not self.roles or not all(role.strip() for role in self.roles):
            raise DataError(f"{self.label}: name at least one role, such as a futurist")
        if len(set(self.roles)) < len(self.roles):
            raise DataError(f"{self.label}: names a role twice")

    def sentence(self, strength: float) -> str:
        """Return the prompt at strength 1, and "" at 0.

        Raises:
            RecipeError: The strength is another number.
            NonFiniteError: It is NaN or infinite.
        """
        require_step(self.label, strength, (0, 1))
        if strength == 0:
            return ""
        if len(self.roles) == 1:
            return f"You are {self.roles[0]}. Answer as one."
        return (
            f"Before you answer, look at the matter in turn as {enumerated(list(self.roles))} "
            "would, and note what only that person would see. Then give one answer that joins "
            "these views. Speak with one voice, and do not mention the roles."
        )


def role_prompts(roles: Sequence[str], most: int = 1) -> list[RolePrompt]:
    """Return the prompt of every combination of one to ``most`` roles.

    >>> [prompt.label for prompt in role_prompts(["a poet", "a cook"], most=2)]
    ['roles a poet', 'roles a cook', 'roles a poet + a cook']
    """
    sizes = range(1, most + 1)
    return [RolePrompt(chosen) for size in sizes for chosen in combinations(roles, size)]


@dataclass(frozen=True, slots=True)
class Ranking(Generic[T]):
    """Candidates and their scores, the best first."""

    candidates: tuple[T, ...]
    scores: tuple[float, ...]

    @property
    def best(self) -> T:
        """The candidate with the highest score; of equals, the one that was named first."""
        return self.candidates[0]


def best_of(candidates: Sequence[T], score: Callable[[T], float]) -> Ranking[T]:
    """Rank ``candidates`` by ``score``: a baseline should be the best of its kind.

    Score them on a development split, such as the training part of the statements, and report
    the best on another: a maximum is larger than what it will reach again.

    Args:
        candidates: At least one, such as :func:`role_prompts`.
        score: The higher, the better; :func:`effect_on` makes one of a probe or a judge.

    Raises:
        DataError: There is no candidate.
        NonFiniteError: A score is NaN or infinite.
    """
    if not candidates:
        raise DataError("the best of no candidates: name at least one")
    scores = [score(candidate) for candidate in candidates]
    for candidate, value in zip(candidates, scores, strict=True):
        if not math.isfinite(value):
            raise NonFiniteError(f"{getattr(candidate, 'label', candidate)}: has score {value}")
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    return Ranking(
        tuple(candidates[place] for place in order), tuple(scores[place] for place in order)
    )


def effect_on(
    model: Any, measure: Callable[[ChatEdit], float], strength: float = 1.0
) -> Callable[[Intervention], float]:
    """Return a score for :func:`best_of`: ``measure`` of ``model`` under an intervention.

    Args:
        model: A causal language model; restored after each measurement.
        measure: Given the edit of chats, returns a number, such as
            ``lambda edit: probe(model, tokenizer, edit)["openness"].value``.
        strength: At which every candidate is measured.
    """

    def score(intervention: Intervention) -> float:
        with intervention.applied(model, strength) as edit:
            return measure(edit)

    return score
