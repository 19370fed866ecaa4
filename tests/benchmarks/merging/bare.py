"""The floor of a merge: every input read once, as many bytes written as the base has, no sums.

    python tests/benchmarks/merging/bare.py OUT BASE TUNED...

It imports torch, as any merge does, and does not flush to disk.
"""

import os
import sys
from pathlib import Path

import torch  # noqa: F401  (its import is part of the floor)

CHUNK = 1 << 20


def copy(shard: str, out: Path, folders: list[Path]) -> None:
    """Read a shard of every checkpoint, side by side; write the first."""
    files = [os.open(folder / shard, os.O_RDONLY) for folder in folders]
    target = os.open(out / shard, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    buffer = bytearray(CHUNK)
    for start in range(0, os.fstat(files[0]).st_size, CHUNK):
        for file in reversed(files):
            count = os.preadv(file, [buffer], start)
        os.pwrite(target, memoryview(buffer)[:count], start)


if __name__ == "__main__":
    out, *folders = map(Path, sys.argv[1:])
    out.mkdir(parents=True)
    for shard in sorted(file.name for file in folders[0].glob("*.safetensors")):
        copy(shard, out, folders)
