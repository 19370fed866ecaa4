"""What our own manifest says about a fine-tune, and whether a model can be one of this base."""

import statistics
from pathlib import Path
from typing import Any

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.reader import read_json
from personality_vector.delta.sources import require_finite
from personality_vector.errors import BaseMismatchError
from personality_vector.manifest import MANIFEST

_MOST_RATIO = 1.2
"""Of the norms of delta and base. A fine-tune has 0.001 to 0.3, two unrelated models 1.4."""

_SAMPLED = 8
_READ = slice(0, 1 << 16)


def trained_pole(path: Path) -> str | None:
    """Return the pole that a model of ours was fine-tuned on."""
    pole = _trained(path).get("pole")
    return pole if isinstance(pole, str) else None


def require_trained_on(path: Path, base: Checkpoint) -> None:
    """Check the base that our manifest recorded by content, where there is one.

    Raises:
        BaseMismatchError: It is another one.
    """
    recorded = _trained(path).get("base")
    trained_on = recorded.get("fingerprint") if isinstance(recorded, dict) else None
    if isinstance(trained_on, str) and trained_on != base.fingerprint.digest:
        raise BaseMismatchError(
            f"{path}: was trained on base {trained_on[:12]}, but {base.path} is {base.fingerprint}"
        )


def require_not_swapped(base: Checkpoint, tuned: Checkpoint) -> None:
    """Check that ``base`` is not a fine-tune of ``tuned``, as our manifest would know.

    Raises:
        BaseMismatchError: The two are the wrong way round.
    """
    recorded = _trained(base.path).get("base")
    if isinstance(recorded, dict) and recorded.get("fingerprint") == tuned.fingerprint.digest:
        raise BaseMismatchError(
            f"{base.path}: was trained on {tuned.path}; the base comes first, then the fine-tune"
        )


def require_related(tuned: Checkpoint, base: Checkpoint) -> None:
    """Check on a few matrices that ``tuned`` can be a fine-tune of ``base`` at all.

    Raises:
        BaseMismatchError: The models are farther apart than the base is from zero.
    """
    matrices = [name for name in base.names if len(base.entries[name].shape) == 2]
    chosen = matrices[:: max(1, len(matrices) // _SAMPLED)]
    ratios = [_ratio(base, tuned, name) for name in chosen]
    if ratios and statistics.median(ratios) > _MOST_RATIO:
        raise BaseMismatchError(
            f"{tuned.path}: is not a fine-tune of {base.path}: the norm of their difference is "
            f"{statistics.median(ratios):.1f} times that of the base; if it is one all the same, "
            "save the delta with `pvec diff` and merge that"
        )


def _ratio(base: Checkpoint, tuned: Checkpoint, name: str) -> float:
    start = require_finite(base, name, _READ).float()
    length = float(start.norm())
    change = require_finite(tuned, name, _READ).float() - start
    return float(change.norm()) / length if length else 0.0


def _trained(path: Path) -> dict[str, Any]:
    if not (path / MANIFEST).is_file():
        return {}
    manifest = read_json(path / MANIFEST)
    return manifest if manifest.get("kind") == "train" else {}
