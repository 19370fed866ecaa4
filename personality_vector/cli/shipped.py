"""``pvec recipes`` lists the shipped recipes, ``pvec demo`` does the whole job with some."""

from pathlib import Path
from typing import Annotated

import typer

from personality_vector.cli import options
from personality_vector.errors import OutputExistsError, RecipeError
from personality_vector.files import write_file
from personality_vector.lab import find_recipe
from personality_vector.lab import recipes as shipped_recipes


def recipes(
    words: Annotated[
        list[str],
        typer.Argument(metavar="[copy NAME DEST]", help="Copy a recipe to a file or folder."),
    ] = [],
    as_json: options.Json = False,
) -> None:
    """List the shipped recipes, or copy one."""
    if not words:
        shipped = {name: str(path) for name, path in shipped_recipes().items()}
        options.show(shipped, as_json=as_json, text=lambda: "\n".join(shipped))
        return
    if len(words) != 3 or words[0] != "copy":
        raise RecipeError("write `pvec recipes`, or `pvec recipes copy NAME DEST`")
    source, destination = find_recipe(words[1]), Path(words[2])
    is_folder = destination.is_dir() or words[2].endswith("/")
    target = destination / source.name if is_folder else destination
    if target.exists():
        raise OutputExistsError(f"{target}: exists; choose another destination")
    write_file(target, source.read_bytes())
    options.show({"copied": str(target)}, as_json=as_json, text=lambda: str(target))


def demo(
    out: options.OutDir = Path("runs/demo"),
    force: options.Force = False,
    quiet: options.Quiet = False,
) -> None:
    """Do the whole job on the embedded model.

    Train, diff, merge, steer, sweep and compare. It prints every command that it carries out, and
    takes two minutes and no network. What is complete in --out is not done again.
    """
    from personality_vector.cli.main import app
    from personality_vector.demo.run import run

    with options.resumable(out):
        run(out, lambda words: app(words, standalone_mode=False), force=force)
