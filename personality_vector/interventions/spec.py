"""What interventions have in common: their keys in a recipe, and which strengths there are."""

import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

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
    "terms": "interventions.merged:MergedSpec",
    "vector": "interventions.activations:VectorSpec",
    "neurons": "interventions.neurons.steering:NeuronsSpec",
    "prompt": "interventions.prompts:PromptedSpec",
    "portrait": "interventions.prompts:PortraitSpec",
    "roles": "interventions.prompts:RolesSpec",
    "system": "interventions.prompts:SystemSpec",
    "examples": "interventions.examples:ExamplesSpec",
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
            raise ValueError(f"the label {label!r} is taken; results use it for themselves")
        return label

    def open(self, base: "Checkpoint") -> Intervention:
        """Return the intervention, opened and checked against the base.

        Raises:
            PersonalityVectorError: What it names is missing, damaged or of another model.
        """
        found = self.read(base)
        found.check(base)
        return found

    @abstractmethod
    def read(self, base: "Checkpoint") -> Intervention:
        """Return the intervention that the keys describe; its files are read."""

    def at_seed(self, seed: int) -> "Self":
        """Return it with ``seed`` in place of ``{seed}`` in its paths."""
        text = self.model_dump_json(exclude_unset=True)
        return type(self).model_validate(json.loads(text.replace(SEED, str(seed))))

    @property
    def has_seed(self) -> bool:
        """Whether a path of it names the seed."""
        return SEED in self.model_dump_json()


def _parsed(value: Any, info: Any) -> Any:
    return by_own_key(KINDS, value, info, "an intervention")


AnyIntervention = Annotated[SerializeAsAny[InterventionSpec], BeforeValidator(_parsed)]
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
    listed = f"{', '.join(shown[:-1])} and {shown[-1]}"
    raise RecipeError(f"{intervention.label}: has the strengths {listed}, got {strength:g}")
