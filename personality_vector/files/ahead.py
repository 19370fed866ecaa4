"""Runs as a process that hashes the tensors of models while another one imports torch."""

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from personality_vector.errors import CheckpointError
from personality_vector.files.digests import Range, digests, is_worth_keeping
from personality_vector.files.header import read_table
from personality_vector.files.ranges import Stamp
from personality_vector.files.reading import open_regular
from personality_vector.lab import cache_folder
from personality_vector.numeric.parallel import cores


def look_ahead(models: Iterable[str]) -> None:
    """Hash the tensors of models as long as what is found can be kept and somebody waits for it."""
    parent, folder = os.getppid(), cache_folder("digests")
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(file for path in models for file in Path(path).glob("model*.safetensors")):
        if os.getppid() != parent or not os.access(folder, os.W_OK):
            return
        # Whatever is wrong is found again, and said, by whoever reads the file.
        with suppress(CheckpointError, OSError), open_regular(file) as stream:
            if is_worth_keeping(Stamp.of(stream.fileno()), time.time_ns()):
                places = [(one.start, one.end) for one in read_table(file).values()]
                digests([Range(file, stream.fileno(), place) for place in places])


if __name__ == "__main__":
    # One core is that of the process that waits.
    os.environ["PVEC_THREADS"] = str(max(1, cores() - 1))
    look_ahead(sys.argv[1:])
