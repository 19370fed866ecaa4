"""``pvec profile``: alphas that shift several traits at once as asked for."""

from typing import TYPE_CHECKING, Annotated

import typer

from personality_vector.cli import options

if TYPE_CHECKING:
    from pathlib import Path

    from personality_vector.study.profile.run import Search

TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="TRAIT=SHIFT,...",
        help="Wanted shifts against the base, such as extraversion=+0.6,neuroticism=-0.4.",
    ),
]


def profile(
    recipe: options.RecipeArgument,
    target: TargetOption = None,
    settings: options.Settings = [],
    out: options.Out = None,
    dry_run: options.DryRun = False,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Find the alphas of a merge that shift traits as asked for, or say how near it comes.

    Each vector is measured alone, which gives the cross-talk; then merges are measured, until every
    target lies within the 95 % interval of its shift. Measurements are kept in OUT.run, so that the
    same command resumes. OUT/merge.yaml makes the model.
    """
    given = settings if target is None else [*settings, f"target={target}"]
    read, folder = options.read_by("study.profile.recipe.ProfileRecipe", recipe, given, out)
    options.require_writable(folder, "profile", force=force)
    from personality_vector.study.profile.run import Search

    search = Search.open(read)
    if dry_run:
        options.show_plan(read, search.plan(), folder, as_json=as_json)
    else:
        _carry_out(search, folder, force=force, as_json=as_json)


def _carry_out(search: "Search", out: "Path", *, force: bool, as_json: bool) -> None:
    from personality_vector.report.profile import save_profile
    from personality_vector.report.tables import print_frame
    from personality_vector.study.profile.run import profile

    with options.resumable(out):
        found = profile(search, out.with_name(f"{out.name}.run"))
    save_profile(found, out, force=force)
    if as_json:
        options.show({"out": str(out), **found.record()}, as_json=True, text=str)
        return
    print_frame(f"cross-talk: {found.unit} per unit of alpha", found.matrix())
    print_frame("alphas", found.weights())
    print_frame(f"shifts against the base, {found.unit}", found.attempts())
    if found.curve:
        print_frame("shifts at multiples of the best alphas", found.ray())
    typer.echo("\n".join([*found.remarks(), found.verdict()]))
    typer.echo(f"the model: pvec merge {out / 'merge.yaml'} --out DIR")
