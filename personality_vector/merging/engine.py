"""The merge: headers first, then every tensor in chunks, on all cores, straight into its place."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
from personality_vector.merging.depth import Alpha
from personality_vector.merging.loop import Squares, changed, merged
from personality_vector.merging.methods import OptionValue
from personality_vector.merging.plan import MergePlan, Output, Summand, plan_merge
from personality_vector.merging.rounding import Realised, round_to
from personality_vector.merging.terms import BATCH, CHUNK, Acting, TermSlice, runs
from personality_vector.numeric.kernels import projection
from personality_vector.numeric.parallel import in_parallel
from personality_vector.numeric.random import key_for
from personality_vector.progress import progress

log = logging.getLogger(__name__)


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


class Batch(NamedTuple):
    """A run of one tensor that one thread merges, and the terms that act on it."""

    tensor: TensorPlan
    part: slice
    acting: tuple[Acting, ...]

    @property
    def size(self) -> int:
        """Bytes that will be written."""
        return int(self.part.stop - self.part.start) * self.tensor.dtype.itemsize


def merge(  # noqa: PLR0913  (the whole of a merge recipe, by name)
    base: str | Path | Checkpoint,
    terms: Sequence[tuple[Delta | str | Path, Alpha] | Summand],
    *,
    out: str | Path,
    method: str = "task_arithmetic",
    options: Mapping[str, OptionValue] | None = None,
    seed: int = 0,
    output: Output | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    device: str = "auto",
    force: bool = False,
) -> MergeReport:
    """Write ``base + method(alpha_1 * delta_1, ...)`` as a Hugging Face checkpoint directory.

    Arithmetic is float64, with one rounding of every entry to the output dtype at the end.
    ``alpha = 0`` writes the base byte for byte; ``alpha = 1`` of one delta writes the fine-tuned
    model byte for byte. Memory: a few chunks of 262,144 entries for each thread, whatever the size
    of the tensors.

    Args:
        base: Directory, Hub id or ``builtin:demo``.
        terms: Pairs of a delta (or a saved delta, fine-tuned checkpoint or LoRA adapter) and
            alpha; or :class:`Summand`, for a delta of another base.
        out: Directory to write; it appears whole or not at all.
        method: A name in :data:`personality_vector.merging.methods.METHODS`.
        options: Of the method, such as ``{"density": 0.2}``.
        seed: Of random masks and stochastic rounding.
        output: dtype, rounding and shard size.
        include: Tensors to change, by word (``embeddings``, ``head``, ``norms``) or by pattern.
        exclude: Tensors to leave as they are, likewise.
        device: ``auto``, ``cpu`` or ``cuda``.
        force: Replace an output that this tool wrote.

    Raises:
        PersonalityVectorError: The base, a term, an option or the output is refused; nothing is
            left behind.
    """
    summands = [term if isinstance(term, Summand) else Summand(*term) for term in terms]
    plan = plan_merge(
        base,
        summands,
        method=method,
        options=options,
        seed=seed,
        output=output,
        include=include,
        exclude=exclude,
        device=device,
    )
    return write_merge(plan, out, force=force)


def write_merge(plan: MergePlan, out: str | Path, *, force: bool = False) -> MergeReport:
    """Carry out a plan; see :func:`merge`."""
    shard_size = parse_size(plan.output.shard_size)
    with AtomicDirectory(out, force=force, inputs=plan.inputs, size=plan.size) as directory:
        with ShardWriter(directory, plan.tensors, shard_size) as writer:
            squares = _merge_tensors(plan, writer)
        plan.require_unchanged()
        realised, statistics = _statistics(squares)
        content = {**plan.describe(), "realised": realised, "tensors": statistics}
        manifest = complete(directory, plan.base, plan.output.dtype, content)
    log.info("merged %d terms into %s", len(plan.terms), out)
    return MergeReport(Path(out), realised, manifest)


def _merge_tensors(plan: MergePlan, writer: ShardWriter) -> dict[str, list[Squares]]:
    """Merge and write every tensor; return what was measured of those that a term acts on."""
    acting = {tensor.name: plan.acting_on(tensor.name) for tensor in plan.tensors}
    for tensor in plan.tensors:
        _survey(plan, tensor, acting[tensor.name])
    batches = [
        Batch(tensor, part, acting[tensor.name])
        for tensor in plan.tensors
        for part in runs(tensor.shape, BATCH)
    ]
    measured: dict[str, list[Squares]] = {}
    shown = progress(batches, "merge", lambda batch: batch.size)
    # Closed, so that no thread writes on when this loop is left early.
    with closing(in_parallel(partial(_merge_batch, plan, writer), batches)) as done:
        for batch, squares in zip(shown, done, strict=True):
            if batch.acting:
                measured.setdefault(batch.tensor.name, []).append(squares)
    return measured


def _survey(plan: MergePlan, tensor: TensorPlan, acting: Sequence[Acting]) -> None:
    """Let the method ask empty slices for what it needs to know of whole tensors, once."""
    with blame(tensor=tensor.name):
        if acting:
            plan.combine([term.slice(slice(0, 0), plan.device) for term in acting])


def _merge_batch(plan: MergePlan, writer: ShardWriter, batch: Batch) -> Squares:
    tensor, total = batch.tensor, Squares()
    with blame(tensor=tensor.name):
        # A GPU has no cache to fit into, and each of its operations a price of its own.
        for part in runs(tensor.shape, CHUNK if plan.device == "cpu" else BATCH, batch.part):
            written, squares = merge_part(plan, tensor, batch.acting, part)
            writer.write_part(tensor.name, part.start, written)
            total = Squares(*map(sum, zip(total, squares, strict=True)))
    return total


def merge_part(
    plan: MergePlan, tensor: TensorPlan, acting: Sequence[Acting], part: slice
) -> tuple[Tensor, Squares]:
    """Return some entries of a merged tensor, in the output dtype, and their inner products."""
    stored = require_finite(plan.base, tensor.name, part)
    if not acting and stored.dtype == tensor.dtype:
        return stored, Squares()
    slices = [term.slice(part, plan.device) for term in acting]
    if plan.loop and slices and _is_plain(plan, tensor, stored) and not _may_restore(slices):
        return merged(plan.loop, slices, stored)
    base = stored.to(plan.device).double()
    change = _change(plan, slices, stored) if slices else torch.zeros_like(base)
    written = _exact(slices, change, tensor, stored)
    if written is None:
        key = key_for(plan.seed, f"rounding:{tensor.name}")
        written = round_to(base + change, tensor.dtype, plan.output.rounding, key, part.start)
    return written.cpu(), Squares(*projection(base, change, written))


def _is_plain(plan: MergePlan, tensor: TensorPlan, stored: Tensor) -> bool:
    """Return whether bfloat16 becomes bfloat16 by the nearest number."""
    return stored.dtype == tensor.dtype == torch.bfloat16 and plan.output.rounding == "nearest"


def _may_restore(slices: Sequence[TermSlice]) -> bool:
    return len(slices) == 1 and slices[0].alpha == 1.0


def _change(plan: MergePlan, slices: Sequence[TermSlice], stored: Tensor) -> Tensor:
    return changed(plan.loop, slices, stored) if plan.loop else plan.combine(slices)


def _exact(
    slices: Sequence[TermSlice], change: Tensor, tensor: TensorPlan, stored: Tensor
) -> Tensor | None:
    """Return the fine-tuned entries themselves where the change is exactly that of one delta."""
    if len(slices) != 1 or not torch.equal(change, slices[0].delta):
        return None
    source = slices[0].acting.term.delta.source
    tuned = source.tuned_part(tensor.name, slices[0].part, stored)
    if tuned is None or tuned.dtype != tensor.dtype:
        return None
    return tuned.to(change.device)


def _statistics(
    measured: Mapping[str, Sequence[Squares]],
) -> tuple[float | None, dict[str, dict[str, float | None]]]:
    realised, rows = Realised(), {}
    for name, parts in measured.items():
        base, change, along = (math.fsum(column) for column in zip(*parts, strict=True))
        rows[name] = {
            "change_norm": math.sqrt(change),
            "base_norm": math.sqrt(base),
            "realised": realised.add(along, change),
        }
    return realised.share, rows


def complete(
    directory: Path, base: Checkpoint, dtype: str, content: Mapping[str, Any]
) -> dict[str, Any]:
    """Add to merged weights what makes them a checkpoint; return the manifest, written last.

    Args:
        directory: With the weights.
        base: Whose config, tokenizer and the like are copied.
        dtype: That the config is to name, or ``same``.
        content: Of the manifest, from which the card is made.
    """
    _copy_side_files(base, directory, dtype)
    (directory / "README.md").write_text(model_card(content), encoding="utf-8")
    return write_manifest(directory, "merge", content)


def _copy_side_files(base: Checkpoint, directory: Path, dtype: str) -> None:
    base.copy_side_files(directory)
    if dtype != "same":
        config = _with_dtype(base.config, dtype)
        text = json.dumps(config, indent=2) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")


def _with_dtype(config: Any, dtype: str) -> Any:
    """Return a config whose dtype is another, also in the parts of a vision-language model."""
    if not isinstance(config, dict):
        return config
    return {
        key: dtype if key in ("dtype", "torch_dtype") else _with_dtype(value, dtype)
        for key, value in config.items()
    }
