"""The merge: headers first, then every tensor in chunks, on all cores, straight into its place."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

from torch import Tensor

from personality_vector.checkpoint import (
    Checkpoint,
    ShardWriter,
    TensorPlan,
    parse_size,
    read_json,
)
from personality_vector.checkpoint.folder import has_code
from personality_vector.delta.sources import require_finite
from personality_vector.delta.vocabulary import Embeddings
from personality_vector.errors import blame
from personality_vector.files import AtomicDirectory
from personality_vector.manifest import WEIGHTS, write_manifest
from personality_vector.merging.card import model_card
from personality_vector.merging.formula import OptionValue
from personality_vector.merging.loop import Cast, Squares, added, changed, written_at_once
from personality_vector.merging.merged import merged
from personality_vector.merging.plan import MergePlan, Output, plan_merge
from personality_vector.merging.summands import Asked
from personality_vector.merging.terms import BATCH, runs, runs_over
from personality_vector.numeric.parallel import in_parallel
from personality_vector.numeric.random import key_for
from personality_vector.progress import progress

log = logging.getLogger(__name__)
Write = Callable[[str, int, Tensor], None]
"""Takes entries of a tensor of the merge: its name, the place of the first, the entries, flat."""
_DTYPE_KEYS = ("dtype", "torch_dtype")


@dataclass(frozen=True, slots=True)
class MergeReport:
    """Says what was written.

    Attributes:
        path: The merged checkpoint.
        realised: Share of the ideal change that survived rounding, as a projection; 1 is all of it.
        manifest: The content of ``MANIFEST.json``.
    """

    path: Path
    realised: float | None
    manifest: dict[str, Any] = field(repr=False)


def merge(  # noqa: PLR0913  (the whole of a merge recipe, by name)
    base: str | Path | Checkpoint,
    terms: Sequence[Asked],
    *,
    out: str | Path,
    method: str = "task_arithmetic",
    options: Mapping[str, OptionValue] | None = None,
    seed: int = 0,
    output: Output | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: Embeddings = "strict",
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
            alpha; for a delta of another base, that base is the third element.
        out: Directory to write; it appears whole or not at all.
        method: A name in :data:`personality_vector.merging.methods.METHODS`.
        options: Options of the method, such as ``{"density": 0.2}``.
        seed: Seed of random masks and stochastic rounding.
        output: dtype, rounding and shard size.
        include: Tensors to change, by word (``embeddings``, ``head``, ``norms``) or by pattern.
        exclude: Tensors to leave as they are, by word or by pattern as well.
        embeddings: What becomes of embeddings and head where vocabularies differ: ``strict``
            refuses, ``skip`` leaves them alone, ``match`` carries rows by token.
        device: ``auto``, ``cpu`` or ``cuda``.
        force: Replace an output that this tool wrote.

    Raises:
        PersonalityVectorError: The base, a term, an option or the output is refused; nothing is
            left behind.
    """
    start = Checkpoint.open(base)
    delta = merged(
        start,
        terms,
        method=method,
        options=options,
        seed=seed,
        include=include,
        exclude=exclude,
        embeddings=embeddings,
    )
    return write_merge(plan_merge(start, delta, output=output, device=device), out, force=force)


def write_merge(plan: MergePlan, out: str | Path, *, force: bool = False) -> MergeReport:
    """Carry out a plan; see :func:`merge`."""
    shard_size = parse_size(plan.output.shard_size)
    measured: dict[str, list[Squares]] = {}
    with AtomicDirectory(
        out, kind="merge", force=force, inputs=plan.inputs, size=plan.size
    ) as directory:
        with ShardWriter(directory, plan.tensors, shard_size) as writer:
            plan.merged.survey(plan.device)
            batches = [(t, part) for t in plan.tensors for part in runs(t.shape, BATCH)]
            shown = progress(
                batches, "merge", lambda b: (b[1].stop - b[1].start) * b[0].dtype.itemsize
            )
            names = set(plan.merged.names)
            # Closed, so that no thread writes on when this loop is left early.
            with closing(
                in_parallel(partial(merge_batch, plan, writer.write_part), batches)
            ) as done:
                for (tensor, _), squares in zip(shown, done, strict=True):
                    if tensor.name in names:
                        measured.setdefault(tensor.name, []).append(squares)
        plan.base.require_unchanged()
        plan.merged.require_unchanged()
        totals = {name: Squares.total(parts) for name, parts in measured.items()}
        statistics = {
            name: {
                "change_norm": math.sqrt(total.change),
                "base_norm": math.sqrt(total.base),
                "realised": total.share,
            }
            for name, total in totals.items()
        }
        realised = reduce(Squares.plus, totals.values(), Squares()).share
        content = {**plan.describe(), "realised": realised, "tensors": statistics}
        manifest = complete(directory, plan.base, plan.output.dtype, content)
    log.info("merged %d terms into %s", len(plan.merged.terms), out)
    return MergeReport(Path(out), realised, manifest)


def merge_batch(plan: MergePlan, write: Write, batch: tuple[TensorPlan, slice]) -> Squares:
    """Merge some entries of one tensor, and hand them on a run at a time."""
    tensor, part = batch
    name, combine, total = tensor.name, plan.merged.combine, Squares()
    key = key_for(plan.merged.seed, f"rounding:{name}")
    cast = Cast(tensor.dtype, plan.output.rounding, key)
    with blame(tensor=name):
        for run in runs_over(tensor.shape, part, plan.device):
            stored = require_finite(plan.base, name, run)
            if slices := plan.merged.slices(name, run, plan.device):
                written, squares = written_at_once(combine, slices, stored, cast) or added(
                    changed(combine, slices), slices, stored, cast
                )
                total = total.plus(squares)
            else:  # adding zero turns -0.0 into 0.0, as in any other sum
                same = stored.dtype == cast.dtype
                written = stored if same else cast.rounded(stored.double() + 0.0, run.start)
            write(name, run.start, written.cpu())
    return total


def complete(
    directory: Path, base: Checkpoint, dtype: str, content: Mapping[str, Any]
) -> dict[str, Any]:
    """Add to merged weights what makes them a checkpoint; return the manifest, written last.

    Args:
        directory: The folder with the weights.
        base: The model whose config, tokenizer and other side files are copied.
        dtype: The dtype that the config is to name, or ``same``.
        content: The content of the manifest, from which the card is made as well.
    """
    base.copy_side_files(directory)
    if has_code(base.path):
        note = (
            "config.json names Python files (auto_map): loading them takes trust_remote_code=True"
        )
        content = {**content, "notes": [*content.get("notes", ()), note]}
    named = base.config if (base.path / "config.json").is_file() else {}
    if dtype != "same":
        # Also in the parts of a vision-language model.
        named = json.loads(json.dumps(named), object_hook=partial(_with_dtype, dtype))
    if named and named != read_json(base.path / "config.json"):
        text = json.dumps(named, indent=2) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")
    (directory / "README.md").write_text(model_card(content), encoding="utf-8")
    weights = Checkpoint.written(directory).fingerprint.digest
    return write_manifest(directory, "merge", {**content, WEIGHTS: weights})


def _with_dtype(dtype: str, table: dict[str, Any]) -> dict[str, Any]:
    return {key: dtype if key in _DTYPE_KEYS else value for key, value in table.items()}
