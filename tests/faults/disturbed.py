"""A script: merges that are killed or that fail at every moment, and what is on the disk then.

It imports everything once. A merge that is to be killed runs in a forked child; one that is to fail
runs here. Every function of the system that changes files is wrapped meanwhile, so that the
``n``-th call can be the last one or raise. ``python disturbed.py FOLDER EXPERIMENT fresh|over``
prints a JSON row for every moment.
"""

import builtins
import contextlib
import errno
import gc
import io
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

CHANGING = (
    *("open", "pwrite", "write", "fsync", "truncate", "ftruncate", "mkdir", "rename", "replace"),
    *("unlink", "remove", "rmdir", "chmod", "link", "symlink", "sendfile", "copy_file_range"),
)
FILLING = {"pwrite", "write", "truncate", "ftruncate", "mkdir", "sendfile", "copy_file_range"}
"""What needs space on the disk."""

Arguments = tuple[Any, ...]
Around = Callable[[Callable[[], Any], str, Arguments], Any]
Row = dict[str, Any]


@contextlib.contextmanager
def wrapped(around: Around) -> Generator[None]:
    """Call ``around(function, name, arguments)`` in place of all that changes files."""
    usual = {name: getattr(os, name) for name in CHANGING if hasattr(os, name)}
    opened = io.open
    try:
        for name, function in usual.items():
            setattr(os, name, _instead(function, name, around))
        builtins.open = io.open = _instead(opened, "create", around)
        yield
    finally:
        builtins.open = io.open = opened
        for name, function in usual.items():
            setattr(os, name, function)


def _instead(function: Callable[..., Any], name: str, around: Around) -> Callable[..., Any]:
    def call(*args: Any, **given: Any) -> Any:
        mode = str(given.get("mode", args[1] if name == "create" and len(args) > 1 else "r"))
        if name == "create" and not set(mode) & set("wax+"):
            return function(*args, **given)  # a file that is only read
        return around(lambda: function(*args, **given), name, args)

    return call


class Kill:
    """Dies by SIGKILL at the ``n``-th moment.

    There is one before each operation, when half of what it would write has been written, and one
    more after a file was created, when it is still empty.
    """

    def __init__(self, n: int) -> None:
        self.left = n
        self.pwrite = os.pwrite
        self.struck = mmap.mmap(-1, 1)  # shared by parent and child: whether the moment came

    def __call__(self, run: Callable[[], Any], name: str, args: Arguments) -> Any:
        if self.left == 1 and name == "pwrite":
            descriptor, data, offset = args
            self.pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
        self._moment()
        result = run()
        if name in ("create", "open"):
            self._moment()
        return result

    def _moment(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.struck[0] = True
            os.kill(os.getpid(), signal.SIGKILL)


class Fail:
    """Fails at the ``n``-th operation: once with EIO, or from there on with a full disk."""

    def __init__(self, n: int, number: int) -> None:
        self.left = n
        self.number = number
        self.struck = [False]

    def __call__(self, run: Callable[[], Any], name: str, args: Arguments) -> Any:
        creates = name == "create" or (name == "open" and args[1] & (os.O_WRONLY | os.O_RDWR))
        fills = bool(creates) or name in FILLING
        full = self.number == errno.ENOSPC
        self.left -= fills or (not full and name in ("fsync", "rename", "chmod"))
        if (fills and self.left <= 0) if full else (self.left == 0):
            self.left -= 1
            self.struck[0] = True
            raise OSError(self.number, os.strerror(self.number))
        return run()


def content(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


class Bench:
    """A folder with a base and a fine-tune, and the outputs of two merges to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder / "work", folder / "work" / "out"
        self.words = ["merge", str(folder / "recipe.yaml"), "--out", str(self.out)]
        self.words += ["--force", "--quiet", "--set"]
        self.folder.mkdir()
        self.wholes: dict[str, dict[str, bytes]] = {}
        for name, alpha in (("old", 0.25), ("new", 0.5)):
            self.alpha = f"terms.0.alpha={alpha}"
            self.merge()  # imports and compiles everything for all children
            self.wholes[name] = content(self.out)
        gc.freeze()  # what a child touches it must copy

    def merge(self) -> list[Any]:
        """Merge here; return the exit code and what it said."""
        from personality_vector.cli.main import run

        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            return [run([*self.words, self.alpha]), said.getvalue()]

    def merge_and_die(self, kill: Kill | None = None, after: float | None = None) -> int:
        """Merge in a child that is killed, by itself or after some seconds; return its signal."""
        child = os.fork()
        if child == 0:
            with wrapped(kill) if kill else contextlib.nullcontext():
                self.merge()
            os._exit(0)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def prepare(self, *, over: bool) -> None:
        """Empty the folder; with ``over`` put the old output there."""
        for left in list(self.folder.iterdir()):
            shutil.rmtree(left)
        for name, data in self.wholes["old"].items() if over else ():
            file = self.out / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)

    def row(self, ended: int, said: str = "") -> Row:
        """Return what is there after a disturbed merge, and what merging again makes of it."""
        row = {"ended": ended, "said": said, "state": self.state(), "impostors": self.impostors()}
        row["left"] = sorted(path.name for path in self.folder.iterdir() if path != self.out)
        row["again"] = [*self.merge(), self.state(), len(list(self.folder.iterdir()))]
        return row

    def state(self) -> str:
        """Return what the output is: ``absent``, ``old``, ``new``, or ``broken``."""
        if not self.out.exists():
            return "absent"
        found = content(self.out)
        return next((name for name, whole in self.wholes.items() if whole == found), "broken")

    def impostors(self) -> list[str]:
        """Return the folders that a loader would take for a model and that are neither whole.

        Loaders want a config, and the weights in one file or all that an index lists.
        """
        found = []
        for folder in self.folder.iterdir():
            files = content(folder)
            index = json.loads(files.get("model.safetensors.index.json") or b"{}")
            wanted = set(index.get("weight_map", {}).values()) or {"model.safetensors"}
            if "config.json" in files and wanted <= set(files):
                weights = {name: files[name] for name in wanted}
                if not any(weights.items() <= whole.items() for whole in self.wholes.values()):
                    found.append(folder.name)
        return found


def killed(bench: Bench, *, over: bool) -> Generator[Row]:
    """Kill a merge at the first moment, the second, and so on until there are no more."""
    n, kill = 1, Kill(1)
    while True:
        bench.prepare(over=over)
        ended = bench.merge_and_die(kill)
        if not kill.struck[0]:
            return
        yield bench.row(ended)
        n, kill = n + 1, Kill(n + 1)


def failed(bench: Bench, number: int, *, over: bool) -> Generator[Row]:
    """Let a merge fail at the first operation, the second, and so on until there are no more."""
    n, fail = 1, Fail(1, number)
    while True:
        bench.prepare(over=over)
        with wrapped(fail):
            ended, said = bench.merge()
        if not fail.struck[0]:
            return
        yield bench.row(ended, said)
        n, fail = n + 1, Fail(n + 1, number)


def killed_at_random(bench: Bench, times: int, *, over: bool) -> Generator[Row]:
    """Kill merges from outside, at random times that a whole merge takes, until enough are dead."""
    usual, moments, dead = min(_duration(bench) for _ in range(3)), random.Random(0), 0
    for _ in range(10 * times):
        bench.prepare(over=over)
        row = bench.row(bench.merge_and_die(after=moments.uniform(0, usual)))
        dead += row["ended"] == -signal.SIGKILL
        yield row
        if dead == times:
            return


def _duration(bench: Bench) -> float:
    start = time.perf_counter()
    bench.merge_and_die()
    return time.perf_counter() - start


EXPERIMENTS: dict[str, Callable[..., Generator[Row]]] = {
    "kill": killed,
    "full disk": lambda bench, over: failed(bench, errno.ENOSPC, over=over),
    "I/O error": lambda bench, over: failed(bench, errno.EIO, over=over),
    "random": lambda bench, over: killed_at_random(bench, 20, over=over),
}

if __name__ == "__main__":
    rows = EXPERIMENTS[sys.argv[2]](Bench(Path(sys.argv[1])), over=sys.argv[3] == "over")
    sys.stdout.write(json.dumps(list(rows)))
