"""Peak memory of a merge by every method and shape: does it grow with the model?

    python tests/benchmarks/merging/memory.py --folder runs/bench

RssAnon is what the process allocated; files that it reads lie in the page cache and do not count.
"""

import argparse
import os
from pathlib import Path

from models import SHAPES, make
from runner import PVEC, Usage, clear, machine, markdown, measure, pvec_command, save


def main() -> None:
    """Run every method on every shape and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["0.5b", "1.5b"])
    parser.add_argument("--methods", nargs="*", choices=PVEC, default=list(PVEC))
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="JSON; default memory.json in the folder")
    given = parser.parse_args()
    found: dict[str, dict[str, Usage]] = {}
    for shape in given.shapes:
        folder = given.folder.resolve() / shape
        models, out = make(shape, folder), folder / "out"
        for method in given.methods:
            clear(out)
            usage = measure(pvec_command(method, models, out), given.threads)
            found.setdefault(method, {})[shape] = usage
            print(f"{method} {shape}: {usage.anonymous / 1e6:.0f} MB", flush=True)
        clear(out)
    rows = [
        [method, *(f"{usage.anonymous / 1e6:.0f}" for usage in by_shape.values())]
        for method, by_shape in found.items()
    ]
    print("\n" + markdown(["method", *(f"{shape}, RssAnon MB" for shape in given.shapes)], rows))
    content = {"machine": machine(given.threads), "peaks": found}
    save(given.out or given.folder / "memory.json", content)


if __name__ == "__main__":
    main()
