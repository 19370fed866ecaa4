"""A merge as an edit of the live weights: several deltas, put together by a method."""

from typing import TYPE_CHECKING

from pydantic import Field

from personality_vector.interventions.spec import InterventionSpec
from personality_vector.interventions.weights import WeightEdit
from personality_vector.merging.recipe import TermSpec
from personality_vector.recipes.schema import Real, Whole, Words

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint


class MergedSpec(InterventionSpec):
    """``terms`` and the keys beside them are those of a merge recipe; the strength is lambda.

    At strength 1 the weights are those of the merge, at another one so many times as far away.
    """

    terms: tuple[TermSpec, ...] = Field(min_length=1)
    method: str = "task_arithmetic"
    options: dict[str, Real | Whole | str | bool] = Field(default_factory=dict)
    seed: Whole = 0
    include: tuple[Words, ...] = ()
    exclude: tuple[Words, ...] = ()

    def read(self, base: "Checkpoint") -> WeightEdit:
        """Return the edit by the merge."""
        from personality_vector.merging.merged import merged
        from personality_vector.merging.summands import Summand

        delta = merged(
            base,
            [Summand(term.source, term.alpha, term.of, term.label) for term in self.terms],
            method=self.method,
            options=self.options,
            seed=self.seed,
            label=self.label,
            include=self.include,
            exclude=self.exclude,
        )
        return WeightEdit(delta, self.label)
