"""Decoding: how the tokens of a reply are drawn, for one arm only."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from personality_vector.errors import RecipeError
from personality_vector.interventions.spec import BaseIntervention, InterventionSpec, require_step
from personality_vector.recipes.schema import Real, Recipe, Whole
from personality_vector.subject import Checkpoint, Subject

# The values that each option may have.
_RANGES: Mapping[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("at least 0", lambda value: 0 <= value < float("inf")),
    "top_p": ("above 0 and at most 1", lambda value: 0 < value <= 1),
    "repetition_penalty": ("above 0", lambda value: 0 < value < float("inf")),
    "no_repeat_ngram": ("at least 0", lambda value: value >= 0),
}


@dataclass(frozen=True, slots=True)
class Decoding(BaseIntervention):
    """Decoding options that override those of a measure at strength 1; 0 overrides none.

    Attributes:
        temperature: Divides the logits; 0 is greedy.
        top_p: Probability mass of the nucleus that tokens are drawn from.
        repetition_penalty: Divides the logits of tokens that have occurred; 1 changes nothing.
        no_repeat_ngram: Length of the token sequences that may not occur twice; 0 for no limit.
        label: Name in tables and figures.

    Raises:
        RecipeError: No option is given, or one is out of range.

    Source:
        Nucleus: Holtzman et al. 2019, arXiv:1904.09751. Penalty: CTRL, Keskar et al. 2019,
        arXiv:1909.05858.
    """

    temperature: float | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram: int | None = None
    label: str = "decoding"
    steps: ClassVar[tuple[float, ...]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.options:
            raise RecipeError(f"{self.label}: give at least one of {', '.join(_RANGES)}")
        for name, value in self.options.items():
            what, fits = _RANGES[name]
            if not fits(value):
                raise RecipeError(f"{self.label}: {name} must be {what}, got {value}")

    @property
    def options(self) -> dict[str, Any]:
        """The options that are given."""
        return {name: getattr(self, name) for name in _RANGES if getattr(self, name) is not None}

    @contextmanager
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        """Decode with these options at strength 1.

        Raises:
            RecipeError: The strength is neither 0 nor 1.
            NonFiniteError: It is NaN or infinite.
        """
        require_step(self, strength)
        yield (
            replace(subject, decoding={**subject.decoding, **self.options}) if strength else subject
        )


class DecodingOptions(Recipe):
    """The options, of which at least one is given; see :class:`Decoding`."""

    temperature: Real | None = None
    top_p: Real | None = None
    repetition_penalty: Real | None = None
    no_repeat_ngram: Whole | None = None


class DecodingSpec(InterventionSpec):
    """``decoding`` holds the options, such as ``{temperature: 1.0}``."""

    decoding: DecodingOptions

    def open(self, base: Checkpoint) -> Decoding:  # noqa: ARG002
        """Return the options."""
        return Decoding(**dict(self.decoding), label=self.label)
