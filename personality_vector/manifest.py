"""Manifests say what made a directory. They are written last: one that is there is complete."""

import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from personality_vector.files.directory import write_file
from personality_vector.files.owned import MANIFEST, RESULTS, digest_in, sizes_in

__all__ = ["MANIFEST", "WEIGHTS", "rounded", "write_manifest"]

WEIGHTS = "weights"
"""Key of the digest of the tensors that were written, which every reader compares."""

_VERSIONS = ("torch", "transformers", "safetensors", "peft", "trl")


def write_manifest(directory: Path, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``MANIFEST.json`` and return it.

    Args:
        directory: A directory that is otherwise complete.
        kind: ``merge``, ``delta``, ``train``, ``steering_vector``, ``sweep``, ...
        content: JSON-like; recipe, fingerprints, seeds, statistics. No clock time: the same
            recipe writes the same bytes.
    """
    files = {name: size for name, size in sizes_in(directory).items() if name != MANIFEST}
    listed: dict[str, Any] = {"files": files}
    if RESULTS not in files:  # results have seconds in them, and a run is resumed and not replaced
        listed["digests"] = {name: digest_in(directory / name) for name in files}
    manifest = {"manifest": 1, "kind": kind, "tool": _tool(), **rounded(content), **listed}
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(directory / MANIFEST, text.encode())
    return manifest


def rounded(data: Any) -> Any:
    """Return JSON-like data with every number rounded to nine digits.

    The last digits of a sum depend on how many threads computed it.
    """
    if isinstance(data, Mapping):
        return {key: rounded(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [rounded(value) for value in data]
    return float(f"{data:.9g}") if isinstance(data, float) else data


def version_of_tool() -> str:
    """Return the version of this package, or "" where it is not installed."""
    return _tool().get("version", "")


@cache
def _tool() -> dict[str, str]:
    found = {"name": "personality-vector", "python": platform.python_version()}
    for package in ("personality-vector", *_VERSIONS):
        try:
            found[package.replace("personality-vector", "version")] = version(package)
        except PackageNotFoundError:
            continue
    return found
