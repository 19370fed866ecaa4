"""``pvec verify``: whether an output is as it was written, or a checkpoint the merge it should be."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.cli.merge import Embeddings, Exclude, Terms, short_form
from personality_vector.errors import CheckpointError, RecipeError, VerificationError

if TYPE_CHECKING:
    from personality_vector.merging.verifying import Difference


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An output of this tool, or a merged checkpoint.")
    ],
    base: Annotated[
        str | None, typer.Option("--base", help="The base, to compute a merge again.")
    ] = None,
    term: Terms = [],
    method: Annotated[str | None, typer.Option("--method", help="Such as ties or dare.")] = None,
    option: options.MethodOption = [],
    exclude: Exclude = [],
    embeddings: Embeddings = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of random masks.")] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check that PATH is as it was written; with --base and --term, that it is that merge.

    Exit code 5: it is not. 6: it cannot be told.
    """
    if base is None and not term:
        if method or option or exclude or embeddings or seed is not None:
            raise RecipeError("--method and what belongs to it need --base and --term")
        found = _as_written(path)
        options.show(found, as_json=as_json, text=lambda: f"{path}: {found['verified']}")
        return
    from personality_vector.merging.plan import plan_recipe
    from personality_vector.merging.verifying import verify_merge

    recipe = short_form(base, term, method, option, exclude, embeddings, seed, "cpu", [])
    plan = plan_recipe(recipe)
    difference = verify_merge(plan, pv.Checkpoint.open(path))
    said = _sentence(path, difference)
    if difference.coarse:
        raise VerificationError(said)
    result = {
        "path": str(path),
        "differing": difference.entries,
        "largest": difference.largest,
        "tensor": difference.tensor,
    }
    options.show(result, as_json=as_json, text=lambda: said)


def _sentence(path: Path, difference: "Difference") -> str:
    if not difference.entries:
        return f"{path}: is this merge, bit for bit"
    where = f"at most {difference.largest:.3g}, in {difference.tensor}"
    if not difference.coarse:
        return (
            f"{path}: is this merge but for rounding: {difference.entries} entries differ by {where}"
        )
    return (
        f"{path}: is not this merge: {difference.entries} entries differ by {where}, "
        f"{difference.coarse} of them by more than one rounding"
    )


def _as_written(path: Path) -> dict[str, Any]:
    """Read everything again and return what was compared."""
    from personality_vector.checkpoint import read_manifest
    from personality_vector.delta.storage import is_saved_delta

    manifest = read_manifest(path)
    if not isinstance(manifest.get("files"), dict):
        raise CheckpointError(
            f"{path}: is not an output of this tool, so nothing says what it should be; give --base "
            "and --term to compute a merge again"
        )
    found = require_as_written(path, manifest)
    if is_saved_delta(path):
        found = f"{pv.Delta.load(path).verify()} tensors and {found}"
    return {"path": str(path), "kind": manifest["kind"], "verified": f"{found} are as written"}
