"""The schema of a mergekit YAML, read strictly: mergekit itself ignores keys that it does not know.

What would change the result and cannot be done here is refused by name. The format is described
at https://github.com/arcee-ai/mergekit; a parameter is a number, a gradient over the layers, or a
list of ``{filter, value}``.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    model_validator,
)

from personality_vector.lab import expanded
from personality_vector.recipes.schema import Recipe, Whole

Scalar = bool | int | float
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class Rule:
    """A value for the tensors whose name contains ``filter``; several points are a gradient."""

    points: tuple[Scalar, ...]
    filter: str | None = None


def _rules(value: Any) -> tuple[Rule, ...]:
    """Return the rules, first hit wins, that a number, gradient or list of conditions means."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return tuple(_condition(one) for one in value)
    return (Rule(_points(value)),)


def _condition(given: dict[str, Any]) -> Rule:
    unknown = set(given) - {"filter", "value"}
    if unknown or "value" not in given:
        raise ValueError(f"a condition has the keys filter and value, not {', '.join(given)}")
    chosen = given.get("filter")
    if chosen is not None and not (isinstance(chosen, str) and chosen):
        raise ValueError(f"a filter is a part of tensor names, such as mlp, not {chosen!r}")
    return Rule(_points(given["value"]), None if chosen == "*" else chosen)


def _points(value: Any) -> tuple[Scalar, ...]:
    points = tuple(value) if isinstance(value, list) else (value,)
    for point in points:
        if not isinstance(point, bool | int | float):
            raise ValueError(f"give a number, true or false, not {point!r:.40}")
        if not math.isfinite(point):
            raise ValueError(f"give a finite number, not {point!r}")
    if not points:
        raise ValueError("an empty list is not a value")
    return points


def _reference(value: Any, info: Any) -> Any:
    """Resolve a path against the YAML's folder, then the working directory; else a Hub id."""
    if not isinstance(value, str):
        raise ValueError(f"give a path or a Hub id as a text, not {value!r:.60}")
    folder = Path((info.context or {}).get("folder", "."))
    path = expanded(value)
    for candidate in (folder / path, path):
        if candidate.is_dir():
            return str(candidate.resolve())
    if "+" in value:
        raise ValueError(
            f"{value}: MODEL+LORA is not read here; write a merge recipe with `tuned: ADAPTER`"
        )
    if "@" in value:
        raise ValueError(f"{value}: revisions are not read here; give a directory that has it")
    return value if _HUB_ID.fullmatch(value) else str(path.absolute())


Reference = Annotated[str, PlainValidator(_reference)]
Settings = Annotated[
    dict[str, Annotated[tuple[Rule, ...], PlainValidator(_rules)]],
    BeforeValidator(lambda value: value or {}),
]
"""Parameters by name, as they are given at one level of the file."""

DtypeName = Annotated[
    Literal["float32", "bfloat16", "float16"],
    BeforeValidator(lambda value: str(value).removeprefix("torch.")),
]


class ModelSpec(Recipe):
    """One entry of ``models``."""

    model: Reference
    parameters: Settings = Field(default_factory=dict)


class SourceSpec(ModelSpec):
    """One entry of ``sources``: a run of layers of a model."""

    layer_range: tuple[Whole, Whole]


class SliceSpec(Recipe):
    """One entry of ``slices``: layers that are made of equally many layers of each source."""

    sources: tuple[SourceSpec, ...] = Field(min_length=1)
    base_model: Reference | None = None
    parameters: Settings = Field(default_factory=dict)


class TokenizerSpec(Recipe):
    """``tokenizer``; only that of the base, unchanged."""

    source: str = "union"
    tokens: dict[str, Any] | None = None
    pad_to_multiple_of: Whole | None = None


def _plain_tokenizer(spec: TokenizerSpec | None) -> TokenizerSpec | None:
    if spec is not None and (spec.tokens or spec.pad_to_multiple_of):
        raise ValueError("changing tokens or padding the vocabulary is not done here")
    return spec


def _plain_template(template: str) -> str:
    if template != "auto":
        raise ValueError(
            f"{template!r} is not done here: the output has the template of the base; leave it out"
        )
    return template


class MergekitRecipe(Recipe):
    """A whole mergekit YAML."""

    merge_method: str
    base_model: Reference | None = None
    models: tuple[ModelSpec, ...] = ()
    slices: tuple[SliceSpec, ...] = ()
    parameters: Settings = Field(default_factory=dict)
    dtype: DtypeName | None = None
    out_dtype: DtypeName | None = None
    tokenizer_source: str | None = None
    tokenizer: Annotated[TokenizerSpec | None, AfterValidator(_plain_tokenizer)] = None
    chat_template: Annotated[str, AfterValidator(_plain_template)] | None = None
    modules: Any = None

    @model_validator(mode="after")
    def _expressible(self) -> "MergekitRecipe":
        if self.modules is not None:
            raise ValueError("modules is not read here; a merge covers the whole checkpoint")
        if bool(self.models) == bool(self.slices):
            raise ValueError("give either models or slices")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise ValueError("give tokenizer_source or tokenizer, not both")
        source = self.vocabulary
        if source is not None and source not in ("base", self.base_model):
            raise ValueError(
                f"tokenizer source {source!r} would change tokens; only base is done here"
            )
        return self

    @property
    def vocabulary(self) -> str | None:
        """Whose tokenizer is asked for, if any."""
        return self.tokenizer.source if self.tokenizer is not None else self.tokenizer_source

    @property
    def references(self) -> tuple[str, ...]:
        """Every model in the order of its first mention; the base last unless mentioned."""
        sources = self.models or tuple(one for part in self.slices for one in part.sources)
        bases = [part.base_model for part in self.slices if part.base_model]
        bases += [self.base_model] if self.base_model else []
        return tuple(dict.fromkeys([*(one.model for one in sources), *bases]))
