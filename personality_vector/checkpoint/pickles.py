"""Converting pickled checkpoints (``pytorch_model.bin``) to safetensors without running them.

A pickle is a program. torch's weights-only reader runs only what builds tensors. It was broken
twice (CVE-2025-32434, CVE-2026-24747), so torch before 2.10 is refused, and every file is read by a
child process that passes on nothing but a safetensors file.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality_vector.checkpoint.reader import Checkpoint, locate, weight_files
from personality_vector.checkpoint.tensors import NAMES, TensorPlan, read_header
from personality_vector.checkpoint.writer import ShardWriter, shard_names, write_index
from personality_vector.errors import (
    CheckpointError,
    PersonalityVectorError,
    StorageError,
    some,
)
from personality_vector.files import PLAIN_NAME, AtomicDirectory
from personality_vector.manifest import WEIGHTS, write_manifest
from personality_vector.progress import progress

_SINGLE, _INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_ADAPTER, _CONFIG = "adapter_model.bin", "adapter_config.json"
_HEAD = "lm_head.weight"
_SAFE_TORCH = "2.10"
_REFUSED, _DISK = 1, 4


def convert(source: str | Path, out: str | Path, *, force: bool = False) -> dict[str, Any]:
    """Write a pickled checkpoint again as safetensors, one file in memory at a time.

    An output head that is the same memory as another tensor is left out where ``config.json``
    says ``tie_word_embeddings: true``, as transformers does; other tensors that share memory are
    all stored.

    Args:
        source: Directory with ``pytorch_model.bin``, or its shards and their index, or the
            ``adapter_model.bin`` of a PEFT adapter.
        out: Directory to write; it appears whole or not at all.
        force: Replace an output that this tool wrote.

    Returns:
        The manifest.

    Raises:
        CheckpointError: A file is missing, damaged, or holds anything but tensors.
        StorageError: The disk is full, read-only or failing.
    """
    if torch.__version__ < _SAFE_TORCH:
        raise CheckpointError(
            f"torch {torch.__version__} reads pickles unsafely (CVE-2026-24747); "
            "pip install 'torch>=2.10'"
        )
    path = locate(Path(source))
    is_adapter = (path / _ADAPTER).is_file()
    files = {path / _ADAPTER: None} if is_adapter else weight_files(path, _SINGLE, _INDEX)
    if not files:
        of_llama = sorted(file.name for file in path.glob("*.gguf"))
        raise CheckpointError(
            f"{path}: has neither {_SINGLE} nor {_INDEX} nor {_ADAPTER}: nothing to convert"
            f"{f'; give its file {of_llama[0]} itself' if of_llama else ''}"
        )
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing; {_INDEX} lists it")
    start = Checkpoint(path, {})
    tied = not is_adapter and start.config.get("tie_word_embeddings") is True
    left_out: list[str] = []
    size = sum(map(_size, files))
    with AtomicDirectory(out, kind="convert", force=force, inputs=[path], size=size) as partial:
        names = ["adapter_model.safetensors"] if is_adapter else shard_names(len(files))
        for file, name in zip(progress(list(files), "convert", _size), names, strict=True):
            left_out += _in_a_child(file, partial / name, files[file], tied=tied)
        if len(files) > 1:
            headers = [read_header(file) for file in sorted(partial.glob("*.safetensors"))]
            entries = [entry for header in headers for entry in header.values()]
            weight_map = {entry.name: entry.file.name for entry in entries}
            write_index(partial, sum(entry.size for entry in entries), weight_map)
        start.copy_side_files(partial)
        (partial / _INDEX).unlink(missing_ok=True)
        if is_adapter:
            shutil.copyfile(path / _CONFIG, partial / _CONFIG)
        written = Checkpoint.written(partial)
        content = {
            "source": path.name,
            "pickles": {file.name: _size(file) for file in files},
            "left_out": left_out,
            "tensors": len(written.names),
            WEIGHTS: written.fingerprint.digest,
        }
        return write_manifest(partial, "convert", content)


def write_safetensors(file: Path, target: Path, *, tied: bool) -> list[str]:
    """Write the tensors of one pickle into ``target``; return the names that were left out.

    It is called in a child process, so that a malicious pickle can break nothing else.

    Raises:
        CheckpointError: The pickle holds something that is not a tensor, or cannot be read.
    """
    state = _load(file)
    left_out = [_HEAD] if tied and _shares_memory(state, _HEAD) else []
    kept = {name: tensor for name, tensor in state.items() if name not in left_out}
    plans = [TensorPlan(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in kept.items()]
    with ShardWriter(target.parent, plans, 2**63, target.stem) as writer:
        for name, tensor in kept.items():
            writer.write(name, tensor)
    return left_out


def _in_a_child(file: Path, target: Path, listed: set[str] | None, *, tied: bool) -> list[str]:
    """Run :func:`write_safetensors` in a process of its own; check what it wrote."""
    # -P: a json.py or torch.py in the current folder, which may be a download, is not imported.
    command = [sys.executable, "-P", "-m", __name__, str(file), str(target), str(int(tied))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == _DISK:
        raise StorageError(done.stdout)
    if done.returncode == _REFUSED and done.stdout:
        raise CheckpointError(done.stdout)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise CheckpointError(f"{file}: the process that reads it failed: {last}")
    left_out: list[str] = json.loads(done.stdout)
    differing = set(read_header(target)) ^ (listed - set(left_out)) if listed is not None else set()
    if differing:
        raise CheckpointError(f"{file}: index and shard disagree on {some(differing)}")
    return left_out


def _load(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251  (see above)
    except Exception as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"asks for {asked[1]}, which is not weights" if asked else "is not a pickle of tensors"
        )
        raise CheckpointError(f"{file}: {reason}; refused, and nothing in it was run") from error
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{file}: should hold names and tensors, not {type(state).__name__}")
    for name, value in state.items():
        _require_plain(file, name, value)
    return dict(state)


def _require_plain(file: Path, name: object, value: object) -> None:
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name):
        raise CheckpointError(f"{file}: refused tensor name {name!r:.80}")
    if not isinstance(value, Tensor):
        raise CheckpointError(
            f"{file}: {name} is a {type(value).__name__}, not a tensor; save the state dict alone"
        )
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in NAMES:
        raise CheckpointError(
            f"{file}: tensor {name}: {value.dtype}, {value.layout} on {value.device.type} "
            "cannot be stored"
        )
    if value.numel() * value.itemsize > value.untyped_storage().nbytes():
        raise CheckpointError(
            f"{file}: tensor {name}: shape {list(value.shape)} is more than the file holds"
        )


def _shares_memory(state: Mapping[str, Tensor], name: str) -> bool:
    """Return whether another tensor of the same shape is the same memory as ``name``."""

    def place(tensor: Tensor) -> tuple[object, ...]:
        return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()

    others = [tensor for other, tensor in state.items() if other != name]
    return name in state and place(state[name]) in map(place, others)


def _size(file: Path) -> int:
    return file.stat().st_size


def _child(file: str, target: str, tied: str) -> int:
    try:
        said, code = json.dumps(write_safetensors(Path(file), Path(target), tied=tied == "1")), 0
    except PersonalityVectorError as error:
        said, code = "; ".join([str(error), *getattr(error, "__notes__", [])]), _REFUSED
    except OSError as error:
        said, code = f"{target}: cannot be written: {error.strerror}", _DISK
    sys.stdout.write(said)
    return code


if __name__ == "__main__":
    sys.exit(_child(*sys.argv[1:]))
