"""A script: verbs that are killed or that fail at every moment, and what is on the disk then.

It imports everything once; what is disturbed runs in a forked child.
``python -m tests.faults.disturbed --points 200`` spreads so many moments over all verbs, prints
what became of each, and exits with 1 if a law is broken: an output is the old one, the new one or
absent; the same command then does what was asked, as if nothing had happened; a run measures no
finished cell again; and no input changes.
"""

import argparse
import contextlib
import errno
import gc
import importlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults.moments import Arguments, Around, Fail, Kill, wrapped
from tests.faults.state import (
    RESULTS,
    Snapshot,
    State,
    content_of,
    finished_cells,
    rows_of,
    snapshot,
)
from tests.faults.verbs import Case, cases


class Bench:
    """A folder in which one case after the other is made ready, disturbed, and looked at."""

    def __init__(self, folder: Path) -> None:
        self.work, self.kept = folder / "work", folder / "kept"
        self.measured: list[Any] = []  # the cells that were measured here

    def prepare(self, case: Case) -> State:
        """Return what a case begins and ends with, after carrying it out undisturbed."""
        shutil.rmtree(self.kept, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        for words in case.before:
            self.require_done(case, words)
        shutil.copytree(self.work, self.kept, symlinks=True)
        old, old_rows = snapshot(self.work), self._rows()
        started = time.perf_counter()
        self.require_done(case, case.words)
        seconds = time.perf_counter() - started
        state = State(old, snapshot(self.work), {}, old_rows, self._rows())
        state.seconds = seconds
        state.discards = "--force" in case.words and case.verb in ("eval", "sweep", "compare")
        return state

    def moments(self, case: Case, state: State, ways: Iterable[str]) -> dict[str, list[str]]:
        """Return the operations of a case that can be disturbed, and note its files meanwhile."""
        counting = {how: _disturbing(how, 0) for how in ways}
        names: dict[str, list[str]] = {how: [] for how in ways}
        self.restore()

        def noted(run: Callable[[], Any], name: str, args: Arguments) -> Any:
            for counted in counting.values():
                run = partial(counted, run, name, args)
            result = run()
            for how, counted in counting.items():
                names[how] += [name] * (counted.passed - len(names[how]))
            if name in ("replace", "rename") and Path(args[1]).is_file():
                path = Path(args[1]).resolve()
                if path.is_relative_to(self.work):
                    place = path.relative_to(self.work).as_posix()
                    state.stages.setdefault(place, set()).add(content_of(path))
            return result

        with wrapped(noted):
            self.require_done(case, case.words)
        if snapshot(self.work) != state.new:
            raise RuntimeError(f"{case.name}: is not the same twice: {self._differing(state)}")
        return names

    def restore(self) -> None:
        """Put what was there before into the folder."""
        shutil.rmtree(self.work)
        shutil.copytree(self.kept, self.work, symlinks=True)

    def here(self, case: Case, words: Iterable[str]) -> tuple[int, str]:
        """Carry out a command here; return the exit code and what it said."""
        from personality_vector.cli.main import run

        told, filled = io.StringIO(), case.filled(tuple(words), self.work / case.name_of_out)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
            try:
                return run(filled), told.getvalue()
            except Exception:  # noqa: BLE001  (what no verb may end with)
                return 70, traceback.format_exc()

    def require_done(self, case: Case, words: Iterable[str]) -> None:
        """Carry out a command that must succeed."""
        code, told = self.here(case, words)
        if code or told:
            raise RuntimeError(f"{case.name}: {' '.join(words)}: {code}: {told}")

    def disturbed(self, case: Case, around: Around, after: float | None) -> tuple[int, str]:
        """Carry out a case in a child; return how it ended and what it said."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with wrapped(around):
                code, told = self.here(case, case.words)
            os.write(writing, told.encode()[-60_000:])
            os._exit(code)
        os.close(writing)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reading) as told_there:
            told = told_there.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told

    def again(self, case: Case, state: State) -> Generator[str]:
        """Yield what is wrong with the same command, carried out once more."""
        finished, found = finished_cells(self.work), state.name(snapshot(self.work))
        self.measured.clear()
        code, told = self.here(case, case.words)
        if (code, told) != (0, "") and not (found == "new" and "exists; choose another" in told):
            yield f"again: exit code {code}: {told[-300:]}"
        elif differing := self._differing(state):
            yield f"again: differs from an undisturbed run in {differing}"
        twice = finished.intersection(self.measured)
        if twice and not state.discards:
            yield f"again: {len(twice)} finished cells were measured again"

    def _differing(self, state: State) -> list[str]:
        found = snapshot(self.work)
        return sorted(n for n in {*found, *state.new} if found.get(n) != state.new.get(n))[:5]

    def _rows(self) -> dict[str, Any]:
        return {file.parent.name: rows_of(file) for file in self.work.glob(f"*/{RESULTS}")}


@contextlib.contextmanager
def still(bench: Bench) -> Generator[None]:
    """Stop the clock, note what is measured, and start no other process.

    What verbs start is run here, where a kill reaches it and nothing is imported again.
    """
    from personality_vector.study import batches, worker
    from personality_vector.subject import subject

    def here(words: list[str], **_: Any) -> Any:
        module, told = importlib.import_module(words[3]), io.StringIO()
        with contextlib.redirect_stdout(told):
            code = getattr(module, "main", None) or module._child
            return subprocess.CompletedProcess(words, code(*words[4:]), told.getvalue(), "")

    found = worker.Worker._found_together
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=time.sleep)

    def noted(self: Any, points: Any) -> Any:
        bench.measured.extend(tuple(cell) for cells in points.values() for cell in cells)
        return found(self, points)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", here)
        patch.setattr(worker, "time", clock)
        patch.setattr(subject, "time", clock)
        patch.setattr(batches, "time", clock)
        patch.setattr(worker.Worker, "_found_together", noted)
        yield


@dataclass
class Tally:
    """What became of the disturbances of one case."""

    case: Case
    how: str
    moments: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


NUMBERS = {"kill": 0, "random": 0, "full disk": errno.ENOSPC, "I/O error": errno.EIO}


def _disturbing(how: str, n: int) -> Kill:
    """Return what disturbs the ``n``-th moment; with 0 it only counts them."""
    return Fail(n, NUMBERS[how]) if NUMBERS[how] else Kill(n if how == "kill" else 0)


def tally(bench: Bench, case: Case, state: State, how: str, names: list[str], points: int) -> Tally:
    """Disturb a case at so many of its moments, evenly spread."""
    found, times = Tally(case, how, len(names)), random.Random(0)
    for n in sorted({int((i + 0.5) * len(names) / points) + 1 for i in range(points)}):
        after = times.uniform(0, state.seconds) if how == "random" else None
        bench.restore()
        ended, told = bench.disturbed(case, _disturbing(how, n), after)
        left = snapshot(bench.work)
        found.ended.update(["killed" if ended == -signal.SIGKILL else f"exit {ended}"])
        found.ended.update([state.name(left)])
        wrong = [*state.broken(bench.work), *_complaints(state, left, how, ended, told)]
        wrong += bench.again(case, state)
        found.faults += [f"{case.name}, {how} at {n} ({names[n - 1]}): {one}" for one in wrong]
    return found


def _complaints(state: State, left: Snapshot, how: str, ended: int, told: str) -> Generator[str]:
    """Yield what is wrong with how a command ended."""
    if how == "kill" and ended != -signal.SIGKILL:
        yield f"was not killed: {ended}: {told[-300:]}"
    if how in ("kill", "random"):
        return
    hidden = [name for name in left if name.startswith(".") or "/." in name]
    if hidden := [name for name in hidden if ".training/" not in name]:  # which resumes
        yield f"left {hidden[:3]}"
    is_new = state.name(left) == "new"
    if ended == 0:  # a way to copy that is tried first, a folder that is there already
        if told or not is_new:
            yield f"exit code 0, but {state.name(left)}: {told[-300:]}"
    elif ended not in (1, 4) or not told.startswith("error: ") or told.count("\n") != 1:
        yield f"exit code {ended}: {told[-300:]}"
    elif how == "full disk" and is_new and state.old != state.new:
        yield "was published although it was refused"


def main(words: list[str] | None = None) -> int:
    """Disturb the verbs, print a table, and return 1 if a law is broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=200, help="moments over all cases, for each")
    parser.add_argument("--how", nargs="+", choices=NUMBERS, default=["kill"])
    parser.add_argument("--only", nargs="+", default=[""], help="words of the names of cases")
    asked = parser.parse_args(words)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a disk would be flushed
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        folder, lab = Path(scratch), Path(scratch) / "lab"
        tempfile.tempdir = str(folder / "tmp")
        for each in (lab, folder / "tmp"):
            each.mkdir()
        bench, tallies = Bench(folder), list[Tally]()
        with cases(lab) as found, still(bench):
            wanted = [case for case in found if any(part in case.name for part in asked.only)]
            inputs = snapshot(lab)
            gc.freeze()  # what a child touches it must copy
            for one in _tallies(bench, wanted, asked.how, asked.points):
                tallies.append(one)
                sys.stdout.write("\n  ".join([_row(tallies[-1]), *tallies[-1].faults]) + "\n")
                sys.stdout.flush()
            if snapshot(lab) != inputs:
                tallies[-1].faults.append("an input was changed")
    faults = [fault for one in tallies for fault in one.faults]
    total = sum((one.ended for one in tallies), Counter[str]())
    said = ", ".join(f"{count} {name}" for name, count in sorted(total.items()))
    points = sum(total.values()) // 2
    sys.stdout.write(f"{len(tallies)} cases, {points} points: {said}, {len(faults)} faults\n")
    return 1 if faults else 0


def _tallies(
    bench: Bench, wanted: list[Case], ways: Iterable[str], points: int
) -> Generator[Tally]:
    """Disturb each case in each way, at so many moments over all cases."""
    left = dict.fromkeys(ways, points)
    for index, case in enumerate(wanted):
        state = bench.prepare(case)
        for how, names in bench.moments(case, state, left).items():
            share = -(-left[how] // (len(wanted) - index))
            yield (found := tally(bench, case, state, how, names, share))
            left[how] -= sum(found.ended.values()) // 2


def _row(found: Tally) -> str:
    """Return a line of the table."""
    ended = ", ".join(f"{count} {name}" for name, count in sorted(found.ended.items()))
    name = f"{found.case.name}, {found.how}"
    return f"{name:42} {found.moments:4} moments: {ended}, {len(found.faults)} faults"


if __name__ == "__main__":
    sys.exit(main())
