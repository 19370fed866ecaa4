"""What interventions have in common: their keys in a recipe, and which strengths there are."""

import json
import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny, field_validator

from personality_vector.errors import NonFiniteError, RecipeError
from personality_vector.recipes.schema import PoleField, Recipe, Strengths, by_own_key
from personality_vector.subject import Checkpoint, Intervention, identity_of
from personality_vector.traits import Pole

KINDS: Mapping[str, str] = {
    "delta": "interventions.weights:WeightsSpec",
    "tuned": "interventions.weights:WeightsSpec",
    "terms": "interventions.weights:MergedSpec",
    "vector": "interventions.activations:VectorSpec",
    "neurons": "interventions.activations:NeuronsSpec",
    "prompt": "interventions.portraits:PromptedSpec",
    "portrait": "interventions.portraits:PortraitSpec",
    "roles": "interventions.prompts:RolesSpec",
    "persona": "interventions.prompts:PersonaSpec",
    "system": "interventions.prompts:SystemSpec",
    "examples": "interventions.prompts:ExamplesSpec",
    "twins": "interventions.twins:TwinsSpec",
    "decoding": "interventions.decoding:DecodingSpec",
    "discussion": "interventions.discussion:DiscussionSpec",
}
"""The key that says what an intervention is, to its schema."""

SEED = "{seed}"
"""In a path: each seed has an intervention of its own."""


class BaseIntervention:
    """What most interventions share: every real number is a strength, and every base fits.

    Attributes:
        steps: The possible strengths; ``None`` for all real numbers.
    """

    steps: ClassVar[tuple[float, ...] | None] = None

    def identity(self) -> str:
        """Return the digest of its options and of every file that was read."""
        return identity_of(self)

    def check(self, base: Checkpoint) -> None:
        """Accept every base."""


class InterventionSpec(Recipe):
    """One change of the base: of weights or activations, by a prompt, decoding or a discussion.

    ``poles`` are those that a positive strength is meant to move towards, and tables average over
    a ``group``. What is ``on_top_of`` others comes after them; each of these has one ``strength``.
    """

    label: str
    strengths: Strengths | None = None
    poles: tuple[PoleField, ...] = ()
    group: str = ""
    on_top_of: "tuple[_Below, ...]" = ()

    @field_validator("label")
    @classmethod
    def _require_name(cls, label: str) -> str:
        if label == "base" or not label.strip():
            raise ValueError(
                "a label must be a name other than 'base', which is the label of the base itself"
            )
        return label

    @field_validator("poles")
    @classmethod
    def _require_one_pole_of_a_trait(cls, poles: tuple[Pole, ...]) -> tuple[Pole, ...]:
        traits = [pole.trait for pole in poles]
        if len(set(traits)) < len(traits):
            raise ValueError("an intervention moves one pole of a trait, so name a trait once")
        return poles

    @abstractmethod
    def open(self, base: Checkpoint) -> Intervention:
        """Return the intervention that the keys describe; a study checks it against the base.

        Raises:
            PersonalityVectorError: What it names is missing or damaged.
        """

    def at_seed(self, seed: int) -> "InterventionSpec":
        """Return this intervention with ``seed`` in place of ``{seed}`` in its paths."""
        text = self.model_dump_json(exclude_unset=True).replace(SEED, str(seed))
        return type(self).model_validate(json.loads(text))

    @property
    def has_seed(self) -> bool:
        """Whether one of its paths contains ``{seed}``."""
        return SEED in self.model_dump_json()


AnyIntervention = Annotated[
    SerializeAsAny[InterventionSpec],
    BeforeValidator(partial(by_own_key, KINDS, what="an intervention")),
]
"""An intervention of a recipe, recognised by its own key."""


def _fixed(value: Any, info: Any) -> Any:
    """Return an intervention that others are on top of; its one strength never changes."""
    if isinstance(value, Mapping):
        rest = {key: each for key, each in value.items() if key != "strength"}
        own = {"strengths": [value["strength"]]} if "strength" in value else {}
        value = by_own_key(KINDS, {"label": "below", **rest, **own}, info, "an intervention")
    if isinstance(value, InterventionSpec) and len(value.strengths or ()) != 1:
        raise ValueError(f"{value.label}: what others are on top of needs one strength")
    return value


_Below = Annotated[SerializeAsAny[InterventionSpec], BeforeValidator(_fixed)]
InterventionSpec.model_rebuild()


def require_step(intervention: Intervention, strength: float) -> None:
    """Check that an intervention has a strength.

    Raises:
        RecipeError: It has steps, and this is not one of them.
        NonFiniteError: The strength is NaN or infinite.
    """
    if not math.isfinite(strength):
        raise NonFiniteError(
            f"{intervention.label}: the strength must be a finite number, got {strength}"
        )
    if intervention.steps is not None and strength not in intervention.steps:
        shown = [f"{step:g}" for step in intervention.steps]
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
