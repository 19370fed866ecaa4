"""How well a judge abstains and tells poles apart, on texts that nothing learned from.

    python -m tests.benchmarks.judges --data DIR [--judge classifier] [--model MODEL] [--limit N]

Text without personality and characters who speak: the held-out rows of ``eval/judges``. Statements:
``big5_statements`` of ``--data``, from Perez et al. 2022 (CC BY 4.0). Stories:
``persona_stories/gpt4.jsonl`` of PersonaLLM (MIT), each told as a person with five given poles.
AUC is the area under the ROC curve with a 95 % interval over texts; unscored texts stand at the
middle of the scale. ``--limit`` takes so many texts of each pole, for judges that take long.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parent / "merging"))

from runner import markdown

from personality_vector.cli.judge import spec_of
from personality_vector.data.personas import rubric_of
from personality_vector.data.statements import read_statements
from personality_vector.data.texts import read_texts
from personality_vector.lab import NEUTRAL_TEXTS, PERSONALITY_TEXTS, builtin
from personality_vector.subject import Answer, Judge, rated
from personality_vector.subject.subject import Subject
from personality_vector.traits import BIG_FIVE

Labelled = list[tuple[str, bool]]
POLES = {
    "extr": ("extraversion", True),
    "intr": ("extraversion", False),
    "agre": ("agreeableness", True),
    "anta": ("agreeableness", False),
    "cons": ("conscientiousness", True),
    "unco": ("conscientiousness", False),
    "neur": ("neuroticism", True),
    "emot": ("neuroticism", False),
    "open": ("openness", True),
    "clos": ("openness", False),
}
_RESAMPLES = 1000


def stories(file: Path) -> dict[str, Labelled]:
    """Return trait to stories, and whether each is of the high pole."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    found: dict[str, Labelled] = {trait: [] for trait in BIG_FIVE}
    for row in rows:
        for trait, is_high in (POLES[word] for word in row["type"].split("_")):
            found[trait].append((row["story"], is_high))
    return found


def statements(source: Path, part: Any = None) -> dict[str, Labelled]:
    """Return trait to statements, and whether each is of the high pole."""
    rows = read_statements(source, part=part)
    return {t: [(s.text, s.level == "high") for s in rows if s.trait == t] for t in BIG_FIVE}


def values(judge: Judge, trait: str, texts: Iterable[str]) -> list[float | None]:
    """Return the scores of texts."""
    answers = [Answer(str(number), 0, "", text) for number, text in enumerate(texts)]
    return [score.value for score in rated(judge, rubric_of(trait), answers)]


def area(labels: Sequence[bool], scores: Sequence[float]) -> str:
    """Return the area under the ROC curve and its 95 % interval (bootstrap over texts)."""
    rng, high, score = np.random.default_rng(0), np.array(labels), np.array(scores)
    found = [
        roc_auc_score(high[drawn], score[drawn])
        for drawn in rng.integers(0, len(high), (_RESAMPLES, len(high)))
        if 0 < high[drawn].sum() < len(high)
    ]
    low, top = np.quantile(found, [0.025, 0.975])
    return f"{roc_auc_score(high, score):.3f} ({low:.2f} to {top:.2f})"


def row(judge: Judge, trait: str, found: Labelled) -> list[str]:
    """Return coverage, AUC over scored texts and AUC over all."""
    scores, labels = values(judge, trait, [text for text, _ in found]), [high for _, high in found]
    middle = sum(judge.scale) / 2
    pairs = [(s, high) for s, high in zip(scores, labels, strict=True) if s is not None]
    whole = area(labels, [middle if score is None else score for score in scores])
    if len({high for _, high in pairs}) < 2:
        return [f"{len(pairs) / len(scores):.0%}", "", whole]
    scored = area([high for _, high in pairs], [score for score, _ in pairs])
    return [f"{len(pairs) / len(scores):.0%}", scored, whole]


def chosen(found: Labelled, limit: int | None) -> Labelled:
    """Return at most ``limit`` texts of each pole, the same ones for every judge."""
    if limit is None:
        return found
    poles = [[one for one in found if one[1] == high] for high in (True, False)]
    return [one for pole in poles for one in random.Random(0).sample(pole, min(limit, len(pole)))]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--judge", default="classifier")
    parser.add_argument("--model")
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    spec, reader = spec_of(given.judge, given.model)
    judge: Any = spec.open()
    if reader:
        judge = judge.prepare(Subject.load(reader))
    blank = read_texts(builtin(NEUTRAL_TEXTS), "held_out")
    if given.limit:
        blank = random.Random(0).sample(blank, min(len(blank), 4 * given.limit))
    alarms = {t: [v is not None for v in values(judge, t, blank)] for t in BIG_FIVE}
    shares = [f"{sum(found) / len(found):.1%}" for found in alarms.values()]
    total = sum(map(sum, alarms.values())) / sum(map(len, alarms.values()))
    print(f"{judge.name}: {len(blank)} texts without personality, scored all the same:\n")
    print(markdown(["", *BIG_FIVE, "all"], [["false alarms", *shares, f"{total:.1%}"]]))
    sources = {
        "statements": statements(given.data / "big5_statements"),
        "characters": statements(builtin(PERSONALITY_TEXTS), "held_out"),
        "stories": stories(given.data / "persona_stories" / "gpt4.jsonl"),
    }
    for name, found in sources.items():
        heads = ["trait", "n", "scored", "AUC over scored", "AUC over all"]
        texts = {trait: chosen(found[trait], given.limit) for trait in BIG_FIVE}
        rows = [[trait, str(len(each)), *row(judge, trait, each)] for trait, each in texts.items()]
        print(f"\n{name}\n\n{markdown(heads, rows)}", flush=True)


if __name__ == "__main__":
    main()
