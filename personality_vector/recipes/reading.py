"""Reading YAML strictly: every failure is one sentence that names the file and the key."""

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from personality_vector.errors import RecipeError

_MOST_BYTES = 1_000_000
R = TypeVar("R", bound="Recipe")


class Recipe(BaseModel):
    """A frozen, validated mapping; a key that it does not know is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )

    @classmethod
    def parse(cls: type[R], data: Mapping[str, Any], *, origin: str, folder: Path) -> R:
        """Validate ``data``; relative paths in it are resolved against ``folder``.

        Raises:
            RecipeError: One sentence about the first thing that is wrong.
        """
        try:
            return cls.model_validate(data, context={"folder": folder})
        except ValidationError as error:
            raise RecipeError(f"{origin}: {sentence(cls, error)}") from error


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases (bombs) and without duplicate keys (the last would win)."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(
                None, None, "aliases are not supported; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002  (PyYAML's signature)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1 reads 1e-5 as a text, since it has no dot; YAML 1.2 and everybody else as a number.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


class Given(str):
    """A value from the command line; a relative path in it counts from the working directory."""

    __slots__ = ()


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        RecipeError: The file is missing, larger than 1 MB, not YAML, or not a mapping.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RecipeError(f"{path}: a recipe of more than 1 MB is refused")
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506  (a SafeLoader)
    except FileNotFoundError as error:
        raise RecipeError(
            f"{path}: no such recipe; `pvec recipes` lists the shipped ones"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise RecipeError(f"{path}:{line} {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is {_kind(data)}")
    return data


def read_recipe(
    path: Path, kind: type[R], settings: Sequence[str] = (), folder: Path | None = None
) -> R:
    """Return the recipe in ``path`` after ``settings`` of the form ``key.path=value``.

    Relative paths in it start in ``folder``, by default that of the file.

    Raises:
        RecipeError: The file, a setting or the resulting recipe is wrong.
    """
    data = read_yaml(path)
    for setting in settings:
        override(data, setting)
    return kind.parse(data, origin=str(path), folder=folder or path.resolve().parent)


def override(data: dict[str, Any], setting: str) -> None:
    """Change ``data`` in place as ``key.path=value`` says; list elements are numbered from 0.

    Raises:
        RecipeError: The setting has another form, or leads through something that is not there.
    """
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {setting}: write key.path=value, such as terms.0.alpha=0.5")
    *parents, last = key.split(".")
    holder: Any = data
    for parent in parents:
        holder = _child(holder, parent, setting)
    _assign(holder, last, parse_value(text), setting)


def parse_value(text: str) -> Any:
    """Return a value typed on the command line, read as YAML; strings are marked as given there."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{text[:80]!r} is not a YAML value") from error
    return _mark(value)


def _mark(value: Any) -> Any:
    if isinstance(value, str):
        return Given(value)
    if isinstance(value, list):
        return [_mark(element) for element in value]
    if isinstance(value, dict):
        return {key: _mark(element) for key, element in value.items()}
    return value


def _child(holder: Any, key: str, setting: str) -> Any:
    if isinstance(holder, list):
        return holder[_position(holder, key, setting)]
    if isinstance(holder, dict):
        return holder.setdefault(key, {})
    raise RecipeError(f"--set {setting}: {key!r} would lie inside {_kind(holder)}")


def _assign(holder: Any, key: str, value: Any, setting: str) -> None:
    if isinstance(holder, list):
        holder[_position(holder, key, setting)] = value
    elif isinstance(holder, dict):
        holder[key] = value
    else:
        raise RecipeError(f"--set {setting}: {key!r} would lie inside {_kind(holder)}")


def _position(holder: list[Any], key: str, setting: str) -> int:
    if not key.isdecimal() or int(key) >= len(holder):
        raise RecipeError(
            f"--set {setting}: {key!r} is not one of the {len(holder)} elements, numbered from 0"
        )
    return int(key)


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", type(None): "empty"}
    return names.get(type(value), f"a {type(value).__name__}")


def sentence(recipe: type[BaseModel], error: ValidationError) -> str:
    """Return the most telling complaint: unknown keys first, as a typo also makes a key missing."""
    complaints = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    first = complaints[0]
    # pydantic adds the member of a union that it tried.
    parts = [str(part) for part in first["loc"] if part not in ("float", "int", "str", "bool")]
    where = ".".join(parts)
    if first["type"] == "extra_forbidden":
        return f"unknown key {where!r}{_suggestion(recipe, first['loc'])}"
    if first["type"] == "missing":
        return f"the key {where!r} is missing"
    message = first["msg"].removeprefix("Value error, ").replace("valid tuple", "list, such as [1]")
    if first["type"] == "too_short":
        message = "needs at least one"
    if first["type"] in ("float_type", "int_type", "tuple_type"):
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
