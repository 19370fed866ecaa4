"""Field types that schemas share: poles, numbers, texts, layers."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, Strict

from personality_vector.errors import TraitError
from personality_vector.traits import Pole


def _pole(value: Any) -> Any:
    try:
        return Pole.parse(value) if isinstance(value, str) else value
    except TraitError as error:
        raise ValueError(str(error)) from error


PoleField = Annotated[Pole, BeforeValidator(_pole), PlainSerializer(str)]
Real = Annotated[float, Strict()]
"""A number, as YAML writes it: neither a text nor a boolean."""

Whole = Annotated[int, Strict()]
"""A whole number, likewise."""

Words = Annotated[str, Field(pattern=r"\S")]
"""A text that is not blank."""

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
Dtype = Literal["float32", "bfloat16", "float16"]


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return ``values``, or refuse one that is given twice."""
    if len(set(values)) < len(values):
        raise ValueError("a value is given twice")
    return values


Strengths = Annotated[tuple[Real, ...], Field(min_length=1), AfterValidator(distinct)]

Layers = Annotated[tuple[Whole, ...], Field(min_length=1), AfterValidator(distinct)]
"""Decoder blocks from 0, ``-1`` the last."""
