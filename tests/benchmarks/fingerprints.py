"""How fast every byte is seen, and what that adds to a merge beside another version's.

    python -m tests.benchmarks.fingerprints --before ../before/.venv/bin/pvec

The first table is of this process; the second of whole processes, imports included, in turns:
the version before, this one with an empty cache of digests, this one with a full cache. Inputs are
in the page cache. A ratio is of two runs that followed each other.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent / "merging"))

from models import SHAPES, Models, make
from runner import PVEC, Usage, clear, markdown, measure, pvec_command, warm

from personality_vector.checkpoint import Checkpoint

BEFORE, COLD, CACHED = "before", "now, no digests cached", "now, digests cached"


def main() -> None:
    """Run both measurements and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/0.5b"))
    parser.add_argument("--before", type=Path, help="pvec of the version to compare with")
    parser.add_argument("--method", choices=PVEC, default="task_arithmetic")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    os.environ.pop("PYTHONPATH", None)  # which would give the version before the code of this one
    models = make(given.shape, given.folder.resolve())
    warm(models)
    print(throughput(models, given.threads, given.repeats))
    if given.before is not None:
        print(f"\n{merges(models, given)}")


def throughput(models: Models, threads: int, repeats: int) -> str:
    """Return a table of the fingerprints of all models."""
    size = sum(file.stat().st_size for path in models.folders for file in path.glob("*.safetens*"))
    rows = []
    for name, count, is_cached in [
        (f"every byte, {threads} threads", threads, False),
        ("every byte, 1 thread", 1, False),
        ("cached", threads, True),
    ]:
        os.environ["PVEC_THREADS"] = str(count)
        seconds = [_fingerprints(models, is_cached=is_cached) for _ in range(repeats)]
        fast = [size / second / 1e9 for second in seconds]
        rows.append([name, _shown(seconds, 1e3, 1), _shown(fast, 1.0, 1)])
    title = f"fingerprints of {len(models.folders)} models, {size / 1e9:.2f} GB"
    return markdown([title, "ms: median (min to max)", "GB/s"], rows)


def _fingerprints(models: Models, *, is_cached: bool) -> float:
    """Return the seconds that all fingerprints take."""
    with TemporaryDirectory() as cache:
        os.environ["PVEC_CACHE"] = cache
        if is_cached:
            _see(models)
        start = time.perf_counter()
        _see(models)
        return time.perf_counter() - start


def _see(models: Models) -> None:
    for path in models.folders:
        _ = Checkpoint.open(path).fingerprint


def merges(models: Models, given: argparse.Namespace) -> str:
    """Return a table of whole merges, and of their ratio to the version before."""
    found: dict[str, list[Usage]] = {BEFORE: [], COLD: [], CACHED: []}
    out = given.folder.resolve() / "out"
    command = pvec_command(given.method, models, out)
    now = [sys.executable, "-m", "personality_vector.cli", *command[1:]]
    todo: dict[str, list[str | Path]] = {
        BEFORE: [given.before.absolute(), *command[1:]],
        COLD: now,
        CACHED: now,
    }
    for repeat in range(given.repeats + 1):
        with TemporaryDirectory() as cache:
            os.environ["PVEC_CACHE"] = cache
            for name, words in todo.items():
                clear(out)
                usage = measure(words, given.threads)
                if repeat:  # numba compiles in the first
                    found[name].append(usage)
        print(*(f"{runs[-1].wall:.2f} s" for runs in found.values() if runs), flush=True)
    clear(out)
    rows = []
    for name, runs in found.items():
        pairs = list(zip(runs, found[BEFORE], strict=True))
        ratios = [[one.wall / other.wall for one, other in pairs]]
        ratios += [[one.cpu / other.cpu for one, other in pairs]]
        walls = [run.wall for run in runs]
        rows.append([name, _shown(walls, 1.0, 2), *(_shown(column, 1.0, 3) for column in ratios)])
    title = f"{given.method} of {len(models.tuned)} models"
    return markdown([title, "wall s: median (min to max)", "/ before", "CPU / before"], rows)


def _shown(numbers: list[float], factor: float, digits: int) -> str:
    low, middle, high = (
        f"{factor * number:.{digits}f}"
        for number in (min(numbers), statistics.median(numbers), max(numbers))
    )
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
