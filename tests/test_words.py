"""Phrases that must not return: each is plain English said in a roundabout way."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PHRASES = {
    r"that (it|the \w+|they|a \w+) ha(s|ve) not\b(?! \w+(ed|en|t)\b)": "that it does not have",
    r"\bha(s|ve) not (a|an|the|any|as many)\b": "does not have a",
    r"(?<!here )\bis no (name|file|tensor|number|array|checkpoint|delta|model)\b": "is not a",
    r"\bare no (neurons|clause|numbers|names)\b": "are not",
    r"\bgoes on where\b|\bresumes where it stopped\b": "resumes",
    r"\bgo on from them\b|\bgoes on from them\b": "continue with them",
    r"\bhangs? (from|on)\b": "depends on",
    r"\bpassed over\b": "skipped",
    r"\blets? go of\b": "releases",
    r"\bsooner on\b": "faster on",
    r"help=\"Of \w+": "a noun: Commit message.",
    r"\bSay it\b": "Print the version.",
    r"\bAll take --": "Every command takes",
    r"\b(seeds?|dtypes?|models?) differ;": "differ, and in what",
    r"\b(Learnt|Taps|Gauges|Yardstick|[Ff]oresight|require_no_strangers)\b": "the field's noun",
    r"\bturns? it round\b": "inverts",
    r"\bas it would not\b|\bwhich (has|have) none\b": "which does not have one",
}
"""A pattern, and what to write instead."""

TEXTS = [
    *ROOT.glob("*.md"),
    *(
        ROOT / folder / "README.md"
        for folder in ("training", "training/data", "training/steering", "merges", "eval")
    ),
    *(ROOT / "eval" / "results").glob("*.md"),
    *(ROOT / "personality_vector").rglob("*.py"),
]


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_does_not_return(phrase):
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in TEXTS
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(phrase, line)
    ]
    assert found == [], f"write instead: {PHRASES[phrase]}"
