"""``pvec merge``: write a merged checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from personality_vector.cli import options
from personality_vector.errors import RecipeError
from personality_vector.lab import find_recipe, folder_of
from personality_vector.recipes import MergeRecipe, read_recipe
from personality_vector.recipes.reading import Given, override, parse_value


def merge(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A merge recipe.")
    ] = None,
    settings: options.Settings = [],
    base: Annotated[str | None, typer.Option("--base", help="Short form: the base.")] = None,
    term: Annotated[
        list[str],
        typer.Option(
            "--term",
            metavar="VECTOR=ALPHA",
            help="Repeatable; also 'TUNED - ITS_BASE=ALPHA' for a delta of another base.",
        ),
    ] = [],
    method: Annotated[str | None, typer.Option("--method")] = None,
    option: Annotated[
        list[str], typer.Option("--option", metavar="NAME=VALUE", help="Of the method.")
    ] = [],
    exclude: Annotated[
        list[str],
        typer.Option("--exclude", metavar="WORD", help="embeddings, head, norms, or a pattern."),
    ] = [],
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    out: options.Out = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a merged checkpoint: base + method(alpha * delta, ...).

    By RECIPE, or by --base, --term and --out.
    """
    if recipe is not None and (base or term or method or option):
        raise RecipeError(
            "a RECIPE goes with --set; --base, --term, --method, --option are without"
        )
    if recipe is None and settings:
        raise RecipeError("--set changes a RECIPE; the short form has --method and --option")
    if recipe is not None:
        read = _by_recipe(recipe, settings)
        folder = options.out_or_default(out, recipe)
    else:
        read = _short_form(base, term, method, option)
        folder = _required(out)
    from personality_vector.merging import plan_recipe, write_merge

    plan = plan_recipe(read)
    if dry_run:
        described = {**plan.describe(), "out": str(folder)}
        options.show(described, as_json=as_json, text=lambda: options.yaml_text(described))
        return
    done = write_merge(plan, folder, force=force)
    kept = "" if done.realised is None else f"; rounding kept {done.realised:.2%} of the change"
    result = {key: value for key, value in done.manifest.items() if key not in ("tensors", "files")}
    options.show(
        {"out": str(folder), **result},
        as_json=as_json,
        text=lambda: f"{folder}: {plan.method} of {len(plan.terms)} terms{kept}",
    )


def _by_recipe(recipe: str, settings: list[str]) -> MergeRecipe:
    return read_recipe(find_recipe(recipe), MergeRecipe, settings, folder_of(recipe))


def _required(out: Path | None) -> Path:
    if out is None:
        raise RecipeError("the short form needs --out DIR")
    return out


def _short_form(
    base: str | None, terms: list[str], method: str | None, given: list[str]
) -> MergeRecipe:
    """Return the recipe that ``--base B --term V=0.8 --option k=v`` means."""
    if base is None or not terms:
        raise RecipeError("give a RECIPE, or --base B and at least one --term VECTOR=ALPHA")
    data: dict[str, Any] = {"base": Given(base), "terms": [_term(text) for text in terms]}
    if method:
        data["method"] = method
    for setting in given:
        override(data, f"options.{setting}")
    return MergeRecipe.parse(data, origin="--term", folder=Path.cwd())


def _term(text: str) -> dict[str, Any]:
    vector, equals, alpha = text.rpartition("=")
    if not equals or not vector:
        raise RecipeError(f"--term {text}: write VECTOR=ALPHA, such as vectors/open=0.8")
    value = parse_value(alpha)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecipeError(f"--term {text}: alpha must be a number, such as 0.8, not {alpha!r}")
    return {"tuned": Given(vector), "alpha": value}
