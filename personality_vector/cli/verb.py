"""A verb that carries out a recipe: they all have the same command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from personality_vector.cli import options
from personality_vector.lab import find_recipe, folder_of
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Recipe

R = TypeVar("R", bound=Recipe)
R_contra = TypeVar("R_contra", bound=Recipe, contravariant=True)


@runtime_checkable
class CarryOut(Protocol[R_contra]):
    """What a verb does with a recipe that has been read and checked."""

    def __call__(self, recipe: R_contra, out: Path, *, force: bool, as_json: bool) -> None:
        """Carry out ``recipe``, write ``out`` and print the result."""


def recipe_verb(
    kind: type[R], carry_out: CarryOut[R], check: Callable[[R], dict[str, Any]]
) -> Callable[..., None]:
    """Return the command that reads a recipe of ``kind`` and carries it out.

    ``check`` opens every input without using it; its findings are the plan of ``--dry-run``.
    """

    def verb(
        recipe: options.RecipeArgument,
        settings: options.Settings = [],
        out: options.Out = None,
        dry_run: options.DryRun = False,
        force: options.Force = False,
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        file = find_recipe(recipe)
        read = read_recipe(file, kind, settings, folder_of(recipe))
        folder = options.out_or_default(out, str(file))
        if dry_run:
            plan = {"recipe": read.model_dump(mode="json"), **check(read), "out": str(folder)}
            options.show(plan, as_json=as_json, text=lambda: options.yaml_text(plan))
        else:
            carry_out(read, folder, force=force, as_json=as_json)

    verb.__doc__ = carry_out.__doc__
    return verb
