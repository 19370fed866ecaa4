"""The options that verbs share, and how a verb says what it did."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from personality_vector.progress import silence

if TYPE_CHECKING:
    from personality_vector.steering import SteeringVector


def silenced(on: bool) -> bool:
    """Draw no progress bars if ``--quiet`` was given."""
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
    Path | None, typer.Option("--out", help="Directory to write. Default: under runs/.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that this tool wrote.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="Of the loaded model.")
]
Prompts = Annotated[
    Path, typer.Option("--prompts", metavar="FILE", help="A text file, a prompt on each line.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.", callback=silenced)]


def out_or_default(out: Path | None, recipe: str) -> Path:
    """Return ``--out``, or ``runs/`` and the recipe's folder and name."""
    path = Path(recipe).resolve()
    return out if out is not None else Path("runs") / f"{path.parent.name}-{path.stem}"


def show(result: Any, *, as_json: bool, text: Callable[[], str]) -> None:
    """Print a result on stdout: as JSON, or as text."""
    if as_json:
        sys.stdout.write(json.dumps(result, indent=2, ensure_ascii=False, default=str) + "\n")
    else:
        sys.stdout.write(text().rstrip("\n") + "\n")


def save_vector(vector: "SteeringVector", out: Path, *, force: bool, as_json: bool) -> None:
    """Save a steering vector, and print where it is and how long it is at each layer."""
    vector.save(out, force=force)
    norms = {layer: vector.norm(layer) for layer in vector.layers}
    result = {"out": str(out), "label": vector.label, "counts": vector.counts, "norms": norms}
    shown = ", ".join(f"{layer}: {norm:.3g}" for layer, norm in norms.items())
    show(
        result,
        as_json=as_json,
        text=lambda: f"{out}: {vector.label}, norm by layer: {shown}",
    )


def yaml_text(data: Any) -> str:
    """Return data as YAML, for a plan that a person reads."""
    import yaml

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
