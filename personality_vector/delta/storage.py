"""Saved deltas: a directory with ``delta.safetensors``, ``delta.json`` and a manifest."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file

from personality_vector.checkpoint import AtomicDirectory, Checkpoint
from personality_vector.checkpoint.header import DTYPES, TensorEntry, read_header
from personality_vector.delta import writing
from personality_vector.delta.layers import layer_of
from personality_vector.delta.lora import Adapter
from personality_vector.delta.low_rank import LEFT, RIGHT, LowRank
from personality_vector.delta.record import (
    RECORD,
    AdapterRecord,
    DeltaRecord,
    ReferenceRecord,
    Storage,
    read_record,
)
from personality_vector.delta.sources import Difference, Stored, TensorSource, whole
from personality_vector.errors import CheckpointError, RecipeError, VerificationError, some
from personality_vector.manifest import rounded, write_manifest
from personality_vector.numeric.parallel import pieces

_TENSORS = "delta.safetensors"
_EXACT = "exact.safetensors"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
) -> DeltaRecord:
    """Write a delta part by part and return its record; see :meth:`Delta.save`.

    ``record`` has the keys of :class:`DeltaRecord` that do not depend on the storage.
    """
    _require_storable(source, str(record["label"]), storage, rank)
    how = {"storage": storage} | ({"rank": rank} if rank else {})
    with AtomicDirectory(directory, force=force, inputs=source.inputs) as partial:
        learnt = _write(source, partial, storage, rank)
        source.require_unchanged()
        content = DeltaRecord.model_validate({**record, **how, **_learnt(source, storage, learnt)})
        text = json.dumps(content.model_dump(mode="json"), indent=2)
        (partial / RECORD).write_text(text + "\n", encoding="utf-8")
        inputs = {str(index): str(path) for index, path in enumerate(source.inputs)}
        write_manifest(partial, "delta", {**record, **how, "inputs": inputs, **_kept(content)})
    return content


def _write(source: TensorSource, folder: Path, storage: str, rank: int | None) -> writing.Learnt:
    learnt = writing.Learnt()
    if isinstance(source, Adapter) and storage == "lora":
        writing.write_adapter(source, folder, learnt)
    elif storage == "reference":
        writing.measure(source, learnt)
    elif rank is not None:
        writing.write_low_rank(source, folder, rank, learnt)
    else:
        writing.write_entries(source, folder, _DTYPES[storage], learnt)
    if learnt.exact:
        save_file(learnt.exact, folder / _EXACT)
        learnt.hashes |= {name: writing.hash_of([part]) for name, part in learnt.exact.items()}
    return learnt


def _learnt(source: TensorSource, storage: str, learnt: writing.Learnt) -> dict[str, Any]:
    """Return the part of the record that is known only once a delta has been written."""
    tensors = {name: rounded(row.model_dump()) for name, row in learnt.tensors.items()}
    found: dict[str, Any] = {
        "tensors": tensors,
        "hashes": learnt.hashes,
        "tuned_dtypes": learnt.tuned_dtypes,
        "exact": bool(learnt.exact),
    }
    if isinstance(source, Adapter) and storage == "lora":
        found["adapter"] = AdapterRecord(
            alpha=source.alpha,
            rank_stabilised=source.rank_stabilised,
            transposed=source.transposed,
        )
    if isinstance(source, Difference) and storage == "reference":
        found["reference"] = ReferenceRecord(
            base=str(source.base.path),
            tuned=str(source.tuned.path),
            tuned_digest=source.tuned.fingerprint.digest,
        )
    return found


def _kept(record: DeltaRecord) -> dict[str, Any]:
    """Return the share of the energy that a low-rank delta kept, for its manifest."""
    if record.rank is None:
        return {}
    layers = {layer: total.kept for layer, total in record.totals(layer_of).items()}
    return {"kept": {"all": record.total.kept, "layers": layers}}


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
    if storage == "lora" and not isinstance(source, Adapter):
        raise RecipeError(
            f"{label}: is not one LoRA adapter, so it has no factors to keep; "
            "use --low-rank R, which finds some"
        )
    if storage == "reference" and not isinstance(source, Difference):
        raise RecipeError(
            f"{label}: is not the difference of two checkpoints, so it cannot be kept by "
            "reference; use float32, or lora for an adapter"
        )


def open_stored(directory: Path) -> tuple[TensorSource, DeltaRecord]:
    """Open a saved delta; return its source and its record.

    Raises:
        CheckpointError: A file is missing or damaged, two files disagree, or a checkpoint that it
            refers to was moved or changed.
    """
    record = read_record(directory)
    if record.reference is not None:
        return _referred(directory, record, record.reference), record
    tensors = Checkpoint(directory, read_header(directory / _TENSORS))
    exact = Checkpoint(directory, read_header(directory / _EXACT)) if record.exact else None
    _require_agreement(tensors, exact, record)
    shapes = {name: row.shape for name, row in record.tensors.items()}
    if record.adapter is not None:
        return _adapter(tensors, shapes, record.adapter), record
    if record.rank is not None:
        return LowRank(tensors, shapes), record
    tuned_dtypes = {name: DTYPES[dtype] for name, dtype in record.tuned_dtypes.items()}
    return Stored(tensors, exact, tuned_dtypes), record


def _adapter(
    factors: Checkpoint, shapes: Mapping[str, tuple[int, ...]], how: AdapterRecord
) -> Adapter:
    """Return the adapter; of its base it needs the shapes, and no tensor is ever read."""
    nowhere = factors.path / RECORD
    entries = {
        name: TensorEntry(name, torch.float32, shape, nowhere, 0, 0)
        for name, shape in shapes.items()
    }
    modules = tuple(name.removesuffix(".weight") for name in shapes)
    base = Checkpoint(factors.path, entries)
    return Adapter(base, factors, how.alpha, how.rank_stabilised, how.transposed, modules)


def _referred(directory: Path, record: DeltaRecord, reference: ReferenceRecord) -> Difference:
    base = _unmoved(directory, reference.base, record.base.digest)
    return Difference(base, _unmoved(directory, reference.tuned, reference.tuned_digest))


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
    odd = stored ^ set(record.hashes)
    if record.adapter is None:
        halves = {name + end: name for name in record.tensors for end in (LEFT, RIGHT)}
        odd |= {halves.get(name, name) for name in tensors.entries} ^ set(record.tensors)
    odd |= {
        name
        for name in set(tensors.entries) & set(record.tensors)
        if tensors.entries[name].shape != record.tensors[name].shape
    }
    if odd:
        raise CheckpointError(f"{tensors.path}: {_TENSORS} and {RECORD} disagree on {some(odd)}")


def verify(directory: Path) -> int:
    """Read a saved delta again, all of it, and return how many tensors are as they were written.

    Raises:
        VerificationError: A tensor is not; names all of them.
    """
    source, record = open_stored(directory)
    found = dict(_hashes(directory, source, record))
    odd = [name for name, digest in record.hashes.items() if found.get(name) != digest]
    if odd:
        raise VerificationError(
            f"{directory}: {some(odd)}: the content is not what was saved; take the delta again"
        )
    return len(found)


def _hashes(
    directory: Path, source: TensorSource, record: DeltaRecord
) -> Iterator[tuple[str, str]]:
    if record.reference is not None:
        for name in source.names:
            parts = pieces(whole(source, name).stop)
            yield name, writing.hash_of(source.part(name, part) for part in parts)
        return
    for file in (_TENSORS, _EXACT) if record.exact else (_TENSORS,):
        stored = Checkpoint(directory, read_header(directory / file))
        for name, entry in stored.entries.items():
            parts = pieces((entry.end - entry.start) // entry.dtype.itemsize)
            yield name, writing.hash_of(stored.part(name, part) for part in parts)
