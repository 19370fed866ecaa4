"""Reading YAML strictly: an error is one sentence that names the file and the key."""

import errno
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from personality_vector.errors import RecipeError, blame, reason_of
from personality_vector.files.reading import read_text
from personality_vector.recipes.schema import Recipe, Typed

_MOST_BYTES, _MOST_PARTS = 1_000_000, 100_000
R = TypeVar("R", bound=Recipe)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases (bombs), keys given twice (the last would win), half characters."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(
                None, None, "aliases are not supported; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        found = super().construct_scalar(node)
        try:
            str(found).encode()
        except UnicodeEncodeError as error:
            raise yaml.constructor.ConstructorError(
                None, None, "half of a surrogate pair is not a character", node.start_mark
            ) from error
        return found

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


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        RecipeError: The file is missing, larger than 1 MB, not YAML, or not a mapping.
    """
    try:
        data = yaml.load(_read_text(path), Loader=_StrictLoader)  # noqa: S506  (a SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        raise RecipeError(f"{path}:{line} {error.problem}") from error
    except RecipeError:
        raise
    except Exception as error:  # `!!float ''` is an IndexError, `!!timestamp x` another
        raise RecipeError(f"{path}: not YAML: {reason_of(error)}") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, this is {_kind(data)}")
    return data


def _read_text(path: Path) -> str:
    try:
        text = read_text(path, _MOST_BYTES)
    except FileNotFoundError as error:
        raise RecipeError(
            f"{path}: no such file; `pvec recipes` lists the shipped recipes"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) == errno.EFBIG:
            raise RecipeError(f"{path}: a recipe of more than 1 MB is refused") from error
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{path}: cannot be read: {reason}") from error
    if sum(map(text.count, ",:[{\n")) > _MOST_PARTS:
        raise RecipeError(f"{path}: a recipe of more than {_MOST_PARTS:,} parts is refused")
    return text


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
        place = _place(holder, parent, setting)
        holder = holder[place] if isinstance(holder, list) else holder.setdefault(place, {})
    with blame(setting=setting):
        holder[_place(holder, last, setting)] = parse_value(text)


def parse_value(text: str) -> Any:
    """Read a value typed on the command line as YAML, and mark its strings as :class:`Typed`."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a SafeLoader)
    except Exception as error:
        raise RecipeError(f"{text[:80]!r} is not a YAML value") from error
    return _mark(value)


def _mark(value: Any) -> Any:
    if isinstance(value, str):
        return Typed(value)
    if isinstance(value, list):
        return [_mark(element) for element in value]
    if isinstance(value, dict):
        return {key: _mark(element) for key, element in value.items()}
    return value


def _place(holder: Any, key: str, setting: str) -> Any:
    """Return the key or index that ``key`` stands for in a mapping or a list."""
    if isinstance(holder, dict):
        return key
    if not isinstance(holder, list):
        raise RecipeError(f"--set {setting}: {key!r} would lie inside {_kind(holder)}")
    if not key.isdecimal() or int(key) >= len(holder):
        raise RecipeError(
            f"--set {setting}: {key!r} is not one of the {len(holder)} elements, numbered from 0"
        )
    return int(key)


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", type(None): "empty"}
    return names.get(type(value), f"a {type(value).__name__}")
