"""A GGUF file of llama.cpp: its header, read and checked before any library opens the file.

Format: the magic ``GGUF``, a version, the numbers of tensors and of fields, the fields, the table
of tensors, and the data, aligned (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import mmap
import struct
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from personality_vector.errors import CheckpointError, RecipeError, foreign, some
from personality_vector.files.digests import content_of
from personality_vector.files.header import PLAIN_NAME, require_no_pointer
from personality_vector.files.reading import open_regular

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""The letter of a number for ``struct``, by its type in a file."""
_TEXT, _ARRAY = 8, 9
_MOST_DIMENSIONS = 4
_PART = "-{:05d}-of-{:05d}.gguf"
_MOST_PARTS, _MOST_COPIED = 99_999, 1 << 24
_NOT_MODELS = {
    "controlvector": "is a control vector of llama.cpp, not a model",
    "mmproj": "holds the vision part of a model (mmproj); give the file of its language model",
    "imatrix": "holds statistics for quantising (imatrix), not a model",
}
_NOT_MODELS["clip"] = _NOT_MODELS["mmproj"]


@dataclass(frozen=True)
class GgufTensor:
    """Where one tensor lies in a file: ``size`` bytes from ``start``, row-major.

    Attributes:
        type: How its numbers are stored, such as ``F32`` or ``Q4_1``.
        shape: As torch gives it, rows first.
        path: The file; that of the first part, or of another one.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    start: int
    size: int
    path: Path


@dataclass(frozen=True)
class GgufFile:
    """The fields and the tensors of a file, or of the parts that one was split into.

    Attributes:
        path: The file, or the first part.
        fields: Of the first part.
        tensors: Of all parts.
        described: Where the header of the file goes on from its fields to its tensors.
        others: The other parts.
    """

    path: Path
    fields: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    described: int
    others: tuple[Path, ...] = ()

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Read and check the header of a file, and of the other parts that it was split into.

        Raises:
            CheckpointError: It is not GGUF, truncated, damaged, not the first of its parts, without
                one of the others, or holds no tensors.
            RecipeError: The package ``gguf`` is not installed.
        """
        found = cls._opened(path)
        if found.fields.get("split.count", 0) not in (0, 1):
            found = found._with_others()
        found._require_model_of_tensors()
        return found

    @classmethod
    def _opened(cls, path: Path) -> "GgufFile":
        gguf = gguf_package("a GGUF file")
        try:
            with open_regular(path) as stream:
                head = stream.read(64)
                require_no_pointer(path, head)
                if head[:4] != MAGIC:
                    raise CheckpointError(f"{path}: is not a GGUF file")
                data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        with data, foreign(CheckpointError, f"{path}: is truncated or damaged"):
            try:
                fields, tensors, described = _read(_Cursor(data), gguf, path)
            except (struct.error, OverflowError, MemoryError) as error:
                raise CheckpointError(
                    f"{path}: is truncated or damaged: its header is not complete in "
                    f"{len(data):,} bytes"
                ) from error
            size = len(data)
        for one in tensors:
            if one.start + one.size > size:
                raise CheckpointError(
                    f"{path}: is truncated: tensor {one.name} ends at byte "
                    f"{one.start + one.size:,}, and the file has {size:,}"
                )
        return cls(path, fields, tensors, described)

    def _with_others(self) -> "GgufFile":
        """Return this first part with the tensors of the others, which lie beside it."""
        number, count = (self.fields.get(f"split.{key}") for key in ("no", "count"))
        if not (
            isinstance(number, int)
            and isinstance(count, int)
            and 0 <= number < count <= _MOST_PARTS
        ):
            raise CheckpointError(
                f"{self.path}: is damaged: it is part {number!r:.40} of {count!r:.40}"
            )
        which = f"is part {number + 1} of {count} of a model"
        ending = _PART.format(number + 1, count)
        stem = self.path.name.removesuffix(ending)
        if stem == self.path.name:
            raise CheckpointError(
                f"{self.path}: {which}; its name should end with {ending}, by which the other "
                "parts are found"
            )
        parts = [self.path.with_name(stem + _PART.format(i, count)) for i in range(1, count + 1)]
        if number:
            raise CheckpointError(f"{self.path}: {which}; give the first, {parts[0]}")
        absent = [part.name for part in parts if not part.is_file()]
        if absent:
            raise CheckpointError(
                f"{self.path}: {which}; not beside it, where it should be, is {some(absent)}"
            )
        read = [self, *map(self._opened, parts[1:])]
        for place, one in enumerate(read):
            found = tuple(one.fields.get(f"split.{key}") for key in ("no", "count"))
            if found != (place, count):
                raise CheckpointError(
                    f"{one.path}: should be part {place + 1} of {count}; its header says otherwise"
                )
        tensors = tuple(tensor for one in read for tensor in one.tensors)
        total = self.fields.get("split.tensors.count", len(tensors))
        if len({tensor.name for tensor in tensors}) != len(tensors) or total != len(tensors):
            raise CheckpointError(
                f"{self.path}: its parts hold {len(tensors)} tensors where there should be "
                f"{total!r:.40}, or one of them twice; they are not of one model"
            )
        return replace(self, tensors=tensors, others=tuple(parts[1:]))

    @property
    def recorded(self) -> dict[str, Any]:
        """What a manifest says about where its output is from."""
        others = {part.name: content_of(part) for part in self.others}
        digest = content_of(self.path)
        parts = {"parts": {self.path.name: digest, **others}} if others else {}
        return {"source": self.path.name, "digest": digest, **parts}

    def join(self, target: Path) -> None:
        """Write the parts as one file: the fields of the first and the tensors of all."""
        gguf = gguf_package("a GGUF file")
        step = self.fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        at, table = 0, bytearray()
        for one in self.tensors:
            name, kind = one.name.encode(), gguf.GGMLQuantizationType[one.type]
            table += struct.pack("<Q", len(name)) + name
            table += struct.pack(f"<I{len(one.shape)}Q", len(one.shape), *one.shape[::-1])
            table += struct.pack("<IQ", kind, at)
            at += -(-one.size // step) * step
        with self.path.open("rb") as first, target.open("wb") as out:
            magic, version, _, fields = struct.unpack("<4sIQQ", first.read(24))
            out.write(struct.pack("<4sIQQ", magic, version, len(self.tensors), fields))
            out.write(first.read(self.described - 24) + table)
            for one in self.tensors:
                out.write(bytes(-out.tell() % step))
                with one.path.open("rb") as part:
                    part.seek(one.start)
                    for rest in range(one.size, 0, -_MOST_COPIED):
                        if out.write(part.read(min(rest, _MOST_COPIED))) < min(rest, _MOST_COPIED):
                            raise CheckpointError(
                                f"{one.path}: was changed while it was being read"
                            )

    @property
    def architecture(self) -> str:
        """The name of the architecture in llama.cpp, such as ``llama``."""
        return str(self.fields["general.architecture"])

    @property
    def is_adapter(self) -> bool:
        """Whether it holds an adapter, and not a model."""
        return self.fields.get("general.type") == "adapter"

    @cached_property
    def types(self) -> dict[str, int]:
        """The number of tensors that are stored in each way, the most frequent first."""
        return dict(Counter(one.type for one in self.tensors).most_common())

    def of_architecture(self, key: str) -> Any:
        """Return the value of a field of the architecture, such as ``block_count``, or nothing."""
        return self.fields.get(f"{self.architecture}.{key}")

    def numbers(self, tensor: GgufTensor) -> Any:
        """Return the numbers of a tensor, dequantised, as an array in float32."""
        gguf = gguf_package("a GGUF file")
        raw = np.fromfile(tensor.path, np.uint8, tensor.size, offset=tensor.start)
        kind = gguf.GGMLQuantizationType[tensor.type]
        block, width = gguf.GGML_QUANT_SIZES[kind]
        rows = raw.reshape(*tensor.shape[:-1], tensor.shape[-1] // block * width)
        stored = {"F32": np.float32, "F16": np.float16}.get(tensor.type)
        return gguf.dequantize(rows.view(stored) if stored else rows, kind)

    def require_model(self) -> None:
        """Refuse what is not a model.

        Raises:
            CheckpointError: It is something else, or says that it has more blocks than tensors.
        """
        kind = self.fields.get("general.type", "model")
        for name in (self.architecture, kind):
            if name in _NOT_MODELS:
                raise CheckpointError(f"{self.path}: {_NOT_MODELS[name]}")
        if kind != "model":
            raise CheckpointError(f"{self.path}: is of type {kind!r:.40}, not a model")
        blocks = self.of_architecture("block_count")
        if not isinstance(blocks, int) or not 0 < blocks <= len(self.tensors):
            raise CheckpointError(
                f"{self.path}: says that it has {blocks!r:.40} blocks, and holds "
                f"{len(self.tensors)} tensors; it is damaged"
            )

    def _require_model_of_tensors(self) -> None:
        if not isinstance(self.fields.get("general.architecture"), str):
            raise CheckpointError(f"{self.path}: names no architecture (general.architecture)")
        if not self.tensors:
            raise CheckpointError(f"{self.path}: holds no tensors, only a vocabulary or a record")


def gguf_package(what: str) -> Any:
    """Return the package ``gguf``.

    Raises:
        RecipeError: It is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise RecipeError(
            f"{what} needs the package gguf: pip install 'personality-vector[gguf]'"
        ) from error
    return gguf


class _Cursor:
    """A place in the bytes of a file; nothing is read beyond their end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, letters: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{letters}", self.data, self.at)
        self.at += struct.calcsize(f"<{letters}")
        return found

    def text(self) -> str:
        (length,) = self.take("Q")
        (raw,) = self.take(f"{length}s")
        return bytes(raw).decode()

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.take(_SCALARS[kind])[0]
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"a field of type {kind} is unknown")
        inner, count = self.take("IQ")
        if inner == _TEXT:
            return [self.text() for _ in range(count)]
        if inner not in _SCALARS:
            raise ValueError(f"an array of type {inner} is unknown")
        return list(self.take(f"{count}{_SCALARS[inner]}"))


def _read(
    cursor: _Cursor, gguf: Any, path: Path
) -> tuple[dict[str, Any], tuple[GgufTensor, ...], int]:
    """Return the fields, the tensors, and the place between the two.

    Raises:
        ValueError: A part of the header means nothing.
        struct.error: The file ends inside it.
    """
    _, version, tensors, count = cursor.take("4sIQQ")
    if version not in _VERSIONS:
        raise ValueError(f"it is in version {version}, and versions 2 and 3 are read")
    fields: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.text()
        if name in fields:
            raise ValueError(f"it has the field {name!r:.80} twice")
        fields[name] = cursor.value(cursor.take("I")[0])
    described = cursor.at
    rows: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(tensors):
        name = cursor.text()
        if name in rows or not PLAIN_NAME.fullmatch(name):
            raise ValueError(f"refused tensor name {name!r:.80}, or it is there twice")
        (dimensions,) = cursor.take("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = cursor.take(f"{dimensions}Q")[::-1]
        rows[name] = (shape, *cursor.take("IQ"))
    alignment = fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its alignment is {alignment!r:.40}")
    start = -(-cursor.at // alignment) * alignment
    found = [_tensor(gguf, path, name, row, start) for name, row in rows.items()]
    return fields, tuple(found), described


def _tensor(
    gguf: Any, path: Path, name: str, row: tuple[tuple[int, ...], int, int], start: int
) -> GgufTensor:
    shape, kind, offset = row
    try:
        stored = gguf.GGMLQuantizationType(kind)
    except ValueError as error:
        raise ValueError(
            f"tensor {name} is stored in a way that the package gguf does not know ({kind})"
        ) from error
    block, width = gguf.GGML_QUANT_SIZES[stored]
    if not shape or 0 in shape or shape[-1] % block:
        raise ValueError(f"tensor {name} of {stored.name} has the shape {list(shape)}")
    size = prod(shape) // block * width
    return GgufTensor(name, stored.name, shape, start + offset, size, path)
