"""Where the time of a merge of five fine-tunes goes: imports, plan, weights.

    python tests/benchmarks/merging/stages.py --folder runs/bench/0.5b

Medians over fresh processes, of task arithmetic with the inputs in the page cache. The plan holds
the first call of a compiled loop, and with it the loading of numba's.
"""

import time

START = time.perf_counter()

import argparse  # noqa: E402
import json  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from itertools import pairwise  # noqa: E402
from pathlib import Path  # noqa: E402
from statistics import median  # noqa: E402

from models import SHAPES, Models, make  # noqa: E402
from runner import ALPHAS, clear, markdown, warm  # noqa: E402

from personality_vector.merging.engine import write_merge  # noqa: E402
from personality_vector.merging.merged import merged  # noqa: E402
from personality_vector.merging.plan import Output, plan_merge  # noqa: E402

IMPORTED = (time.perf_counter(), time.process_time())
STAGES = ("imports, of which torch is most", "plan", "merge and write")


def now() -> tuple[float, float]:
    """Return seconds of wall clock and of CPU."""
    return time.perf_counter(), time.process_time()


def once(models: Models, out: Path) -> list[list[float]]:
    """Merge in this process, and return wall and CPU seconds of each stage."""
    begun = now()
    delta = merged(models.base, list(zip(models.tuned, ALPHAS, strict=True)))
    plan = plan_merge(models.base, delta, output=Output(shard_size="300MB"))
    planned = now()
    write_merge(plan, out)
    ends = [(START, 0.0), IMPORTED, begun, planned, now()]
    spans = [[y - x for x, y in zip(*pair, strict=True)] for pair in pairwise(ends)]
    return [spans[0], *spans[2:]]


def main() -> None:
    """Run the stages in processes of their own and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/0.5b"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", action="store_true", help="in this process, as JSON")
    given = parser.parse_args()
    folder = given.folder.resolve()
    models, out = make(given.shape, folder), folder / "out"
    if given.once:
        print(json.dumps(once(models, out)))
        return
    warm(models)
    command = [sys.executable, __file__, "--once", "--shape", given.shape, "--folder", str(folder)]
    found = []
    for _ in range(given.repeats):
        clear(out)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    clear(out)
    rows = []
    for name, seconds in zip(STAGES, zip(*found, strict=True), strict=True):
        rows.append([name, *(f"{median(column):.2f}" for column in zip(*seconds, strict=True))])
    print(markdown(["stage", "wall s", "CPU s"], rows))


if __name__ == "__main__":
    main()
