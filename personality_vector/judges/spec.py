"""What a judge of a recipe has in common with all others, and which kinds there are."""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny, model_serializer

from personality_vector.recipes.schema import Recipe, Registry, by_only_key, key_of

if TYPE_CHECKING:
    from pydantic import SerializerFunctionWrapHandler

    from personality_vector.subject.protocols import Judge

KINDS: Registry = {
    "classifier": "judges.classifier:ClassifierSpec",
    "endpoint": "judges.endpoint:EndpointSpec",
    "local": "judges.local:LocalSpec",
}
"""The key that says who judges, to its schema."""


class JudgeSpec(Recipe):
    """Who rates answers."""

    @abstractmethod
    def open(self) -> "Judge":
        """Return the judge; what it needs is read and checked, but no model is loaded yet."""

    @model_serializer(mode="wrap")
    def _under_its_key(self, handler: "SerializerFunctionWrapHandler") -> dict[str, Any]:
        return {key_of(KINDS, type(self)): handler(self)}


def _parsed(value: Any, info: Any) -> Any:
    return by_only_key(KINDS, value, info, "a judge")


AnyJudge = Annotated[SerializeAsAny[JudgeSpec], BeforeValidator(_parsed)]
"""A judge of a recipe, recognised by its only key."""


class JudgeRecipe(Recipe):
    """A judge alone, as ``pvec judge`` takes it."""

    judge: AnyJudge
