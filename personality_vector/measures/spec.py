"""What a measure of a recipe has in common with all others, and which kinds there are."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, SerializeAsAny, model_serializer

from personality_vector.recipes.schema import Recipe, Registry, Words, by_only_key, key_of
from personality_vector.subject.identity import identity_of
from personality_vector.subject.protocols import Better, Findings

if TYPE_CHECKING:
    from typing import Self

    from pydantic import SerializerFunctionWrapHandler

    from personality_vector.subject.protocols import Measure
    from personality_vector.subject.subject import Subject

KINDS: Registry = {
    "coherence": "measures.coherence:CoherenceSpec",
    "divergence": "measures.divergence:DivergenceSpec",
    "guards": "measures.guards:GuardsSpec",
    "interview": "measures.interview:InterviewSpec",
    "likelihood": "measures.likelihood:LikelihoodSpec",
}
"""The key that says what is measured, to its schema."""


class MeasureSpec(Recipe):
    """Something that is measured; ``name`` tells two measures of one kind apart."""

    name: Words | None = None

    @property
    def key(self) -> str:
        """The key that it is recognised by."""
        return key_of(KINDS, type(self))

    @property
    def called(self) -> str:
        """Its name in tables."""
        return self.name or self.key

    @abstractmethod
    def open(self) -> "Measure":
        """Return the measure; what it needs is read and checked, but no model is loaded yet."""

    @model_serializer(mode="wrap")
    def _under_its_key(self, handler: "SerializerFunctionWrapHandler") -> dict[str, Any]:
        return {self.key: handler(self)}


class BaseMeasure:
    """What most measures have in common: they are compared with nothing, and collect readings."""

    __slots__ = ()
    version: ClassVar[int] = 1
    scale: ClassVar[tuple[float, float] | None] = None
    better: ClassVar[Better] = "towards_pole"

    def identity(self) -> str:
        """Return a digest of all fields, but for those that change speed and memory only."""
        return identity_of(self)

    def prepare(self, base: "Subject", /) -> "Self":  # noqa: ARG002
        """Return it as it is."""
        return self

    def finish(self, base: "Subject", collected: Any, /) -> Findings:  # noqa: ARG002
        """Return what was collected."""
        return Findings(readings=collected)


def _parsed(value: Any, info: Any) -> Any:
    return by_only_key(KINDS, value, info, "a measure")


AnyMeasure = Annotated[SerializeAsAny[MeasureSpec], BeforeValidator(_parsed)]
"""A measure of a recipe, recognised by its only key."""
