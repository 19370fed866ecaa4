"""Saved deltas: a directory with ``delta.safetensors``, ``delta.json`` and a manifest."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import save_file

from personality_vector.checkpoint import FLOATS, Checkpoint, read_header
from personality_vector.delta import writing
from personality_vector.delta.layers import layer_of
from personality_vector.delta.lora import LEFT, RIGHT, Adapter, LowRank, Stack, factors_of
from personality_vector.delta.provenance import matched, untied_beside
from personality_vector.delta.record import (
    RECORD,
    DeltaRecord,
    ReferenceRecord,
    Storage,
    read_record,
)
from personality_vector.delta.sources import Combination, Difference, Stored, TensorSource
from personality_vector.errors import CheckpointError, RecipeError, VerificationError, some
from personality_vector.files import AtomicDirectory
from personality_vector.files.digests import digests_forgotten
from personality_vector.manifest import rounded, write_manifest
from personality_vector.numeric.parallel import pieces

_TENSORS = "delta.safetensors"
_EXACT = "exact.safetensors"


def is_saved_delta(path: Path) -> bool:
    """Return whether a directory is a saved delta."""
    return (path / RECORD).is_file()


def save_stored(
    source: TensorSource,
    directory: Path,
    record: Mapping[str, Any],
    *,
    storage: str,
    rank: int | None,
    force: bool,
) -> None:
    """Write a delta part by part; see :meth:`Delta.save`.

    ``record`` has the keys of :class:`DeltaRecord` that do not depend on the storage.
    """
    _require_storable(source, str(record["label"]), storage, rank)
    found = writing.Findings()
    with AtomicDirectory(directory, kind="delta", force=force, inputs=source.inputs) as partial:
        how = _written(source, partial, storage, rank, found)
        if found.exact:
            save_file(found.exact, partial / _EXACT)
        source.require_unchanged()
        hashes = {name: digest.hexdigest() for name, digest in found.digests.items()}
        exact = {name: writing.hash_of([part]) for name, part in found.exact.items()}
        how |= {
            "tensors": {name: rounded(row.model_dump()) for name, row in found.tensors.items()},
            "hashes": hashes | exact,
            "tuned_dtypes": found.tuned_dtypes,
            "exact": bool(exact),
        }
        content = DeltaRecord.model_validate({**record, **how})
        text = json.dumps(content.model_dump(mode="json"), indent=2)
        (partial / RECORD).write_text(text + "\n", encoding="utf-8")
        rank = content.rank
        manifest = {**record, "storage": content.storage, **({"rank": rank} if rank else {})}
        manifest["inputs"] = {str(index): str(path) for index, path in enumerate(source.inputs)}
        if rank:
            layers = {layer: total.kept for layer, total in content.totals(layer_of).items()}
            manifest["kept"] = {"all": content.total.kept, "layers": layers}
        write_manifest(partial, "delta", manifest)


def _written(
    source: TensorSource, folder: Path, storage: str, rank: int | None, found: writing.Findings
) -> dict[str, Any]:
    """Write the tensors, and return the keys of the record that say how they are stored."""
    stack = stack_of(source) if storage == "lora" else None
    if isinstance(source, Adapter) and storage == "lora":
        writing.write_adapter(source, folder, found)
        return {"storage": storage, "adapter": source.scaling}
    if stack is not None:
        writing.write_low_rank(source, folder, stack.rank, found, stack.factors)
        return {"storage": "low-rank", "rank": stack.rank}
    if isinstance(source, Difference) and storage == "reference":
        writing.measure(source, found)
        base, tuned = source.base, source.tuned
        paths = {"base": str(base.path), "tuned": str(tuned.path)}
        reference = ReferenceRecord(**paths, tuned_digest=tuned.fingerprint.digest)
        return {"storage": storage, "reference": reference}
    if rank is not None:
        writing.write_low_rank(source, folder, rank, found)
    else:
        writing.write_entries(source, folder, FLOATS[storage], found)
    return {"storage": storage, "rank": rank}


def _require_storable(source: TensorSource, label: str, storage: str, rank: int | None) -> None:
    known = get_args(Storage)
    if storage not in known:
        raise RecipeError(
            f"storage {storage!r}: a delta is stored as {', '.join(known[:-1])} or {known[-1]}"
        )
    if (storage == "low-rank") != (rank is not None) or (rank is not None and rank < 1):
        raise RecipeError(
            f"storage {storage}, rank {rank}: low-rank, and no other, takes a rank of 1 or more"
        )
    is_plain = isinstance(source, Adapter) and source.is_plain
    if storage == "lora" and not is_plain and stack_of(source) is None:
        raise RecipeError(
            f"{label}: is not made of LoRA adapters of nothing but factors; use --low-rank R, "
            "which finds some"
        )
    if storage == "reference" and not isinstance(source, Difference):
        raise RecipeError(
            f"{label}: is not the difference of two checkpoints, so it cannot be kept by "
            "reference; use float32, or lora for an adapter"
        )


def stack_of(source: TensorSource) -> Stack | None:
    """Return a sum of adapters of nothing but factors as one product, and ``None`` of another."""
    terms = source.terms if isinstance(source, Combination) else ()
    adapters = [(factor, one) for factor, one in terms if isinstance(one, Adapter) and one.is_plain]
    return Stack(adapters) if terms and len(adapters) == len(terms) else None


def open_stored(directory: Path) -> tuple[TensorSource, DeltaRecord]:
    """Open a saved delta; return its source and its record.

    Raises:
        CheckpointError: A file is missing or damaged, two files disagree, or a checkpoint that it
            refers to was moved or changed.
    """
    record = read_record(directory)
    if record.reference is not None:
        base = _unmoved(directory, record.reference.base, record.base.digest)
        tuned = _unmoved(directory, record.reference.tuned, record.reference.tuned_digest)
        base, tuned = untied_beside(base, tuned), untied_beside(tuned, base)
        return Difference(base, matched(base, tuned)), record
    tensors = Checkpoint(directory, read_header(directory / _TENSORS))
    exact = Checkpoint(directory, read_header(directory / _EXACT)) if record.exact else None
    _require_agreement(tensors, exact, record)
    _require_written(directory, record, {**tensors.digests, **(exact.digests if exact else {})})
    shapes = {name: row.shape for name, row in record.tensors.items()}
    if record.adapter is not None:
        factors = {name: factors_of(name, tensors, record.adapter) for name in shapes}
        return Adapter(tensors, shapes, tensors, record.adapter, factors, {}), record
    if record.rank is not None:
        return LowRank(tensors, shapes), record
    return Stored(tensors, exact, record.tuned_dtypes), record


def _unmoved(directory: Path, where: str, digest: str) -> Checkpoint:
    if not Path(where).is_dir():
        raise CheckpointError(
            f"{directory}: is a delta by reference to {where}, which is not there; "
            "put it back, or take the delta again"
        )
    checkpoint = Checkpoint.open(Path(where))
    if checkpoint.fingerprint.digest != digest:
        raise CheckpointError(
            f"{directory}: is a delta by reference to {where}, which was {digest[:12]} and is now "
            f"{checkpoint.fingerprint}; put the old one back, or take the delta again"
        )
    return checkpoint


def _require_agreement(tensors: Checkpoint, exact: Checkpoint | None, record: DeltaRecord) -> None:
    stored = set(tensors.entries) | set(exact.entries if exact else ())
    differing = stored ^ set(record.hashes)
    halves = {name + end: name for name in record.tensors for end in (LEFT, RIGHT)}
    if record.adapter is not None:
        weights = [name for name in record.tensors if name.endswith(".weight")]
        found = {name: factors_of(name, tensors, record.adapter) for name in weights}
        halves = {half: name for name, one in found.items() for half in (one.up, one.down)}
    differing |= {halves.get(name, name) for name in tensors.entries} ^ set(record.tensors)
    differing |= {
        name
        for name in set(tensors.entries) & set(record.tensors)
        if tensors.entries[name].shape != record.tensors[name].shape
    }
    if differing:
        raise CheckpointError(
            f"{tensors.path}: {_TENSORS} and {RECORD} disagree on {some(differing)}"
        )


def _require_written(directory: Path, record: DeltaRecord, found: Mapping[str, str]) -> None:
    """Compare the hash of every tensor with that of what was written."""
    differing = [name for name, digest in record.hashes.items() if found.get(name) != digest]
    if differing:
        raise VerificationError(
            f"{directory}: {some(differing)}: the content is not what was saved; "
            "take the delta again"
        )


def verify(directory: Path) -> int:
    """Read a saved delta again, all of it, and return how many tensors are as they were written.

    Raises:
        VerificationError: A tensor is not; names all of them.
    """
    with digests_forgotten():
        source, record = open_stored(directory)  # which compares what is stored
    if record.reference is not None:
        parts = {name: pieces(math.prod(source.shape(name))) for name in source.names}
        found = {
            name: writing.hash_of(source.part(name, part) for part in own)
            for name, own in parts.items()
        }
        _require_written(directory, record, found)
    return len(record.hashes)
