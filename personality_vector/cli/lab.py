"""``pvec recipes``: list the shipped recipes, or copy one to edit."""

from pathlib import Path
from typing import Annotated

import typer

from personality_vector.cli import options
from personality_vector.errors import OutputExistsError
from personality_vector.lab import find_recipe, recipes

app = typer.Typer(help="List the shipped recipes, or copy one.", invoke_without_command=True)


@app.callback()
def list_recipes(context: typer.Context, as_json: options.Json = False) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is None:
        shipped = {name: str(path) for name, path in recipes().items()}
        options.show(shipped, as_json=as_json, text=lambda: "\n".join(shipped))


@app.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="A file or a directory.")],
) -> None:
    """Copy the shipped recipe NAME to DEST."""
    source = find_recipe(name)
    target = destination / source.name if destination.is_dir() else destination
    if target.exists():
        raise OutputExistsError(f"{target}: exists; choose another destination")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    options.show(None, as_json=False, text=lambda: str(target))
