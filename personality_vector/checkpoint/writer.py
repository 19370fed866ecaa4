"""Writing safetensors in shards: headers first, since every shape is known, then tensors in place.

A shard never exists in memory; a tensor is written at its final offset when it is ready.
"""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from personality_vector.checkpoint.tensors import NAMES, TensorEntry, TensorPlan
from personality_vector.errors import RecipeError, TensorMismatchError, some

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    """Return the number of bytes in ``5GB``, ``200 MB`` or ``64KB``.

    >>> parse_size("5GB")
    5000000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]B)", text.strip())
    if match is None:
        raise RecipeError(f"{text!r} is not a size; write 5GB, 200MB or 64KB")
    return max(1, int(float(match[1]) * _UNITS[match[2]]))


class ShardWriter:
    """Writes planned tensors, in any order, into ``stem.safetensors`` or numbered shards.

    Use as a context manager: leaving it without an error checks that every planned tensor was
    written, flushes the files to disk and writes the index.
    """

    def __init__(
        self,
        directory: Path,
        plans: Sequence[TensorPlan],
        shard_bytes: int = 5 * 10**9,
        stem: str = "model",
    ) -> None:
        self._directory = directory
        self._stem = stem
        shards = _assign(plans, shard_bytes)
        files = (directory / name for name in shard_names(len(shards), stem))
        self._files = dict(zip(files, shards, strict=True))
        self._slots: dict[str, TensorEntry] = {}
        self._descriptors: dict[Path, int] = {}
        self._written: Counter[str] = Counter()
        self._left = {file: sum(plan.size for plan in plans) for file, plans in self._files.items()}
        self._counting = Lock()
        self._flusher = ThreadPoolExecutor(1)
        self._flushed: list[Future[None]] = []

    def __enter__(self) -> "ShardWriter":
        for file, plans in self._files.items():
            header, offsets = _layout(plans)
            descriptor = self._descriptors[file] = os.open(
                file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666
            )
            os.truncate(descriptor, len(header) + sum(plan.size for plan in plans))
            _write_all(descriptor, memoryview(header), 0)
            for plan in plans:
                start = len(header) + offsets[plan.name]
                self._slots[plan.name] = TensorEntry(
                    plan.name, plan.dtype, plan.shape, file, start, start + plan.size
                )
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor at its place.

        Raises:
            TensorMismatchError: It was not planned, or not with this dtype and shape.
        """
        slot = self._slots.get(name)
        if slot is None or (slot.dtype, slot.shape) != (tensor.dtype, tensor.shape):
            raise TensorMismatchError(
                f"{name}: {tensor.dtype} {list(tensor.shape)} was not planned for {self._directory}"
            )
        self.write_part(name, 0, tensor.detach().cpu().contiguous().reshape(-1))

    def write_part(self, name: str, start: int, entries: Tensor) -> None:
        """Write some entries of a tensor at their place, from any thread; each entry once.

        Args:
            name: Name of a planned tensor.
            start: Index of the first entry, row-major.
            entries: Flat, contiguous, on the CPU, in the planned dtype.

        Raises:
            TensorMismatchError: They are of another dtype, or reach beyond the tensor.
        """
        slot = self._slots[name]
        end = start + entries.numel()
        if entries.dtype != slot.dtype or end > math.prod(slot.shape):
            raise TensorMismatchError(f"{name}: {entries.dtype} up to {end} was not planned")
        raw = entries.view(torch.uint8).numpy().data
        _write_all(self._descriptors[slot.file], raw, slot.start + start * entries.dtype.itemsize)
        with self._counting:
            self._written[name] += entries.numel()
            self._left[slot.file] -= len(raw)
            if self._left[slot.file] == 0:
                # A shard goes to the disk while the next one is computed.
                descriptor = self._descriptors[slot.file]
                self._flushed.append(self._flusher.submit(os.fsync, descriptor))

    def __exit__(self, failed: type[BaseException] | None, *exc: object) -> None:
        try:
            if failed is None:
                self._finish()
        finally:
            self._flusher.shutdown(cancel_futures=True)
            for descriptor in self._descriptors.values():
                os.close(descriptor)

    def _finish(self) -> None:
        missing = {
            name
            for name, slot in self._slots.items()
            if self._written[name] != math.prod(slot.shape)
        }
        if missing:
            raise TensorMismatchError(f"{self._directory}: never written: {some(missing)}")
        for flushed in self._flushed:
            flushed.result()
        if len(self._files) > 1:
            size = sum(slot.size for slot in self._slots.values())
            files = {name: self._slots[name].file.name for name in sorted(self._slots)}
            write_index(self._directory, size, files, self._stem)


def write_index(
    directory: Path, size: int, weight_map: Mapping[str, str], stem: str = "model"
) -> None:
    """Write the index of a sharded checkpoint: its bytes, and the file of each tensor."""
    index = {"metadata": {"total_size": size}, "weight_map": dict(weight_map)}
    path = directory / f"{stem}.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _assign(plans: Iterable[TensorPlan], shard_bytes: int) -> list[list[TensorPlan]]:
    """Fill shards in the order given; a tensor larger than a shard gets one of its own."""
    shards: list[list[TensorPlan]] = [[]]
    room = shard_bytes
    for plan in plans:
        if shards[-1] and plan.size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(plan)
        room -= plan.size
    return shards


def shard_names(count: int, stem: str = "model") -> list[str]:
    """Return the names of the files of a checkpoint."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _layout(plans: Sequence[TensorPlan]) -> tuple[bytes, Mapping[str, int]]:
    """Return the header and each tensor's offset in the data; wide dtypes first, so all align."""
    ordered = sorted(plans, key=lambda plan: (-plan.dtype.itemsize, plan.name))
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    at = 0
    for plan in ordered:
        offsets[plan.name] = at
        table[plan.name] = {
            "dtype": NAMES[plan.dtype],
            "shape": list(plan.shape),
            "data_offsets": [at, at + plan.size],
        }
        at += plan.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        # One write takes at most 2 GiB.
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
