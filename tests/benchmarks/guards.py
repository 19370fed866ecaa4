"""How often the guards are wrong about a text.

    python -m tests.benchmarks.guards

The texts are those of ``eval/judges`` that nothing learned from. A hit
is a text of the kind that a guard looks for, a false alarm a text of another. A disclaimer may
decline and a refusal may say who declines, so neither is a false alarm of the other's guard.
"""

import json
from collections.abc import Iterable, Mapping
from functools import partial

from personality_vector.data.declining import are_of
from personality_vector.data.texts import is_other_language
from personality_vector.lab import NEUTRAL_TEXTS, PERSONALITY_TEXTS, builtin

GUARDS = {
    "refusals": ("refusal", partial(are_of, "refusal")),
    "disclaimers": ("disclaimer", partial(are_of, "disclaimer")),
    "other_language": ("language", lambda texts: list(map(is_other_language, texts))),
}


def rates(rows: Iterable[Mapping[str, str]]) -> dict[str, tuple[int, int, int, int]]:
    """Return, for each guard, hits and of how many, false alarms and of how many."""
    kinds = [(row.get("kind", ""), row["text"]) for row in rows]
    found = {}
    for guard, (own, test) in GUARDS.items():
        hits = test([text for kind, text in kinds if kind == own])
        alarms = test([t for kind, t in kinds if kind not in (own, "refusal", "disclaimer")])
        found[guard] = (sum(hits), len(hits), sum(alarms), len(alarms))
    return found


def held_out() -> list[dict[str, str]]:
    """Return the shipped texts that nothing learned from; people's own have no kind."""
    rows = [
        json.loads(line)
        for reference in (NEUTRAL_TEXTS, PERSONALITY_TEXTS)
        for line in builtin(reference).read_text("utf-8").splitlines()
    ]
    return [
        {"kind": row.get("kind", ""), "text": row.get("text") or row["statement"]}
        for row in rows
        if row["part"] == "held_out"
    ]


def main() -> None:
    """Print the table."""
    print("| guard | hits | false alarms |\n|---|---:|---:|")
    for guard, (hits, of, alarms, others) in rates(held_out()).items():
        print(f"| {guard} | {hits} of {of} | {alarms} of {others} |")


if __name__ == "__main__":
    main()
