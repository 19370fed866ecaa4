"""Tables as CSV for people and Parquet for programs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from personality_vector.study.store.sqlite import explained

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet may execute (OWASP)


def export_frame(frame: "pd.DataFrame", stem: Path) -> list[Path]:
    """Write ``stem.csv`` and ``stem.parquet``, replacing older ones; return both paths.

    Raises:
        StorageError: They cannot be written.
    """
    paths = [stem.with_name(f"{stem.name}.{ending}") for ending in ("csv", "parquet")]
    _replace(paths[0], _csv(frame).encode())
    _replace(paths[1], frame.to_parquet(index=False))
    return paths


def _csv(frame: "pd.DataFrame") -> str:
    texts = frame.select_dtypes("str").columns
    safe = frame.assign(**{name: frame[name].map(_disarmed) for name in texts})
    return str(safe.to_csv(index=False, lineterminator="\n"))


def _disarmed(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _replace(path: Path, content: bytes) -> None:
    """Write under a temporary name and rename, so that no reader sees half a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
