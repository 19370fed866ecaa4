"""What verbs share: options, the command line of a recipe, and printing plans and results."""

import json
import math
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml

import personality_vector as pv
from personality_vector.errors import OutputExistsError, RecipeError, require_new
from personality_vector.lab import find_recipe, folder_of
from personality_vector.progress import silence
from personality_vector.recipes.reading import override, read_recipe

if TYPE_CHECKING:
    from personality_vector.subject import Template


def silenced(on: bool) -> bool:
    """Turn off progress bars if ``--quiet`` is on."""
    if on:
        silence()
    return on


RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A YAML file, or a shipped recipe by name.")
]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change the recipe; repeatable."),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Directory to write. Default: a folder under runs/.")
]
OutDir = Annotated[Path, typer.Option("--out", help="Directory to write.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that this tool wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option("--device", help="Where to compute: auto, cpu or cuda.")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Number of texts in one forward pass.")
]
Model = Annotated[
    str,
    typer.Option(
        "--model", help="The model: a directory, Hub id, builtin:demo or builtin:smollm2."
    ),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    typer.Option("--dtype", help="Dtype to load the model in."),
]
LongestReply = Annotated[
    int, typer.Option("--max-new-tokens", min=1, help="Longest reply, in tokens.")
]
PoleOption = Annotated[
    str | None, typer.Option("--pole", metavar="TRAIT:LEVEL", help="The pole that it expresses.")
]
Layers = Annotated[
    list[int], typer.Option("--layer", help="0-based decoder block, -1 for the last; repeatable.")
]
MethodOption = Annotated[
    list[str],
    typer.Option("--option", metavar="NAME=VALUE", help="Option of --method; repeatable."),
]
Prompts = Annotated[
    Path,
    typer.Option("--prompts", metavar="FILE", help="A text file with one prompt on each line."),
]
Figure = Annotated[
    Path | None,
    typer.Option("--figure", metavar="FILE", help="Draw the result into a .svg or .png file."),
]
ChatSettings = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY.PATH=VALUE",
        help="chat_template=FILE or template_options.NAME=VALUE, as in a recipe; repeatable.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.", callback=silenced)]


def recipe_verb(
    kind: str,
    carry_out: Callable[[Any, Path, bool, bool], None],
    check: Callable[[Any], dict[str, Any]],
) -> Callable[..., None]:
    """Return the command that reads a recipe of ``kind`` and carries it out.

    ``kind`` says where the class of the recipe lies, such as ``study.recipe.SweepRecipe``; only the
    class of the verb that runs is imported.
    ``carry_out`` writes a directory and prints the result; it is given the recipe, the directory,
    and whether ``--force`` and ``--json`` are on. ``check`` opens every input without using it;
    what it finds is the plan of ``--dry-run``.
    """

    def verb(
        recipe: RecipeArgument,
        settings: Settings = [],
        out: Out = None,
        dry_run: DryRun = False,
        force: Force = False,
        as_json: Json = False,
        quiet: Quiet = False,
    ) -> None:
        read, folder = read_by(kind, recipe, settings, out)
        if dry_run:
            show_plan(read, check(read), folder, as_json=as_json)
        else:
            carry_out(read, folder, force, as_json)

    verb.__doc__ = carry_out.__doc__
    return verb


def read_by(kind: str, recipe: str, settings: list[str], out: Path | None) -> tuple[Any, Path]:
    """Return a recipe of ``kind``, and the directory that it is carried out into."""
    file = find_recipe(recipe)
    room, _, name = f"personality_vector.{kind}".rpartition(".")
    read = read_recipe(file, getattr(import_module(room), name), settings, folder_of(recipe))
    return read, out_or_default(out, str(file))


def show_plan(recipe: Any, found: dict[str, Any], out: Path, *, as_json: bool) -> None:
    """Print what a recipe is going to do: itself, what was found in its inputs, and its output."""
    plan = {"recipe": recipe.model_dump(mode="json"), **found, "out": str(out)}
    show(plan, as_json=as_json, text=lambda: yaml_text(plan))


def out_or_default(out: Path | None, recipe: str) -> Path:
    """Return ``--out``, or by default a folder under ``runs/`` named after the recipe."""
    path = Path(recipe).resolve()
    return out if out is not None else Path("runs") / f"{path.parent.name}-{path.stem}"


@contextmanager
def resumable(out: Path) -> Generator[None]:
    """Tell a user who interrupts the block that nothing in ``out`` is measured again."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"{out}: what is finished is kept; the same command resumes\n")
        raise


def show(result: Any, *, as_json: bool, text: Callable[[], str]) -> None:
    """Print a result on stdout, as JSON or as text."""
    if as_json:
        # Escapes of a terminal that lacks a character are not those of JSON.
        is_ascii = not str(sys.stdout.encoding).lower().startswith("utf")
        text_of = json.dumps(result, indent=2, ensure_ascii=is_ascii, default=str)
        sys.stdout.write(text_of + "\n")
    else:
        sys.stdout.write(text().rstrip("\n") + "\n")


def plan_only(
    plan: Callable[[], dict[str, Any]],
    out: Path | None,
    dry_run: bool,
    force: bool,
    as_json: bool,
    inputs: Sequence[Path] = (),
    kind: str = "steering_vector",
) -> bool:
    """Print the plan if that is all that is asked for, and return whether it is.

    Args:
        plan: Returns what the verb is going to do, as JSON-like data.
        out: What it will write, which is refused now rather than after the work.
        dry_run: Whether to print the plan.
        force: Whether an output of ours may be replaced.
        as_json: Whether to print JSON.
        inputs: Directories that the output must not lie in.
        kind: Kind of the manifest of the output.
    """
    if out is not None:
        require_writable(out, kind, force=force, inputs=inputs)
    if dry_run:
        found = plan() | ({"out": str(out)} if out is not None else {})
        show(found, as_json=as_json, text=lambda: yaml_text(found))
    return dry_run


def require_writable(out: Path, kind: str, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse an output that cannot be written or replaced, before the work and not after it."""
    from personality_vector.files import AtomicDirectory

    AtomicDirectory(out, kind=kind, force=force, inputs=inputs)


def require_drawable(figure: Path | None, *, force: bool) -> None:
    """Refuse to draw over a file, unless ``force`` is on and this tool drew it.

    Raises:
        RecipeError: The file is neither SVG nor PNG by its name.
        OutputExistsError: It exists.
    """
    if figure is None:
        return
    if figure.suffix not in (".svg", ".png"):
        raise RecipeError(f"--figure {figure}: draw into a file that ends with .svg or .png")
    require_new(figure, force=force, option="--figure")
    if figure.exists():
        from personality_vector.files.reading import read_bytes
        from personality_vector.report.figures import MARK

        if MARK.encode() not in read_bytes(figure):
            raise OutputExistsError(
                f"{figure}: was not drawn by this tool, so it is never replaced; choose another"
            )


def template(settings: Sequence[str]) -> "Template":
    """Return the chat template and its options that a command line gives.

    Raises:
        RecipeError: The template is missing or not one, or a key is not one of a template.
    """
    from personality_vector.subject.spec import TemplatedRecipe

    given: dict[str, Any] = {}
    for setting in settings:
        override(given, setting)
    return TemplatedRecipe.parse(given, origin="--set", folder=Path.cwd()).template


def opened(model: str, device: str) -> "tuple[pv.Checkpoint, str]":
    """Return a checkpoint and the device to load it on, once both are known to be there."""
    from personality_vector.subject.models import resolve_device

    return pv.Checkpoint.open(model), resolve_device(device)


def save_vector(
    vector: "pv.SteeringVector", model: "pv.Checkpoint", out: Path, *, force: bool, as_json: bool
) -> None:
    """Save a steering vector of a model, and print its path and its norm at each layer."""
    from personality_vector.checkpoint import revision_of

    made_with = {**vector.made_with, **revision_of(model.path)}
    replace(vector, model=model.fingerprint.digest, made_with=made_with).save(out, force=force)
    norms = {layer: vector.norm(layer) for layer in vector.layers}
    shown = ", ".join(f"{layer}: {norm:.3g}" for layer, norm in norms.items())
    show(
        {"out": str(out), "label": vector.label, "counts": vector.counts, "norms": norms},
        as_json=as_json,
        text=lambda: f"{out}: {vector.label}, norm by layer: {shown}",
    )


def yaml_text(data: Any) -> str:
    """Return data as YAML, for a plan that a person reads."""
    return yaml.safe_dump(
        json.loads(json.dumps(data, default=str)), sort_keys=False, allow_unicode=True
    )


def without_nan(data: Any) -> Any:
    """Return data with ``null`` for NaN, which JSON does not have."""
    if isinstance(data, dict):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and math.isnan(data) else data
