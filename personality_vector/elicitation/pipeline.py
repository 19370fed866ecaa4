"""From a persona to chats in which the model shows it, and chats in which it does not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from personality_vector.data.instruments import Instrument, Item
from personality_vector.data.personas import Persona
from personality_vector.elicitation.filter import FilterReport, filtered, require_some
from personality_vector.elicitation.raters import open_rater
from personality_vector.elicitation.rollouts import Rollout, Side, draw, reused
from personality_vector.errors import RecipeError
from personality_vector.judges.rating import Rater
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.steering import SteerRecipe
from personality_vector.subject.chat import Chat


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


def elicit(
    recipe: SteerRecipe,
    model: Any,
    tokenizer: Any,
    *,
    record: Callable[[Sequence[Rollout]], object] = unrecorded,
) -> Elicited:
    """Draw rollouts, let them be judged and keep the pairs that are clear.

    Args:
        recipe: With a persona.
        model: A causal language model; not changed.
        tokenizer: With a chat template.
        record: Called with all rollouts when they are drawn, rated and filtered: whatever fails
            later, what was generated can be saved.

    Raises:
        DataError: No pair is left (it says how many each rule dropped), or the replies to reuse
            are to other questions.
        RecipeError: The persona, or what the judge needs, is missing or wrong.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509. Deviations: pairs are found by id,
        not by row; the judge sees question and reply, in our words.
    """
    persona = read_persona(recipe)
    rater = open_rater(recipe, persona)
    drawn = _drawn(recipe, persona, model, tokenizer)
    record(drawn)
    rated = drawn if rater is None else _rated(rater, persona, drawn)
    record(rated)
    nobody = recipe.judge.kind == "none"
    rollouts, report = filtered(rated, None if nobody else recipe.thresholds)
    record(rollouts)
    require_some(report, persona.label)
    return Elicited(persona, tuple(rollouts), report, rater.label if rater else recipe.judge.kind)


def evaluation_instrument(persona: Persona) -> Instrument:
    """Return the persona's questions that no vector was made from, as an instrument.

    Raises:
        RecipeError: It has none.
    """
    asked = persona.questions.evaluate
    if not asked:
        raise RecipeError(f"the persona {persona.name} has no questions for evaluation")
    trait = persona.pole.trait if persona.pole else None
    items = (Item(id=f"q{i:02}", text=text, trait=trait) for i, text in enumerate(asked, start=1))
    return Instrument(name=persona.name, version="1", items=tuple(items))


def _drawn(recipe: SteerRecipe, persona: Persona, model: Any, tokenizer: Any) -> list[Rollout]:
    spec = recipe.rollouts
    if spec.reuse is None:
        return draw(model, tokenizer, persona, spec, recipe.seed)
    earlier = reused(spec.reuse, persona, spec)
    if recipe.judge.kind == "recorded":
        return earlier
    blank = {"trait": None, "coherence": None, "reason": "", "kept": False, "rule": ""}
    return [row.model_copy(update=blank) for row in earlier]


def _rated(rater: Rater, persona: Persona, rollouts: Sequence[Rollout]) -> list[Rollout]:
    ratings = rater(persona, [row.exchange for row in rollouts])
    return [row.rated(rating) for row, rating in zip(rollouts, ratings, strict=True)]
