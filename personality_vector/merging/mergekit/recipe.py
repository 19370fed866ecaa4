"""The schema of a mergekit YAML, read strictly: mergekit itself ignores keys that it does not know.

What would change the result and cannot be done here is refused by name. The format is described
at https://github.com/arcee-ai/mergekit; a parameter is a number, a gradient over the layers, or a
list of ``{filter, value}``.
"""

import math
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from personality_vector.lab import expanded
from personality_vector.recipes.schema import Dtype, Recipe, Whole

Scalar = bool | int | float
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SIGNS = {
    "+": "MODEL+LORA is not read here; write a merge recipe with `tuned: ADAPTER`",
    "@": "revisions are not read here; give a directory that has it",
}


def _points(value: Any) -> tuple[Scalar, ...]:
    points = tuple(value) if isinstance(value, list | tuple) else (value,)
    for point in points:
        if not isinstance(point, bool | int | float):
            raise ValueError(f"give a number, true or false, not {point!r:.40}")
        if not math.isfinite(point):
            raise ValueError(f"give a finite number, not {point!r}")
    if not points:
        raise ValueError("an empty list is not a value")
    return points


class Rule(Recipe):
    """A value for the tensors whose name contains ``filter``; several points are a gradient."""

    points: Annotated[tuple[Scalar, ...], BeforeValidator(_points), Field(alias="value")]
    filter: Annotated[
        Annotated[str, Field(min_length=1)] | None,
        BeforeValidator(lambda value: None if value == "*" else value),
    ] = None


def _rules(value: Any) -> Any:
    """Return the rules, of which the first that fits counts, that one parameter is given by."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return value
    return [Rule(points=_points(value))]


def _reference(value: Any, info: Any) -> Any:
    """Resolve a path against the YAML's folder, then the working directory; else a Hub id."""
    if not isinstance(value, str):
        raise ValueError(f"give a path or a Hub id as a text, not {value!r:.60}")
    folder = Path((info.context or {}).get("folder", "."))
    path = expanded(value)
    for candidate in (folder / path, path):
        if candidate.is_dir():
            return str(candidate.resolve())
    for sign, refusal in _SIGNS.items():
        if sign in value:
            raise ValueError(f"{value}: {refusal}")
    return value if _HUB_ID.fullmatch(value) else str(path.absolute())


Reference = Annotated[str, PlainValidator(_reference)]
Settings = Annotated[
    dict[str, Annotated[tuple[Rule, ...], BeforeValidator(_rules)]],
    BeforeValidator(lambda value: value or {}),
]
"""Parameters by name, as they are given at one level of the file."""

DtypeName = Annotated[Dtype, BeforeValidator(lambda value: str(value).removeprefix("torch."))]


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
    tokenizer: TokenizerSpec | None = None
    chat_template: str | None = None
    modules: Any = None

    @model_validator(mode="after")
    def _expressible(self) -> "MergekitRecipe":
        given, source = self.tokenizer, self.vocabulary
        for is_wrong, message in (
            (
                self.modules is not None,
                "modules is not read here; a merge covers the whole checkpoint",
            ),
            (bool(self.models) == bool(self.slices), "give either models or slices"),
            (
                given and (given.tokens or given.pad_to_multiple_of),
                "tokenizer: changing tokens or padding the vocabulary is not done here",
            ),
            (
                given and self.tokenizer_source is not None,
                "give tokenizer_source or tokenizer, not both",
            ),
            (
                source not in (None, "base", self.base_model),
                f"tokenizer source {source!r} would change tokens; only base is done here",
            ),
            (
                self.chat_template not in (None, "auto"),
                f"chat_template: {self.chat_template!r} is not done here: the output has the "
                "template of the base; leave it out",
            ),
        ):
            if is_wrong:
                raise ValueError(message)
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
