"""Killed or failing at any moment, a merge leaves the old output, the new one, or none.

A process of its own (this file, run as a script) imports everything once and then forks a child for
every experiment. In the child, every function of the system that changes files is wrapped, so that
the ``n``-th call can be the last one or fail.
"""

import builtins
import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

CHANGING = (
    *("open", "pwrite", "write", "fsync", "truncate", "ftruncate", "mkdir", "rename", "replace"),
    *("unlink", "remove", "rmdir", "chmod", "link", "symlink", "sendfile", "copy_file_range"),
)
FILLING = {"pwrite", "write", "truncate", "ftruncate", "mkdir", "sendfile", "copy_file_range"}
"""What needs space on the disk."""
_WRITING = os.O_WRONLY | os.O_RDWR

Wrapper = Callable[[Callable[..., Any], str, tuple[Any, ...]], Any]


# --- In the script: how to disturb a merge -------------------------------------------------------


def wrap(around: Wrapper) -> None:
    """Call ``around(function, name, arguments)`` in place of all that changes files."""
    for name in CHANGING:
        if hasattr(os, name):
            setattr(os, name, _wrapped(getattr(os, name), name, around))
    opened = _wrapped(io.open, "create", around, lambda mode="r", *_: set(mode) & set("wax+"))
    builtins.open = io.open = opened


def _wrapped(
    function: Callable[..., Any], name: str, around: Wrapper, changes: Any = None
) -> Callable[..., Any]:
    def call(*args: Any, **given: Any) -> Any:
        def run() -> Any:
            return function(*args, **given)

        if name == "create" and not changes(*args[1:2]) and "w" not in str(given.get("mode", "")):
            return run()
        return around(run, name, args)

    return call


class Kill:
    """Dies by SIGKILL at the ``n``-th moment.

    There is one before each operation, when half of what it would write may have been written, and
    one more after a file was created, when it is still empty.
    """

    def __init__(self, n: int) -> None:
        self.left = n
        self.pwrite = os.pwrite

    def __call__(self, run: Callable[[], Any], name: str, args: tuple[Any, ...]) -> Any:
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
            os.kill(os.getpid(), signal.SIGKILL)


class Fail:
    """Fails at the ``n``-th operation: once with EIO, or from there on with a full disk."""

    def __init__(self, n: int, number: int) -> None:
        self.left = n
        self.number = number

    def __call__(self, run: Callable[[], Any], name: str, args: tuple[Any, ...]) -> Any:
        creates = name == "create" or (name == "open" and args[1] & _WRITING)
        fills = creates or name in FILLING
        self.left -= fills or (self.number == errno.EIO and name in ("fsync", "rename"))
        full = self.number == errno.ENOSPC and fills and self.left <= 0
        if full or (self.number == errno.EIO and self.left == 0):
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return run()


def merge_in_child(
    words: list[str], disturb: Wrapper | None = None, kill_after: float | None = None
) -> tuple[str, str]:
    """Fork, merge, and return how it ended (``exit 0``, ``signal 9``) and what it said."""
    from personality_vector.cli.main import run

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if disturb is not None:
            wrap(disturb)
        os._exit(run(words))
    os.close(writing)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as stream:
        said = stream.read()
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status)
    return f"signal {os.WTERMSIG(status)}" if killed else f"exit {os.WEXITSTATUS(status)}", said


# --- In the script: what is on the disk ----------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}


class Bench:
    """A folder with a base, a fine-tune, and the outputs of two merges to compare with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder / "work", folder / "work" / "out"
        terms = f"{folder / 'tuned'}="
        self.words = ["merge", "--base", str(folder / "base"), "--out", str(self.out)]
        self.words += ["--force", "--quiet", "--method", "ties", "--term"]
        self.folder.mkdir()
        self.wholes = {}
        for name, alpha in (("old", "0.25"), ("new", "0.5")):
            self.term = terms + alpha
            self._merge_here()
            self.wholes[name] = content(self.out)

    def _merge_here(self) -> None:
        """Merge in this process, so that children find everything imported and compiled."""
        from personality_vector.cli.main import run

        with contextlib.redirect_stdout(io.StringIO()):
            assert run([*self.words, self.term]) == 0

    def merge(self, *args: Any) -> tuple[str, str]:
        return merge_in_child([*self.words, self.term], *args)

    def prepare(self, *, over: bool) -> None:
        """Empty the folder; with ``over`` put the old output there."""
        for left in list(self.folder.iterdir()):
            shutil.rmtree(left)
        if over:
            for name, data in self.wholes["old"].items():
                file = self.out / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)

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
            index = files.get("model.safetensors.index.json", b"{}")
            wanted = set(json.loads(index or b"{}").get("weight_map", {}).values())
            wanted = wanted or {"model.safetensors"}
            if "config.json" in files and wanted <= set(files):
                weights = {name: files[name] for name in wanted}
                if not any(weights.items() <= whole.items() for whole in self.wholes.values()):
                    found.append(folder.name)
        return found


Row = dict[str, Any]


def sweep(bench: Bench, disturb: Callable[[int], Wrapper], *, over: bool) -> list[Row]:
    """Disturb a merge at the first moment, the second, and so on until it is not disturbed."""
    rows: list[Row] = []
    while not rows or not rows[-1]["undisturbed"]:
        bench.prepare(over=over)
        watched = disturb(len(rows) + 1)
        ended, said = bench.merge(watched)
        row = {"ended": ended, "said": said, "state": bench.state(), "impostors": bench.impostors()}
        row["left"] = sorted(path.name for path in bench.folder.iterdir() if path != bench.out)
        row["undisturbed"] = ended == "exit 0" and said == "" and not row["left"]
        row["again"] = [*bench.merge(), bench.state(), len(list(bench.folder.iterdir()))]
        rows.append(row)
    return rows


def at_random(bench: Bench, times: int) -> list[Row]:
    """Kill merges after random times that a whole merge takes, half of them over an old output."""
    start = time.perf_counter()
    bench.merge()
    usual = time.perf_counter() - start
    moments = random.Random(0)
    rows = []
    for number in range(times):
        bench.prepare(over=number % 2 == 1)
        ended, _ = bench.merge(None, moments.uniform(0, usual))
        row = {"ended": ended, "state": bench.state(), "impostors": bench.impostors()}
        rows.append({**row, "again": [*bench.merge(), bench.state()]})
    return rows


EXPERIMENTS: dict[str, Callable[[Bench, bool], list[Row]]] = {
    "kill": lambda bench, over: sweep(bench, Kill, over=over),
    "full disk": lambda bench, over: sweep(bench, lambda n: Fail(n, errno.ENOSPC), over=over),
    "I/O error": lambda bench, over: sweep(bench, lambda n: Fail(n, errno.EIO), over=over),
    "random": lambda bench, _: at_random(bench, 20),
}


def main(folder: str, experiment: str, over: str) -> None:
    rows = EXPERIMENTS[experiment](Bench(Path(folder)), over == "over")
    sys.stdout.write(json.dumps(rows))


# --- In pytest -----------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path):
    """Return ``experiment(name, over)``: what became of each disturbed merge."""
    drawn = torch.randn(2, 7_000, generator=torch.Generator().manual_seed(0))
    ends = {"base": drawn[0], "tuned": drawn[0] + 0.01 * drawn[1]}
    for name, flat in ends.items():
        (tmp_path / name).mkdir()
        one, two = flat[:4_000].reshape(50, 80).clone(), flat[4_000:].clone()
        save_file({"one": one, "two": two}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text('{"model_type": "toy"}')
        (tmp_path / name / "tokenizer.json").write_text("{}")

    def run(name, over):
        place = "over" if over else "fresh"
        words = [sys.executable, __file__, str(tmp_path), name, place]
        env = {**os.environ, "PVEC_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


OVER = pytest.mark.parametrize("over", [False, True], ids=["fresh", "over an old output"])


def require_whole(rows, over):
    """Never a mixture, and running again does what was asked, as if nothing had happened."""
    allowed = {"old", "new"} if over else {"absent", "new"}
    assert {row["state"] for row in rows} == allowed
    for number, row in enumerate(rows, 1):
        assert row["impostors"] == [], (number, row)
        assert row["again"] == ["exit 0", "", "new", 1], (number, row)


@OVER
def test_killed_at_any_operation_a_merge_is_old_new_or_absent(experiment, over):
    *killed, last = experiment("kill", over)
    assert (last["ended"], last["state"]) == ("exit 0", "new")
    assert {row["ended"] for row in killed} == {"signal 9"}
    assert len(killed) > 60
    require_whole([*killed, last], over)
    for row in killed:
        assert row["left"] in ([], [".out.partial"])


@OVER
@pytest.mark.parametrize("how", ["full disk", "I/O error"])
def test_a_disk_that_fails_at_any_operation_publishes_nothing(experiment, over, how):
    *failed, last = experiment(how, over)
    assert (last["ended"], last["state"]) == ("exit 0", "new")
    assert len(failed) > 15
    require_whole([*failed, last], over)
    for row in failed:
        assert row["ended"] == "exit 4", row
        assert row["state"] == ("old" if over else "absent"), row
        assert row["left"] == [], row
        assert row["said"].startswith("error: "), row
        assert row["said"].count("\n") == 1, row


def test_killed_at_random_a_merge_is_old_new_or_absent(experiment):
    rows = experiment("random", over=False)
    assert len(rows) == 20
    for number, row in enumerate(rows):
        assert row["state"] in (("old", "new") if number % 2 else ("absent", "new")), row
        assert row["impostors"] == [], row
        assert row["again"] == ["exit 0", "", "new"], row
    assert sum(row["ended"] == "signal 9" for row in rows) >= 10


if __name__ == "__main__":
    main(*sys.argv[1:])
