"""What interventions have in common: their keys in a recipe, and which strengths there are."""

import json
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import BeforeValidator, SerializeAsAny, field_validator

from personality_vector.errors import RecipeError
from personality_vector.recipes.schema import Recipe, Strengths, by_own_key
from personality_vector.subject.identity import identity_of
from personality_vector.subject.protocols import Intervention, require_finite

if TYPE_CHECKING:
    from typing import Self

    from personality_vector.checkpoint import Checkpoint

KINDS: Mapping[str, str] = {
    "delta": "interventions.weights:WeightsSpec",
    "tuned": "interventions.weights:WeightsSpec",
    "terms": "interventions.weights:MergedSpec",
    "vector": "interventions.activations:VectorSpec",
    "neurons": "interventions.activations:NeuronsSpec",
    "prompt": "interventions.portraits:PromptedSpec",
    "portrait": "interventions.portraits:PortraitSpec",
    "roles": "interventions.prompts:RolesSpec",
    "system": "interventions.prompts:SystemSpec",
    "examples": "interventions.prompts:ExamplesSpec",
    "decoding": "interventions.decoding:DecodingSpec",
}
"""The key that says what an intervention is, to its schema."""

SEED = "{seed}"
"""In a path: one intervention, of which each seed has its own."""


class Usual:
    """What most interventions answer: every real number is a strength, and every base fits.

    Attributes:
        steps: The strengths that there are; ``None`` for all real numbers.
    """

    __slots__ = ()
    steps: ClassVar[tuple[float, ...] | None] = None

    def identity(self) -> str:
        """Return the digest of its options and of every file that was read."""
        return identity_of(self)

    def check(self, base: "Checkpoint") -> None:
        """Accept every base."""


class InterventionSpec(Recipe):
    """One thing that is done to the base: an edit of weights or activations, or a prompt."""

    label: str
    strengths: Strengths | None = None

    @field_validator("label")
    @classmethod
    def _is_a_name(cls, label: str) -> str:
        if label == "base" or not label.strip():
            raise ValueError("a label is a name, other than 'base', which is the base itself")
        return label

    @abstractmethod
    def open(self, base: "Checkpoint") -> Intervention:
        """Return the intervention that the keys describe; a study checks it against the base.

        Raises:
            PersonalityVectorError: What it names is missing or damaged.
        """

    def at_seed(self, seed: int) -> "Self":
        """Return it with ``seed`` in place of ``{seed}`` in its paths."""
        text = self.model_dump_json(exclude_unset=True)
        return type(self).model_validate(json.loads(text.replace(SEED, str(seed))))

    @property
    def has_seed(self) -> bool:
        """Whether a path of it names the seed."""
        return SEED in self.model_dump_json()


AnyIntervention = Annotated[
    SerializeAsAny[InterventionSpec],
    BeforeValidator(partial(by_own_key, KINDS, what="an intervention")),
]
"""An intervention of a recipe, recognised by its own key."""


def require_step(intervention: Intervention, strength: float) -> None:
    """Check that an intervention has a strength.

    Raises:
        RecipeError: It has steps, and this is none of them.
        NonFiniteError: The strength is NaN or infinite.
    """
    require_finite(intervention.label, strength)
    steps = intervention.steps
    if steps is None or strength in steps:
        return
    shown = [f"{step:g}" for step in steps]
    if len(shown) > 8:
        shown[2:-1] = ["..."]
    raise RecipeError(
        f"{intervention.label}: has the strengths {enumerated(shown)}, got {strength:g}"
    )


def enumerated(words: list[str]) -> str:
    """Return ``a, b and c``.

    >>> enumerated(["a", "b", "c"]), enumerated(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
