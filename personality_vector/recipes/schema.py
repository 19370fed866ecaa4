"""The parts of schemas: a strict mapping, the types of its fields, and its error messages.

A union is told apart by key: a mapping is recognised by a key of its own, never by ``kind:``. A
registry maps the key to the schema as ``module:Class``, which is imported when it is needed, so
that reading a recipe imports only what the recipe uses.
"""

import difflib
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    ValidationError,
)

from personality_vector.errors import RecipeError, TraitError
from personality_vector.lab import BUILTIN, builtin, expanded
from personality_vector.traits import Pole

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
R = TypeVar("R", bound="Recipe")
Registry = Mapping[str, str]


class Recipe(BaseModel):
    """A frozen, validated mapping; a key that it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )

    @classmethod
    def parse(cls: type[R], data: Mapping[str, Any], *, origin: str, folder: Path) -> R:
        """Validate ``data``; relative paths in it are resolved against ``folder``.

        Raises:
            RecipeError: It says in one sentence what is wrong first.
        """
        try:
            return cls.model_validate(data, context={"folder": folder})
        except ValidationError as error:
            raise RecipeError(f"{origin}: {sentence(cls, error)}") from error


class Typed(str):
    """A value typed on the command line: a relative path in it starts in the working directory."""

    __slots__ = ()


def _pole(value: Any) -> Any:
    try:
        return Pole.parse(value) if isinstance(value, str) else value
    except TraitError as error:
        raise ValueError(str(error)) from error


PoleField = Annotated[Pole, BeforeValidator(_pole), PlainSerializer(str)]
Real = Annotated[float, Strict()]
"""A number as YAML writes it, neither a text nor a boolean."""

Whole = Annotated[int, Strict()]
"""A whole number as YAML writes it."""

_BLANK, _DEVICE = r"\S", r"^(auto|cpu|cuda(:\d+)?|mps)$"
_NAME = r"^[a-z][a-z0-9_-]*$"
_SIZE = r"^\d+(\.\d+)?\s*([KMG]B)$"
_PATTERNS = {
    _BLANK: "needs at least one word",
    _DEVICE: "must be auto, cpu, cuda, cuda:N or mps",
    _NAME: "a name is lower-case letters, digits, - and _, and it begins with a letter, "
    "such as stoic-sailor",
    _SIZE: "must be a size such as 5GB, 200MB or 64KB",
}
"""What a value that does not match a pattern should be, in words."""

Words = Annotated[str, Field(pattern=_BLANK)]
"""A text that is not blank."""

Name = Annotated[str, Field(pattern=_NAME)]
"""The name of a trait or a persona."""

Device = Annotated[str, Field(pattern=_DEVICE)]
Size = Annotated[str, Field(pattern=_SIZE)]
Dtype = Literal["float32", "bfloat16", "float16"]


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return ``values``, or refuse one that is given twice."""
    if len(set(values)) < len(values):
        raise ValueError("a value is given twice")
    return values


Strengths = Annotated[tuple[Real, ...], Field(min_length=1), AfterValidator(distinct)]

Layers = Annotated[tuple[Whole, ...], Field(min_length=1), AfterValidator(distinct)]
"""Decoder blocks from 0, ``-1`` the last."""


def located(value: Any, info: Any) -> Any:
    """Return the absolute path that a text in a recipe means, and any other value unchanged."""
    if not isinstance(value, str):
        return value
    folder = (info.context or {}).get("folder")
    try:
        if value.startswith(BUILTIN):
            return builtin(value)
        path = expanded(value)
    except RecipeError as error:
        raise ValueError(str(error)) from error
    if folder is None or isinstance(value, Typed):
        return path.absolute()
    return (Path(folder) / path).resolve()


def _model(value: Any, info: Any) -> Any:
    if not isinstance(value, str):
        return value
    path = Path(located(value, info))
    return str(value) if _HUB_ID.fullmatch(value) and not path.exists() else str(path)


def _data(value: Any, info: Any) -> Any:
    if not isinstance(value, str):
        return value
    path = located(value, info)
    names_hub = "/" in value and _HUB_ID.fullmatch(value)
    is_file = Path(path).exists() or Path(path).suffix in DATA_ENDINGS
    return str(value) if names_hub and not is_file else path


LocalPath = Annotated[Path, BeforeValidator(located)]
"""A file or folder on this machine."""

DATA_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
DataRef = Annotated[Path | str, BeforeValidator(_data)]
"""A data file or folder on this machine, or the id of a data set on the Hub, ``OWNER/NAME``."""

ModelRef = Annotated[str, BeforeValidator(_model)]
"""A checkpoint directory, ``builtin:demo``, ``builtin:smollm2``, or a Hub id such as
``meta-llama/Llama-3.1-8B``."""


def sentence(recipe: type[BaseModel], error: ValidationError) -> str:
    """Return the most useful complaint: unknown keys first, as a typo also makes a key missing."""
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    # pydantic adds the member of a union that it tried.
    where = ".".join(str(p) for p in first["loc"] if p not in ("float", "int", "str", "bool"))
    message = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list, in brackets")
    match first["type"]:
        case "extra_forbidden":
            return f"unknown key {where!r}{_suggestion(recipe, first['loc'])}"
        case "missing":
            return f"the key {where!r} is missing"
        case "string_pattern_mismatch":
            wanted = _PATTERNS.get(first["ctx"]["pattern"], message)
            message = f"{wanted}, not {first['input']!r:.40}"
        case "too_short":
            message = "needs at least one"
        case "model_type" | "dict_type":
            message = f"give keys with their values, not {first['input']!r:.40}"
        case "float_type" | "int_type" | "tuple_type":
            message += f", not {first['input']!r:.40}"
    return f"{where}: {message}" if where else message


def _suggestion(recipe: type[BaseModel], location: tuple[int | str, ...]) -> str:
    known = _fields_at(recipe, location[:-1])
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known keys are {', '.join(sorted(known))}" if known else ""


def _fields_at(recipe: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the model that ``location`` leads to."""
    model: Any = recipe
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the first model inside an annotation such as ``tuple[TermSpec, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in inner if model is not None), None)


def kinds(room: str, ending: str) -> Registry:
    """Return the registry of a room in which each kind is a file: to add a kind, add a file.

    The key is the name of the file; the schema has the name of the file followed by ``ending``.
    """
    names = [one.name for one in iter_modules([str(Path(__file__).parents[1] / room)])]
    return {
        name: f"{room}.{name}:{name.title().replace('_', '')}{ending}"
        for name in names
        if name != "spec"
    }


def schema_of(registry: Registry, key: str) -> type[Recipe]:
    """Return the schema that a key stands for."""
    module, _, name = registry[key].partition(":")
    found: type[Recipe] = getattr(import_module(f"personality_vector.{module}"), name)
    return found


def key_of(registry: Registry, schema: type[Recipe]) -> str:
    """Return the key that a schema is recognised by."""
    place = f"{schema.__module__.removeprefix('personality_vector.')}:{schema.__name__}"
    return next(key for key, known in registry.items() if known == place)


def by_own_key(registry: Registry, value: Any, info: Any, what: str) -> Any:
    """Return ``{label: ..., delta: ...}`` as the schema of its key, here ``delta``.

    Raises:
        ValueError: It has no such key or keys of two kinds, or its schema refuses it.
    """
    if not isinstance(value, Mapping):
        return value
    keys = [key for key in registry if value.get(key) is not None]
    if len(keys) > 1 and len({registry[key] for key in keys}) > 1:
        raise ValueError(
            f"{what} has keys of two kinds, {keys[0]} and {keys[1]}: give exactly one of "
            f"{_listed(registry)}"
        )
    if not keys:
        raise ValueError(f"{_unknown(registry, value)}give exactly one of {_listed(registry)}")
    return _validated(schema_of(registry, keys[0]), value, info)


def by_only_key(registry: Registry, value: Any, info: Any, what: str) -> Any:
    """Return ``{likelihood: {...}}`` as the schema of its one key; a bare word means no options.

    Raises:
        ValueError: The key is unknown or not alone, or its schema refuses what it holds.
    """
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping):
        return value
    if len(value) != 1:
        raise ValueError(
            f"{what} is one key with its options below it, such as {next(iter(registry))}: "
            f"{{...}}; this one has {len(value)} keys"
        )
    ((key, body),) = value.items()
    if key not in registry:
        raise ValueError(f"{_unknown(registry, value)}known are {_listed(registry)}")
    return _validated(schema_of(registry, key), body or {}, info)


def _validated(schema: type[Recipe], value: Any, info: Any) -> Recipe:
    try:
        return schema.model_validate(value, context=info.context)
    except ValidationError as error:
        raise ValueError(sentence(schema, error)) from error
    except RecipeError as error:
        raise ValueError(str(error)) from error


def _unknown(registry: Registry, value: Mapping[str, Any]) -> str:
    for key in value:
        close = difflib.get_close_matches(str(key), registry, n=1)
        if close:
            return f"unknown key {key!r}; did you mean {close[0]!r}? "
    return ""


def _listed(registry: Registry) -> str:
    *most, last = registry
    return f"{', '.join(most)} or {last}" if most else last
