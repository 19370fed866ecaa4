"""A checkpoint directory, read lazily: headers at once, one tensor when it is asked for."""

import logging
import os
import re
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock, local
from typing import Any

import torch
from torch import Tensor

from personality_vector.checkpoint.fingerprint import (
    Fingerprint,
    digests_of,
    fingerprint,
    is_sampled,
    sampled,
)
from personality_vector.checkpoint.folder import (
    has_code,
    read_json,
    require_unquantised,
    require_unquantised_config,
    side_files,
    why_unreadable,
)
from personality_vector.checkpoint.tensors import TensorEntry, read_header
from personality_vector.errors import BaseMismatchError, CheckpointError, VerificationError, some
from personality_vector.files.header import PLAIN_NAME
from personality_vector.files.owned import manifest_of
from personality_vector.files.ranges import Stamp
from personality_vector.lab import BUILTIN, builtin, expanded
from personality_vector.manifest import MANIFEST, WEIGHTS

log = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_FROM_HUB = [
    "model*.safetensors",
    "adapter_model.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.py",
]


class Checkpoint:
    """A Hugging Face checkpoint directory with safetensors weights.

    Nothing is loaded until a tensor is asked for, and then only that tensor. Code in the
    directory is never run and pickles are never opened.
    """

    def __init__(
        self, path: Path, entries: Mapping[str, TensorEntry], reference: str | None = None
    ) -> None:
        self.path = path
        self.reference = reference or path.name
        """The name that it was opened by: the Hub id, or else the name of the directory."""
        self.entries = dict(entries)
        self._files: dict[Path, tuple[int, Stamp]] = {}
        self._opening = Lock()
        self.last_read = local()
        """What the reader of each thread keeps of the part that it read last."""

    @classmethod
    def open(cls, where: "str | Path | Checkpoint") -> "Checkpoint":
        """Open a directory, ``builtin:demo``, ``builtin:smollm2`` or a Hub id.

        Raises:
            CheckpointError: Nothing is there, or its files contradict each other.
        """
        if isinstance(where, Checkpoint):
            return where
        path = locate(where)
        is_local = expanded(where).is_dir()
        require_unquantised_config(path)
        entries = _read_entries(path)
        require_unquantised(path, entries)
        return cls(path, entries, None if is_local else str(where))

    @classmethod
    def written(cls, directory: Path) -> "Checkpoint":
        """Return the weights in a directory that this tool has just written: a model or an adapter.

        Raises:
            CheckpointError: Its files contradict each other.
        """
        adapter = directory / "adapter_model.safetensors"
        return cls(directory, read_header(adapter)) if adapter.is_file() else cls.open(directory)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Tensor names, sorted."""
        return tuple(sorted(self.entries))

    def renamed(self, own: Mapping[str, str]) -> "Checkpoint":
        """Return this model, known by the same fingerprint, with some tensors by other names.

        Args:
            own: From the name there to the name here.
        """
        if all(name == other for name, other in own.items()) and len(own) == len(self.entries):
            return self
        found = {name: self.entries[other] for name, other in own.items()}
        renamed = Checkpoint(self.path, found, self.reference)
        renamed.fingerprint = self.fingerprint
        return renamed

    @cached_property
    def in_file_order(self) -> tuple[TensorEntry, ...]:
        """The tensors as they lie in the files, which is the order to read them in."""
        return tuple(sorted(self.entries.values(), key=lambda entry: (entry.file, entry.start)))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of ``config.json``.

        Raises:
            CheckpointError: It is missing or not JSON.
        """
        return read_json(self.path / "config.json")

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digest of every tensor; every byte is read, unless that was done before.

        Raises:
            CheckpointError: A file cannot be read, or is changed while it is being read.
        """
        try:
            return digests_of(self.entries.values(), self._descriptor)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Which model this is, by content; every byte is read, unless that was done before.

        Raises:
            CheckpointError: A file cannot be read, or is changed while it is being read.
            VerificationError: This tool wrote it, and has written other weights there.
        """
        found = fingerprint(self.entries.values(), self.digests)
        written = (manifest_of(self.path) or {}).get(WEIGHTS, found.digest)
        if written != found.digest:
            raise VerificationError(
                f"{self.path}: the weights are not those that were written: {MANIFEST} says "
                f"{written!s:.12}, they are {found}; make them again, or remove {MANIFEST} if you "
                "changed them"
            )
        return found

    def digest_like(self, recorded: str) -> str:
        """Return the digest to compare with one that was recorded somewhere.

        That is the fingerprint's. Earlier versions recorded one of a sample of the bytes, and with
        theirs the same sample is compared.
        """
        if not is_sampled(recorded):
            return self.fingerprint.digest
        return sampled(self.entries.values(), self._descriptor)

    def require_recorded(self, recorded: str, what: object, made: str, remedy: str = "") -> None:
        """Check that this is the model that something was made from.

        What an earlier version made has a sample of the weights recorded; that sample is compared,
        with a warning.

        Args:
            recorded: The digest of that model.
            what: The thing: its file or label.
            made: How it was made, such as ``extracted from model``.
            remedy: What would be right.

        Raises:
            BaseMismatchError: It was made from another one.
        """
        found, (verb, _, source) = self.digest_like(recorded), made.partition(" ")
        earlier = " by an earlier version" if is_sampled(recorded) else ""
        if recorded != found:
            raise BaseMismatchError(
                f"{what}: was {verb}{earlier} {source} {recorded[:12]}, but {self.path} is model "
                f"{found[:12]}{remedy and '; '}{remedy}"
            )
        if earlier:
            log.warning(
                "%s: was %s%s; of the model %s only a sample of the weights was recorded, and that "
                "is the same",
                *(what, verb, earlier, self.path),
            )

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor in its stored dtype, in memory of its own.

        Raises:
            CheckpointError: There is no such tensor, or its file is shorter than it was.
        """
        return self.part(name, slice(None)).reshape(self._entry(name).shape)

    def part(self, name: str, part: slice, out: Tensor | None = None) -> Tensor:
        """Return some entries of a tensor, flat and row-major, in its stored dtype.

        Args:
            name: Name of the tensor.
            part: Which entries, such as ``slice(0, 4096)``; without a step.
            out: Where to put them: contiguous, in the stored dtype; by default in new memory.

        Raises:
            CheckpointError: There is no such tensor, or its file is shorter than it was.
        """
        entry = self._entry(name)
        width = entry.dtype.itemsize
        start, stop, _ = part.indices((entry.end - entry.start) // width)
        count = max(0, stop - start)
        found = torch.empty(count, dtype=entry.dtype) if out is None else out
        if (found.dtype, found.numel()) != (entry.dtype, count):
            raise ValueError(f"{name}: {count} of {entry.dtype} do not fit {out}")
        descriptor, at = self._descriptor(entry.file), entry.start + start * width
        raw = found.view(torch.uint8).numpy().data if count else memoryview(b"")
        while raw:
            # One read returns at most 2 GiB.
            size = os.preadv(descriptor, [raw], at)
            if size == 0:
                raise CheckpointError(f"{entry.file}: ends inside {name}; was it changed?")
            raw, at = raw[size:], at + size
        return found

    def _entry(self, name: str) -> TensorEntry:
        entry = self.entries.get(name)
        if entry is None:
            raise CheckpointError(f"{self.path}: has no tensor {name}")
        return entry

    def _descriptor(self, file: Path) -> int:
        if file not in self._files:
            with self._opening:
                if file not in self._files:
                    descriptor = os.open(file, os.O_RDONLY)
                    self._files[file] = descriptor, Stamp.of(descriptor)
        return self._files[file][0]

    def require_unchanged(self) -> None:
        """Check that no file that was read has been written to since it was opened.

        Raises:
            CheckpointError: One has, so that old and new tensors may be mixed.
        """
        for file, (descriptor, stamp) in self._files.items():
            if Stamp.of(descriptor).content != stamp.content:
                raise CheckpointError(f"{file}: was changed while it was being read")

    def __del__(self) -> None:
        for descriptor, _ in self._files.values():
            os.close(descriptor)

    def side_files(self) -> list[Path]:
        """Return config, tokenizer, template and processor files; see :func:`side_files`."""
        return side_files(self.path)

    def copy_side_files(self, directory: Path) -> None:
        """Copy the side files; one that is there already is kept."""
        for file in self.side_files():
            target = directory / file.relative_to(self.path)
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
        if has_code(self.path):
            log.warning(
                "%s: has code of its own (auto_map in its config); the .py files are copied and "
                "were not run; whoever loads the output needs trust_remote_code=True",
                self.path,
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process open the same files; locks and descriptors stay here."""
        return type(self), (self.path, self.entries, self.reference)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.entries)} tensors)"


def locate(where: str | Path) -> Path:
    """Return the directory of a checkpoint: a path, ``builtin:...``, or a Hub snapshot.

    Raises:
        CheckpointError: Neither this machine nor the Hub has it.
    """
    text = str(where)
    path = builtin(text) if text.startswith(BUILTIN) else expanded(where)
    if path.is_dir():
        return path.absolute()
    if path.suffix.lower() == ".gguf" and path.exists():
        raise CheckpointError(
            f"{path}: is a file of llama.cpp; make a checkpoint of it first, with "
            f"`pvec convert {path} --out DIR`"
        )
    if path.exists():
        raise CheckpointError(f"{path}: is a file; give the directory of the checkpoint")
    if isinstance(where, Path) or text.count("/") > 1 or text.startswith((".", "~", BUILTIN)):
        raise CheckpointError(f"{path}: no such directory")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(text, allow_patterns=_FROM_HUB))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{text}: no such directory, and the Hub cannot provide it: {reason}"
        ) from error


def revision_of(path: Path) -> dict[str, str]:
    """Return ``{"revision": commit}`` of a snapshot in the cache of the Hub, for manifests.

    A Hub id stands for whatever its owner uploaded last.

    >>> revision_of(Path("hub/models--o--m/snapshots/5d1f"))
    {'revision': '5d1f'}
    """
    is_snapshot = path.match("models--*/snapshots/*")
    return {"revision": path.name} if is_snapshot else {}


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a Hub id: ``owner/model``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) is not None


def weight_files(path: Path, single: str, index: str) -> dict[Path, set[str] | None]:
    """Return the files of a checkpoint, each with the names of the tensors that its index lists.

    Args:
        path: Its directory.
        single: Name of the file that it has if that is the only one; of it nothing is listed.
        index: Name of the index that it has otherwise.

    Returns:
        Nothing, if there is neither.

    Raises:
        CheckpointError: There are both, or the index is damaged or refers to another directory.
    """
    has_single, has_index = (path / single).is_file(), (path / index).is_file()
    if has_single and has_index:
        raise CheckpointError(
            f"{path}: has both {single} and {index}, which may be two models; remove one"
        )
    if has_single:
        return {path / single: None}
    return _listed(path / index, Path(single).suffix) if has_index else {}


def _listed(index: Path, suffix: str) -> dict[Path, set[str] | None]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map")
    for name, shard in weight_map.items():
        if not PLAIN_NAME.fullmatch(name):
            raise CheckpointError(f"{index}: refused tensor name {name[:80]!r}")
        if not (isinstance(shard, str) and PLAIN_NAME.fullmatch(shard) and shard.endswith(suffix)):
            raise CheckpointError(
                f"{index}: refused shard name {shard!r:.80}: not a plain file name"
            )
    return {
        index.with_name(shard): {name for name, of in weight_map.items() if of == shard}
        for shard in sorted(set(weight_map.values()))
    }


def _read_entries(path: Path) -> dict[str, TensorEntry]:
    files = weight_files(path, _SINGLE, _INDEX)
    if not files:
        raise CheckpointError(why_unreadable(path, f"has neither {_SINGLE} nor {_INDEX}"))
    entries: dict[str, TensorEntry] = {}
    for file, listed in files.items():
        found = read_header(file)
        if listed is not None and set(found) != listed:
            differing = some(set(found) ^ listed)
            raise CheckpointError(f"{file}: index and shard disagree on {differing}")
        entries |= found
    return entries
