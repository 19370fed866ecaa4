"""The merge: one loop over the tensors of the base."""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality_vector.checkpoint import (
    AtomicDirectory,
    Checkpoint,
    ShardWriter,
    TensorPlan,
    parse_size,
)
from personality_vector.delta import Delta
from personality_vector.delta.sources import require_finite
from personality_vector.errors import blame
from personality_vector.manifest import write_manifest
from personality_vector.merging.card import model_card
from personality_vector.merging.methods import OptionValue
from personality_vector.merging.plan import MergePlan, Output, Term, plan_merge
from personality_vector.merging.rounding import Realised, round_to
from personality_vector.merging.select import magnitude_threshold
from personality_vector.numeric import norm
from personality_vector.progress import progress
from personality_vector.rng import key_for

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TermSlice:
    """One term's part of one tensor."""

    term: Term
    delta: Tensor
    key: int

    @property
    def alpha(self) -> float:
        """The term's alpha."""
        return self.term.alpha

    def threshold(self, density: float, scope: str) -> float:
        """Return the trimming threshold, of the whole vector or of this tensor."""
        if scope == "global":
            return self.term.global_threshold(density)
        return magnitude_threshold(lambda: [self.delta], density)


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was written.

    Attributes:
        path: The merged checkpoint.
        realised: Share of the ideal change that survived rounding: projection, 1 = all.
        manifest: The content of ``MANIFEST.json``.
    """

    path: Path
    realised: float | None
    manifest: dict[str, Any] = field(repr=False)


def merge(  # noqa: PLR0913  (the whole of a merge recipe, by name)
    base: str | Path | Checkpoint,
    terms: Sequence[tuple[Delta | str | Path, float]],
    *,
    out: str | Path,
    method: str = "task_arithmetic",
    options: Mapping[str, OptionValue] | None = None,
    seed: int = 0,
    output: Output | None = None,
    force: bool = False,
) -> MergeReport:
    """Write ``base + method(alpha_1 * delta_1, ...)`` as a Hugging Face checkpoint directory.

    Arithmetic is float32 with one final rounding. ``alpha = 0`` writes the base byte for byte;
    ``alpha = 1`` of one delta writes the fine-tuned model byte for byte. Memory: one float32
    tensor of the base and of each term.

    Args:
        base: Directory, Hub id or ``builtin:demo``.
        terms: Pairs of a delta (or a saved delta, fine-tuned checkpoint or LoRA adapter) and alpha.
        out: Directory to write; it appears whole or not at all.
        method: A name in :data:`personality_vector.merging.methods.METHODS`.
        options: Of the method, such as ``{"density": 0.2}``.
        seed: Of random masks and stochastic rounding.
        output: dtype, rounding and shard size.
        force: Replace an output that this tool wrote.

    Raises:
        PersonalityVectorError: The base, a term, an option or the output is refused; nothing is
            left behind.
    """
    plan = plan_merge(base, terms, method, options or {}, seed, output or Output())
    return write_merge(plan, out, force=force)


def write_merge(plan: MergePlan, out: str | Path, *, force: bool = False) -> MergeReport:
    """Carry out a plan; see :func:`merge`."""
    realised, statistics = Realised(), {}
    tensors = plan.tensors
    with AtomicDirectory(out, force=force, inputs=plan.inputs) as partial:
        _require_space(partial, sum(tensor.size for tensor in tensors))
        with ShardWriter(partial, tensors, parse_size(plan.output.shard_size)) as writer:
            for tensor in progress(tensors, "merge"):
                with blame(tensor=tensor.name):
                    base = require_finite(plan.base, tensor.name)
                    merged, ideal = merge_tensor(plan, tensor, base)
                    writer.write(tensor.name, merged)
                    statistics[tensor.name] = _measure(base, merged, ideal, realised)
        _copy_side_files(plan, partial)
        content = {
            **plan.describe(),
            "realised": realised.share,
            "tensors": {name: row for name, row in statistics.items() if row is not None},
        }
        (partial / "README.md").write_text(model_card(content), encoding="utf-8")
        manifest = write_manifest(partial, "merge", content)
    log.info("merged %d terms into %s", len(plan.terms), out)
    return MergeReport(Path(out), realised.share, manifest)


def merge_tensor(plan: MergePlan, tensor: TensorPlan, base: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return one merged tensor, and the ideal change in float32 (``None``: no term touches it)."""
    acting = [term for term in plan.active if tensor.name in term.delta.names]
    if not acting and base.dtype == tensor.dtype:
        return base, None
    slices = _slices(plan.seed, acting, tensor.name)
    change = plan.combine(slices) if acting else None
    exact = _exact(slices, change, tensor, base)
    if exact is not None:
        return exact, change
    key = key_for(plan.seed, f"rounding:{tensor.name}")
    ideal = base.float() if change is None else base.float() + change
    return round_to(ideal, tensor.dtype, plan.output.rounding, key), change


def _slices(seed: int, acting: Sequence[Term], name: str) -> list[TermSlice]:
    """Return what each term contributes; a delta given twice gets a second random stream."""
    seen: Counter[str] = Counter()
    slices = []
    for term in acting:
        stream = f"{term.delta.identity}:{seen[term.delta.identity]}:{name}"
        seen[term.delta.identity] += 1
        slices.append(TermSlice(term, term.delta[name], key_for(seed, stream)))
    return slices


def _exact(
    slices: Sequence[TermSlice], change: Tensor | None, tensor: TensorPlan, base: Tensor
) -> Tensor | None:
    """Return the fine-tuned tensor itself where the change is exactly that of one delta."""
    if len(slices) != 1 or change is None or not torch.equal(change, slices[0].delta):
        return None
    tuned = slices[0].term.delta.tuned(tensor.name, base)
    return tuned if tuned is not None and tuned.dtype == tensor.dtype else None


def _measure(
    base: Tensor, merged: Tensor, ideal: Tensor | None, realised: Realised
) -> dict[str, float | None] | None:
    if ideal is None:
        return None
    return {
        "change_norm": norm(ideal),
        "base_norm": norm(base),
        "realised": realised.add(ideal, merged.float() - base.float()),
    }


def _require_space(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < 1.05 * size:
        raise OSError(28, f"needs {size / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")


def _copy_side_files(plan: MergePlan, directory: Path) -> None:
    plan.base.copy_side_files(directory)
    if plan.output.dtype == "same":
        return
    config = dict(plan.base.config)
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = plan.output.dtype
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
