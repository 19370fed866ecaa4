"""``pvec merge`` writes a merged checkpoint, ``pvec export-mergekit`` the YAML of mergekit."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from personality_vector import files
from personality_vector.cli import options
from personality_vector.errors import RecipeError
from personality_vector.lab import find_recipe, folder_of
from personality_vector.merging.recipe import MergeRecipe, is_mergekit
from personality_vector.recipes.reading import override, parse_value, read_recipe, read_yaml
from personality_vector.recipes.schema import Typed

if TYPE_CHECKING:
    from collections.abc import Callable

    from personality_vector.merging.engine import MergeReport
    from personality_vector.merging.mergekit.bridge import BridgePlan
    from personality_vector.merging.plan import MergePlan

_MINUS = " - "
_BULKY = ("tensors", "files", "digests")
_MUCH = 0.95
"""If rounding keeps a smaller share of the change than this, the result says what helps."""
Terms = Annotated[
    list[str],
    typer.Option(
        "--term",
        metavar="VECTOR=ALPHA",
        help="What to add and its factor; repeatable. 'TUNED - ITS_BASE=ALPHA' is a delta of "
        "another base.",
    ),
]
Method = Annotated[str | None, typer.Option("--method", help="Such as ties or dare.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of random masks.")]
Exclude = Annotated[
    list[str],
    typer.Option(
        "--exclude",
        metavar="WORD",
        help="Tensors to leave alone: embeddings, head, norms, vision, or a pattern over names.",
    ),
]

Embeddings = Annotated[
    Literal["strict", "skip", "match"] | None,
    typer.Option(
        "--embeddings",
        help="Where vocabularies differ: strict (the default) refuses, skip leaves embeddings and "
        "head alone, match carries rows by token.",
    ),
]


def merge(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="[RECIPE]", help="A merge recipe, or a YAML of mergekit."),
    ] = None,
    settings: options.Settings = [],
    base: Annotated[str | None, typer.Option("--base", help="The base, if no RECIPE.")] = None,
    term: Terms = [],
    method: Method = None,
    option: options.MethodOption = [],
    exclude: Exclude = [],
    embeddings: Embeddings = None,
    seed: Seed = None,
    device: options.Device = "auto",
    out: options.Out = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write a merged checkpoint: base + method(alpha * delta, ...).

    Give a RECIPE, or --base, --term and --out.
    """
    if recipe is not None and (base or term or method or option or exclude or embeddings):
        raise RecipeError("a RECIPE replaces --base, --term, --method and what belongs to them")
    folder = out or (options.out_or_default(out, recipe) if recipe else Path("runs/merged"))
    asked = (
        _from_file(recipe, settings, seed, device)
        if recipe is not None
        else short_form(base, term, method, option, exclude, embeddings, seed, device, settings)
    )
    files.begin(asked.models if isinstance(asked, MergeRecipe) and not dry_run else ())
    from personality_vector.merging.plan import MergePlan, forecast, plan_recipe

    plan = plan_recipe(asked) if isinstance(asked, MergeRecipe) else asked

    if options.plan_only(
        lambda: plan.describe() | (forecast(plan, folder) if isinstance(plan, MergePlan) else {}),
        *(folder, dry_run, force, as_json, plan.inputs, "merge"),
    ):
        return
    done = _writer_of(plan)(plan, folder, force=force)
    result = {key: value for key, value in done.manifest.items() if key not in _BULKY}
    options.show({"out": str(folder), **result}, as_json=as_json, text=lambda: _summary(plan, done))


def export_mergekit(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A merge recipe.")],
    settings: options.Settings = [],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write. Default: print it.")
    ] = None,
) -> None:
    """Write the mergekit YAML that does what RECIPE does, or say what it cannot express."""
    from personality_vector.merging.mergekit.export import export_mergekit as export

    text = export(read_recipe(find_recipe(recipe), MergeRecipe, settings, folder_of(recipe)))
    if out is None:
        typer.echo(text, nl=False)
    elif out.exists():
        raise RecipeError(f"{out}: exists; choose another --out")
    else:
        files.write_file(out, text.encode())


def _writer_of(plan: "MergePlan | BridgePlan") -> "Callable[..., MergeReport]":
    """Return what carries out a plan."""
    from personality_vector.merging.plan import MergePlan

    if isinstance(plan, MergePlan):
        from personality_vector.merging.engine import write_merge

        return write_merge
    from personality_vector.merging.mergekit.bridge import write_bridge

    return write_bridge


def _summary(plan: "MergePlan | BridgePlan", done: "MergeReport") -> str:
    """Return one line about what was written, and the notes on the recipe."""
    terms = len(done.manifest["terms"])
    kept = "" if done.realised is None else f"; rounding kept {done.realised:.1%} of the change"
    if done.realised is not None and done.realised < _MUCH:
        kept += " (all of it on average with output: {rounding: stochastic})"
    notes = "".join(f"\nnote: {note}" for note in (*plan.notes, *_carried(done)))
    return f"{done.path}: {plan.method} of {terms} terms{kept}{notes}"


def _carried(done: "MergeReport") -> list[str]:
    """Say of each term by how many tokens its embeddings were matched."""
    rows = [(term["label"], term.get("transfer", term)) for term in done.manifest["terms"]]
    return [
        "{}: {carried} tokens carried, {own} rows of the base kept, {without_place} tokens without "
        "a place in the base".format(label, **found["tokens"])
        for label, found in rows
        if "tokens" in found
    ]


def _from_file(
    recipe: str, settings: list[str], seed: int | None, device: str
) -> "MergeRecipe | MergePlan | BridgePlan":
    file, folder = find_recipe(recipe), folder_of(recipe)
    data = read_yaml(file)
    if not is_mergekit(data):
        if seed is not None:
            raise RecipeError(f"{file}: has its own seed; change it with --set seed={seed}")
        read = read_recipe(file, MergeRecipe, settings, folder)
        return read if device == "auto" else read.model_copy(update={"device": device})
    from personality_vector.merging.mergekit.plan import plan_mergekit

    for setting in settings:
        override(data, setting)
    if device not in ("auto", "cpu"):
        raise RecipeError(f"{file}: a YAML of mergekit is merged on the cpu, not on {device}")
    return plan_mergekit(
        data, origin=str(file), folder=folder or file.resolve().parent, seed=seed or 0
    )


def short_form(
    base: str | None,
    terms: list[str],
    method: str | None,
    given: list[str],
    exclude: list[str],
    embeddings: str | None,
    seed: int | None,
    device: str,
    settings: list[str],
) -> MergeRecipe:
    """Return the recipe that ``--base B --term V=0.8 --option k=v`` means."""
    if settings:
        raise RecipeError("--set changes a RECIPE; the short form has --method and --option")
    if base is None or not terms:
        raise RecipeError("give a RECIPE, or --base B and at least one --term VECTOR=ALPHA")
    data: dict[str, Any] = {
        "base": Typed(base),
        "terms": [_term(text) for text in terms],
        "exclude": exclude,
        "seed": seed or 0,
        "device": device,
        **({"method": method} if method else {}),
        **({"embeddings": embeddings} if embeddings else {}),
    }
    for setting in given:
        override(data, f"options.{setting}")
    return MergeRecipe.parse(data, origin="merge", folder=Path.cwd())


def _term(text: str) -> dict[str, Any]:
    vector, equals, number = text.rpartition("=")
    if not equals or not vector.strip():
        raise RecipeError(f"--term {text}: write VECTOR=ALPHA, such as vectors/open=0.8")
    alpha = parse_value(number)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise RecipeError(f"--term {text}: alpha must be a number, such as 0.8, not {number!r}")
    tuned, minus, of = vector.partition(_MINUS)
    if not minus:
        return {"tuned": Typed(vector), "alpha": alpha}
    if not tuned.strip() or not of.strip():
        raise RecipeError(f"--term {text}: write 'TUNED - ITS_BASE=ALPHA'")
    return {"tuned": Typed(tuned.strip()), "of": Typed(of.strip()), "alpha": alpha}
