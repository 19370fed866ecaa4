"""``pvec verify``: is an output as it was written, or a checkpoint the merge it should be?"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import personality_vector as pv
from personality_vector.cli import options
from personality_vector.cli.merge import Embeddings, Exclude, Method, Seed, Terms, short_form
from personality_vector.errors import CheckpointError, RecipeError, VerificationError
from personality_vector.files.digests import digests_forgotten
from personality_vector.manifest import WEIGHTS

if TYPE_CHECKING:
    from personality_vector.merging.verifying import Distance


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="An output of this tool, or a merged checkpoint.")
    ],
    base: Annotated[
        str | None, typer.Option("--base", help="The base, to compute a merge again.")
    ] = None,
    term: Terms = [],
    method: Method = None,
    option: options.MethodOption = [],
    exclude: Exclude = [],
    embeddings: Embeddings = None,
    seed: Seed = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check that PATH is as it was written; with --base and --term, that it is that merge.

    Exit code 5 means that it is not, 6 that it cannot be told.
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
    distance = verify_merge(plan, pv.Checkpoint.open(path))
    said = _sentence(path, distance)
    if not distance.is_rounding:
        raise VerificationError(said)
    result = {
        "path": str(path),
        "differing": distance.entries,
        "largest": distance.largest,
        "tensor": distance.tensor,
    }
    options.show(result, as_json=as_json, text=lambda: said)


def _sentence(path: Path, distance: "Distance") -> str:
    if not distance.entries:
        return f"{path}: is this merge, bit for bit"
    found = (
        f"{distance.entries} entries differ by at most {distance.largest:.3g}, in {distance.tensor}"
    )
    if distance.is_rounding:
        return f"{path}: is this merge but for rounding: {found}"
    share = distance.along / distance.change if distance.change else math.inf
    return (
        f"{path}: is not this merge: {found}; {distance.coarse} by more than rounding explains, "
        f"and on the whole by {share:+.2%} of the change"
    )


def _as_written(path: Path) -> dict[str, Any]:
    """Read everything again and return what was compared.

    Raises:
        CheckpointError: It is not an output of this tool.
        VerificationError: It is not as it was written.
    """
    from personality_vector.checkpoint import Checkpoint, read_header
    from personality_vector.delta.storage import is_saved_delta
    from personality_vector.delta.storage import verify as verified
    from personality_vector.files.owned import RESULTS, changes_in, manifest_of

    manifest = manifest_of(path)
    if manifest is None:
        raise CheckpointError(
            f"{path}: is not an output of this tool, so nothing says what it should be; give "
            "--base and --term to compute a merge again"
        )
    for change in changes_in(path, manifest):
        raise VerificationError(f"{path}: is not as it was written: {change}")
    said = f"{len(manifest['files'])} files"
    if is_saved_delta(path):
        said += f" and {verified(path)} tensors"
    elif RESULTS in manifest["files"]:
        said += f" and {len(pv.Run(path).cells())} cells"
    elif WEIGHTS in manifest:
        headers = [read_header(file) for file in sorted(path.glob("*.safetensors"))]
        entries = {name: entry for header in headers for name, entry in header.items()}
        with digests_forgotten():
            said += f" and {Checkpoint(path, entries).fingerprint.tensors} tensors"
    return {"path": str(path), "kind": manifest["kind"], "verified": f"{said} are as written"}
