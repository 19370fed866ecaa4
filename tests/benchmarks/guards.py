"""How often the guards are wrong about a text.

    python -m tests.benchmarks.guards FILE.jsonl ...

Rows have a ``kind`` and a ``text``; those without a kind are what people say of themselves. A hit
is a text of the kind that a guard looks for, a false alarm a text of another. A disclaimer may
decline and a refusal may say who declines, so neither is a false alarm of the other's guard.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from personality_vector.data.texts import is_disclaimer, is_other_language, is_refusal

GUARDS = {
    "refusals": ("refusal", is_refusal),
    "disclaimers": ("disclaimer", is_disclaimer),
    "other_language": ("language", is_other_language),
}


def rates(rows: Iterable[Mapping[str, str]]) -> dict[str, tuple[int, int, int, int]]:
    """Return, for each guard, hits and of how many, false alarms and of how many."""
    kinds = [(row.get("kind", ""), row["text"]) for row in rows]
    found = {}
    for guard, (own, test) in GUARDS.items():
        hits = [test(text) for kind, text in kinds if kind == own]
        alarms = [test(text) for kind, text in kinds if kind not in (own, "refusal", "disclaimer")]
        found[guard] = (sum(hits), len(hits), sum(alarms), len(alarms))
    return found


def read(files: Iterable[Path]) -> list[dict[str, str]]:
    """Return the rows of JSON lines."""
    return [json.loads(line) for file in files for line in file.read_text("utf-8").splitlines()]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    print("| guard | hits | false alarms |\n|---|---:|---:|")
    for guard, (hits, of, alarms, others) in rates(read(parser.parse_args().files)).items():
        print(f"| {guard} | {hits} of {of} | {alarms} of {others} |")


if __name__ == "__main__":
    main()
