"""``pvec show``: what a directory is, and what made it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from personality_vector.cli import options


def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A delta, vector, checkpoint or run.")
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what a directory is, and what made it."""
    found = describe(path)
    options.show(found, as_json=as_json, text=lambda: options.yaml_text(found))


def describe(path: Path) -> dict[str, Any]:
    """Return what a directory is, as JSON-like data."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.checkpoint.reader import read_json
    from personality_vector.delta.storage import is_saved_delta
    from personality_vector.manifest import MANIFEST

    manifest = read_json(path / MANIFEST) if (path / MANIFEST).is_file() else {}
    bulky = ("tensors", "files", "losses", "manifest")
    summary = {key: value for key, value in manifest.items() if key not in bulky}
    if is_saved_delta(path):
        return {"path": str(path), **summary, **_delta(path)}
    if (
        manifest.get("kind") not in (None, "merge", "train")
        or (path / "adapter_config.json").is_file()
    ):
        return {"path": str(path), **summary}
    checkpoint = Checkpoint.open(path)
    return {
        "path": str(path),
        "kind": "checkpoint",
        **summary,
        "model_type": checkpoint.config.get("model_type"),
        "tensors": checkpoint.fingerprint.tensors,
        "parameters": checkpoint.fingerprint.parameters,
        "fingerprint": checkpoint.fingerprint.digest,
    }


def _delta(path: Path) -> dict[str, Any]:
    import math

    from personality_vector.checkpoint.reader import read_json

    statistics = read_json(path / "delta.json")["statistics"]
    largest = sorted(statistics, key=lambda name: -statistics[name]["norm"])[:5]
    norm = math.sqrt(sum(row["norm"] ** 2 for row in statistics.values()))
    lost = math.sqrt(sum((row["norm"] - row["stored_norm"]) ** 2 for row in statistics.values()))
    return {
        "tensors": len(statistics),
        "norm": norm,
        "norm_lost_in_storage": lost,
        "largest": {name: statistics[name]["norm"] for name in largest},
    }
