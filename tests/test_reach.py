"""Everything that the package defines is reached from a verb, a recipe or a name of ``pv``.

A name in a docstring or a test reaches nothing, nor does code that is not reached itself.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import personality_vector as pv

NAME = pv.__name__
PACKAGE = Path(pv.__file__).parent
ROOTS = [
    f"{NAME}.cli.main:main",
    *(f"{NAME}.{room}:_Room.__call__" for room in pv._ROOMS),
]
CALLED_FROM_OUTSIDE = {
    f"{NAME}:__getattr__": "Python calls it for a name of pv",
    f"{NAME}:__dir__": "Python calls it for the names of pv",
    f"{NAME}.finetuning.callbacks:Monitor.on_train_begin": "TRL calls it",
    f"{NAME}.finetuning.callbacks:Monitor.on_log": "TRL calls it",
    f"{NAME}.finetuning.callbacks:Monitor.on_step_end": "TRL calls it",
    f"{NAME}.finetuning.callbacks:Clock.on_step_begin": "TRL calls it",
    f"{NAME}.finetuning.callbacks:Clock.on_step_end": "TRL calls it",
    f"{NAME}.finetuning.processes:SpreadCheck.on_train_begin": "TRL calls it",
    f"{NAME}.finetuning.resuming:Checkpoints.on_step_end": "TRL calls it",
    f"{NAME}.finetuning.resuming:Checkpoints.on_save": "TRL calls it",
    f"{NAME}.finetuning.trainer:GuidedTrainer.compute_loss": "TRL calls it",
    f"{NAME}.finetuning.trainer:GuidedTrainer.training_step": "TRL calls it",
    f"{NAME}.recipes.reading:_StrictLoader.compose_node": "PyYAML calls it",
    f"{NAME}.recipes.reading:_StrictLoader.construct_mapping": "PyYAML calls it",
    f"{NAME}.recipes.reading:_StrictLoader.construct_scalar": "PyYAML calls it",
}
REGISTERED_BY = {"callback", "overload", "field_validator", "model_validator", "model_serializer"}
"""Decorators that hand a function to a library, which calls it."""

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


class Code:
    """Holds the modules of a package, and finds what their names stand for."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.trees = {module: ast.parse(text) for module, text in texts.items()}
        self.parts: dict[str, list[ast.AST]] = {}
        for module, tree in self.trees.items():
            self.parts |= {f"{module}:{name}": nodes for name, nodes in parts_of(tree)}
        self.imports = {module: self.imports_in(tree) for module, tree in self.trees.items()}
        self.resolved = cache(self._resolved)

    def imports_in(self, *nodes: ast.AST) -> dict[str, tuple[str, str]]:
        """Return the module and the name there of everything that code imports from the package."""
        return {
            alias.asname or alias.name: (getattr(node, "module", alias.name), alias.name)
            for outer in nodes
            for node in ast.walk(outer)
            if isinstance(node, ast.ImportFrom | ast.Import)
            for alias in node.names
            if getattr(node, "module", alias.name) in self.trees
        }

    def _resolved(self, module: str, name: str) -> str | None:
        """Return the module, or the definition ``module:name``, that a name stands for."""
        if f"{module}:{name}" in self.parts:
            return f"{module}:{name}"
        if f"{module}.{name}" in self.trees:
            return f"{module}.{name}"
        if module == NAME:
            return self.resolved(f"{NAME}.{pv._HOMES[name]}", name) if name in pv._HOMES else None
        return self.imported(*self.imports[module].get(name, ("", "")))

    def imported(self, home: str, name: str) -> str | None:
        return home or None if home in ("", name) else self.resolved(home, name)

    def mentioned(self, module: str, nodes: list[ast.AST]) -> Iterator[str]:
        """Yield every definition that code mentions, and ``.name`` for an attribute."""
        local = {} if len(nodes) != 1 else self.imports_in(*nodes)

        def meant(name: str) -> str | None:
            return self.imported(*local[name]) if name in local else self.resolved(module, name)

        for node in (inner for outer in nodes for inner in ast.walk(outer)):
            match node:
                case ast.Name(id=name):
                    yield meant(name) or ""
                case ast.keyword(arg=name):
                    yield f".{name}"
                case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=name), *_]):
                    yield f".{name}"
                case ast.Attribute(value=owner, attr=name):
                    yield f".{name}"
                    home = meant(owner.id) if isinstance(owner, ast.Name) else None
                    yield (home in self.trees and self.resolved(home, name)) or ""
                case ast.Constant(value=str(text)):
                    yield from self.named(module, text)

    def named(self, module: str, text: str) -> Iterator[str]:
        """Yield what a string names: a module, ``room.file:Class`` in a registry, or a type."""
        if text in self.trees:
            yield f"{text}:"
        elif match := re.fullmatch(r"([a-z_.]+)[.:]([A-Z]\w+)", text):
            yield f"{NAME}.{match[1]}:{match[2]}"
        elif re.fullmatch(r"[\w.\[\]|, ]*[A-Z][\w.\[\]|, ]*", text) and len(text) < 90:
            for word in re.findall(r"\w+", text):
                yield self.resolved(module, word) or ""

    def unreached(self, roots: list[str]) -> set[str]:
        """Return the definitions that no root leads to."""
        public = (self.resolved(NAME, name) or "" for name in pv._HOMES)
        open_, seen, attributes = [*roots, *public], set[str](), set[str]()
        while open_:
            while open_:
                name = open_.pop()
                if name not in self.parts or name in seen:
                    continue
                seen.add(name)
                module = name.partition(":")[0]
                open_.append(f"{module}:")  # the statements of its module
                for found in self.mentioned(module, self.parts[name]):
                    attributes.add(found) if found.startswith(".") else open_.append(found)
            open_ += [
                name for name in self.parts.keys() - seen if self._called(name, seen, attributes)
            ]
        return {name for name in self.parts.keys() - seen if not name.endswith(":")}

    def _called(self, name: str, seen: set[str], attributes: set[str]) -> bool:
        """Return whether a method of a reached class, or a registered function, is called."""
        module, _, place = name.partition(":")
        owner, dot, method = place.rpartition(".")
        decorators = {word for node in self.parts[name] for word in decorators_of(node)}
        if not dot:
            return bool(decorators & REGISTERED_BY) and f"{module}:" in seen
        is_python = method.startswith("__") and method.endswith("__")
        is_called = is_python or f".{method}" in attributes or decorators & REGISTERED_BY
        return bool(is_called) and f"{module}:{owner}" in seen


def decorators_of(node: ast.AST) -> Iterator[str]:
    for decorator in getattr(node, "decorator_list", ()):
        for inner in ast.walk(decorator):
            if isinstance(inner, ast.Name | ast.Attribute):
                yield inner.id if isinstance(inner, ast.Name) else inner.attr


def parts_of(tree: ast.Module) -> Iterator[tuple[str, list[ast.AST]]]:
    """Yield every function, class and method, and under no name the rest of the module."""
    rest: list[ast.AST] = []
    for node in tree.body:
        if isinstance(node, Function):
            yield node.name, without_docstring(node)
        elif isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, Function)]
            others = [part for part in without_docstring(node)[0].body if part not in methods]
            yield node.name, [*node.bases, *node.keywords, *node.decorator_list, *others]
            for method in methods:
                yield f"{node.name}.{method.name}", without_docstring(method)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            rest.append(node)
    yield "", rest


def without_docstring(node: ast.AST) -> list[ast.AST]:
    if ast.get_docstring(node) is not None:
        node.body = node.body[1:] or [ast.Pass()]
    return [node]


def package() -> dict[str, str]:
    files = {
        file: file.relative_to(PACKAGE.parent).with_suffix("") for file in PACKAGE.rglob("*.py")
    }
    return {
        ".".join(place.parts).removesuffix(".__init__"): file.read_text(encoding="utf-8")
        for file, place in files.items()
    }


def kinds() -> list[str]:
    """Return the schemas of kinds that are files: to add a kind, add a file."""
    from personality_vector.judges import spec as judges
    from personality_vector.measures import spec as measures

    return [f"{NAME}.{place}" for room in (judges, measures) for place in room.KINDS.values()]


def test_everything_is_reached():
    unreached = Code(package()).unreached([*ROOTS, *kinds(), *CALLED_FROM_OUTSIDE])
    assert sorted(unreached) == []


def test_what_nothing_reaches_is_named():
    texts = package()
    texts[f"{NAME}.lab"] += (
        "\n\ndef dead() -> None:\n    '''Not mentioned.'''\n    deader()\n"
        "\n\ndef deader() -> None:\n    '''Only mentioned by dead(), and here: deader.'''\n"
        "\n\nclass Dead:\n    def method(self) -> None: ...\n"
    )
    found = Code(texts).unreached([*ROOTS, *kinds(), *CALLED_FROM_OUTSIDE])
    assert {name for name in found if name.startswith(f"{NAME}.lab")} == {
        f"{NAME}.lab:{name}" for name in ("dead", "deader", "Dead", "Dead.method")
    }
