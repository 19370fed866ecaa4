"""How long a merge of five fine-tunes takes, beside mergekit and beside a bare read and write.

    python tests/benchmarks/merging/speed.py --shape 0.5b --folder runs/bench/0.5b

Whole processes, imports included, with inputs in the page cache; all cases take turns, and each
number is the median of the repeats.
"""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from models import SHAPES, Models, make
from runner import (
    MERGEKIT,
    PVEC,
    Usage,
    bare_command,
    clear,
    machine,
    markdown,
    measure,
    median,
    mergekit_command,
    pvec_command,
    save,
    warm,
)

BARE = "bare read and write"
COMPARED = ("task_arithmetic", "ties", "ties per tensor", "dare", "dare_ties")
Command = Callable[[Models, Path], list[str | Path]]


def commands(cases: list[str], peer_dtype: str) -> dict[str, Command]:
    """Return every case by name: the floor, this tool, mergekit."""
    found: dict[str, Command] = {BARE: bare_command}
    for case in cases:
        found[f"pvec {case}"] = lambda models, out, case=case: pvec_command(case, models, out)
    for case in cases:
        if case in MERGEKIT:
            found[f"mergekit {case}"] = lambda models, out, case=case: mergekit_command(
                case, models, out, peer_dtype
            )
    return found


def run(given: argparse.Namespace) -> dict[str, list[Usage]]:
    """Measure every case ``repeats`` times, in turns."""
    folder = given.folder.resolve()
    models, out = make(given.shape, folder), folder / "out"
    todo = commands(given.methods, given.peer_dtype)
    _compile(todo, folder, given.threads)
    warm(models)
    found: dict[str, list[Usage]] = {name: [] for name in todo}
    for repeat in range(given.repeats):
        for name, command in todo.items():
            if name.startswith("mergekit") and repeat >= given.peer_repeats:
                continue
            clear(out)
            found[name].append(measure(command(models, out), given.threads))
            print(f"{name}: {found[name][-1].wall:.2f} s", flush=True)
    clear(out)
    return {name: usages for name, usages in found.items() if usages}


def _compile(todo: dict[str, Command], folder: Path, threads: int) -> None:
    """Run this tool's cases on a pico model: numba compiles once per machine."""
    pico = make("pico", folder / "pico")
    for name, command in todo.items():
        if name.startswith("pvec"):
            clear(folder / "out")
            measure(command(pico, folder / "out"), threads)


def table(medians: dict[str, Usage]) -> str:
    """Return the numbers, their ratios to the floor, and mergekit's to this tool's."""
    floor = medians[BARE]
    rows = []
    for name, usage in medians.items():
        ours = medians.get(name.replace("mergekit", "pvec"), usage)
        compared = [usage.wall / ours.wall, usage.cpu / ours.cpu, usage.anonymous / ours.anonymous]
        is_peer = name.startswith("mergekit")
        rows.append(
            [
                name,
                f"{usage.wall:.2f}",
                f"{usage.cpu:.2f}",
                f"{usage.anonymous / 1e6:.0f}",
                f"{usage.resident / 1e6:.0f}",
                f"{usage.wall / floor.wall:.2f}",
                f"{usage.cpu / floor.cpu:.2f}",
                " / ".join(f"{ratio:.1f}" for ratio in compared) if is_peer else "",
            ]
        )
    columns = ["case", "wall s", "CPU s", "RssAnon MB", "max RSS MB", "wall / bare", "CPU / bare"]
    return markdown([*columns, "times pvec: wall / CPU / RssAnon"], rows)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="0.5b")
    parser.add_argument("--folder", type=Path, help="of the models; default runs/bench/SHAPE")
    parser.add_argument("--methods", nargs="*", choices=PVEC, default=list(COMPARED))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-repeats", type=int, default=3, help="of mergekit; 0 leaves it out")
    parser.add_argument("--peer-dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="JSON; default speed.json in the folder")
    given = parser.parse_args()
    given.folder = given.folder or Path("runs/bench") / given.shape
    found = run(given)
    medians = {name: median(usages) for name, usages in found.items()}
    print(f"\n{table(medians)}")
    content = {
        "machine": machine(given.threads),
        "shape": given.shape,
        "mergekit computes in": given.peer_dtype,
        "medians": medians,
        "runs": found,
    }
    save(given.out or given.folder / "speed.json", content)


if __name__ == "__main__":
    main()
