"""``pvec show``: what a directory is, and what made it."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality_vector.cli import options
from personality_vector.errors import RecipeError

if TYPE_CHECKING:
    from personality_vector.delta.record import DeltaRecord

_BULKY = ("tensors", "files", "losses", "manifest")
_TABLES = ("layers", "modules")


def show(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A delta, vector, checkpoint or run.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read a saved delta again and compare every hash.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what a directory is, and what made it."""
    found = describe(path)
    if verify:
        found["verified"] = _verified(path)
    known = [name for name in (*_TABLES, "by_tensor") if isinstance(found.get(name), dict)]
    tables = {} if as_json else {name: found.pop(name) for name in known}
    options.show(found, as_json=as_json, text=lambda: options.yaml_text(found))
    for name in _TABLES:
        if tables.get(name):
            _print_totals(name, tables[name])


def describe(path: Path) -> dict[str, Any]:
    """Return what a directory is, as JSON-like data."""
    from personality_vector.checkpoint.reader import read_json
    from personality_vector.delta.lora import is_adapter
    from personality_vector.delta.storage import is_saved_delta
    from personality_vector.manifest import MANIFEST

    manifest = read_json(path / MANIFEST) if (path / MANIFEST).is_file() else {}
    summary = {key: value for key, value in manifest.items() if key not in _BULKY}
    if is_saved_delta(path):
        return {"path": str(path), **summary, **_delta(path)}
    if is_adapter(path):
        return {"path": str(path), "kind": "adapter", **summary, **_adapter(path)}
    if manifest.get("kind") not in (None, "merge", "train"):
        return {"path": str(path), **summary}
    return {"path": str(path), "kind": "checkpoint", **summary, **_checkpoint(path)}


def _checkpoint(path: Path) -> dict[str, Any]:
    from personality_vector.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(path)
    return {
        "model_type": checkpoint.config.get("model_type"),
        "tensors": checkpoint.fingerprint.tensors,
        "parameters": checkpoint.fingerprint.parameters,
        "fingerprint": checkpoint.fingerprint.digest,
    }


def _adapter(path: Path) -> dict[str, Any]:
    from personality_vector.checkpoint.reader import read_json

    config = read_json(path / "adapter_config.json")
    keys = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules")
    return {"adapter": {key: config.get(key) for key in keys}}


def _delta(path: Path) -> dict[str, Any]:
    """Return what the record says; no tensor is read."""
    from personality_vector.delta.layers import layer_of, module_of
    from personality_vector.delta.record import read_record

    record = read_record(path)
    return {
        "restores_the_fine_tune": bool(record.tuned_dtypes or record.reference),
        **({"reference": record.reference.model_dump()} if record.reference else {}),
        **_total(record, record.total),
        "layers": {k: _total(record, total) for k, total in record.totals(layer_of).items()},
        "modules": {k: _total(record, total) for k, total in record.totals(module_of).items()},
        "by_tensor": {name: row.model_dump(mode="json") for name, row in record.tensors.items()},
    }


def _total(record: "DeltaRecord", total: Any) -> dict[str, Any]:
    return asdict(total) | ({"kept": total.kept} if record.rank else {})


def _verified(path: Path) -> str:
    from personality_vector.delta import Delta
    from personality_vector.delta.storage import is_saved_delta

    if not is_saved_delta(path):
        raise RecipeError(f"--verify {path}: only a saved delta has hashes to compare")
    return f"{Delta.load(path).verify()} tensors are as they were written"


def _print_totals(title: str, totals: dict[str, dict[str, Any]]) -> None:
    import pandas as pd

    from personality_vector.report.tables import print_frame

    rows = [{"": name, **total} for name, total in totals.items()]
    print_frame(f"norms of {title}", pd.DataFrame(rows))
