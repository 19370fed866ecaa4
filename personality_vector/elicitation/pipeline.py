"""From a persona to chats in which the model shows it, and chats in which it does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from personality_vector.data.personas import COHERENCE, Persona
from personality_vector.elicitation.filter import FilterReport, filtered, require_some
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.elicitation.rollouts import Rollout, Side, draw, reused
from personality_vector.errors import RecipeError
from personality_vector.judges.spec import JudgeSpec
from personality_vector.recipes.reading import read_recipe
from personality_vector.subject.chat import Chat
from personality_vector.subject.protocols import Judge, rated
from personality_vector.subject.subject import Subject


@dataclass(frozen=True, slots=True)
class Elicited:
    """What a model said as a persona, and what was kept of it.

    Attributes:
        persona: With the end that the recipe asked for as its positive side.
        rollouts: Every reply, kept or dropped.
        report: How many pairs each rule dropped.
        judge: Who rated.
    """

    persona: Persona
    rollouts: tuple[Rollout, ...]
    report: FilterReport
    judge: str

    @property
    def positive(self) -> list[Chat]:
        """The kept chats of the positive side, with their system prompts, in the order of pairs."""
        return self._kept("positive")

    @property
    def negative(self) -> list[Chat]:
        """The kept chats of the negative side; chat ``i`` has the id of positive chat ``i``."""
        return self._kept("negative")

    def _kept(self, side: Side) -> list[Chat]:
        return [row.chat for row in self.rollouts if row.kept and row.side == side]


def unrecorded(_rollouts: Sequence[Rollout], /) -> None:
    """Save nothing."""


def read_persona(recipe: SteerRecipe) -> Persona:
    """Return the persona that ``recipe`` names, turned to its pole.

    Raises:
        RecipeError: The recipe names none, the file is not one, or it is of another pole.
    """
    if recipe.persona is None:
        raise RecipeError("the recipe names no persona; it has positive and negative data")
    return read_recipe(recipe.persona, Persona).at(recipe.pole)


def open_judge(recipe: SteerRecipe, persona: Persona) -> Judge | None:
    """Return the judge of ``recipe``; ``None`` where none is asked.

    Before anything is generated, so that a missing key or file is not found out hours later.

    Raises:
        RecipeError: What the judge needs is missing.
        DataError: Its statements cannot be read, or it cannot rate the persona.
        ModelError: Its checkpoint cannot write digits.
    """
    if not isinstance(recipe.judge, JudgeSpec):
        return None
    judge = recipe.judge.open()
    rated(judge, persona.as_rubric(), ())
    return judge


def elicit(
    recipe: SteerRecipe,
    subject: Subject,
    judge: Judge | None = None,
    *,
    record: Callable[[Sequence[Rollout]], object] = unrecorded,
) -> Elicited:
    """Draw rollouts, let them be judged and keep the pairs that are clear.

    Args:
        recipe: With a persona.
        subject: Who is asked; not changed.
        judge: Who rates; by default whom the recipe names. Where that is ``recorded``, the ratings
            of ``rollouts.reuse`` count; where it is ``none``, every pair is kept.
        record: Called with all rollouts when they are drawn, rated and filtered: whatever fails
            later, what was generated can be saved.

    Raises:
        DataError: No pair is left (it says how many each rule dropped), the judge cannot rate the
            persona, or the replies to reuse are to other questions.
        RecipeError: The persona, or what the judge needs, is missing or wrong.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509. Deviations: pairs are found by id,
        not by row; the judge sees question and reply, in our words.
    """
    persona = read_persona(recipe)
    judge = open_judge(recipe, persona) if judge is None else judge
    if judge is not None:
        judge = judge.prepare(subject)
        rated(judge, persona.as_rubric(), ())  # refused now, not after hours of rollouts
    is_recorded = judge is None and recipe.judge == "recorded"
    drawn = _drawn(recipe, persona, subject, is_recorded=is_recorded)
    record(drawn)
    judged = drawn if judge is None else _judged(judge, persona, drawn)
    record(judged)
    is_judged = is_recorded or judge is not None
    rollouts, report = filtered(judged, recipe.thresholds if is_judged else None)
    record(rollouts)
    require_some(report, persona.label)
    by = str(recipe.judge) if judge is None else judge.name
    return Elicited(persona, tuple(rollouts), report, by)


def _drawn(
    recipe: SteerRecipe, persona: Persona, subject: Subject, *, is_recorded: bool
) -> list[Rollout]:
    spec = recipe.rollouts
    if spec.reuse is None:
        return draw(subject, persona, spec, recipe.seed)
    earlier = reused(spec.reuse, persona, spec)
    return earlier if is_recorded else [row.unrated() for row in earlier]


def _judged(judge: Judge, persona: Persona, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return the rollouts with their ratings, from 0 to 100 whatever the judge's scale is."""
    answers = [row.answer for row in rollouts]
    traits, coherences = (
        rated(judge, rubric, answers) for rubric in (persona.as_rubric(), COHERENCE)
    )
    return [
        row.rated(trait, coherence, judge.scale)
        for row, trait, coherence in zip(rollouts, traits, coherences, strict=True)
    ]
