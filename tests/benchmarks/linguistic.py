"""How well the linguistic indices tell poles apart, on texts that nothing was fitted to.

    python -m tests.benchmarks.linguistic --data DIR [--dictionary FILE]

Stories: ``persona_stories/gpt4.jsonl`` of ``--data``, by PersonaLLM (MIT): ten for each of the 32
profiles of five poles. AUC is the area under the ROC curve of high against low, with a 95 %
interval that draws whole profiles again. Beside the index stand the number of words alone; that
category of the index which is best on these stories, chosen after the fact; and the index where
poles are dealt out at random to the stories, as the range of the middle 95 % of 200 draws.

Own texts: Pearson's r of the index with the pole over the shipped statements, replies and stories,
which are short; the interval draws texts again. ``--reference`` prints the numbers that stand under
that key in ``eval/lexicon/english.yaml``.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parent / "merging"))

from runner import markdown

from personality_vector.data.lexicon import Lexicon, read_lexicon, reference_of
from personality_vector.data.statements import read_statements
from personality_vector.data.texts import words
from personality_vector.lab import PERSONALITY_TEXTS, builtin
from personality_vector.numeric.statistics import associations, interval
from tests.benchmarks.judges import POLES

_RESAMPLES, _SHUFFLES = 1000, 200


class Story(NamedTuple):
    """A story, the poles of its teller, and its shares of words."""

    text: str
    profile: str
    poles: dict[str, bool]
    shares: dict[str, float]


def stories(file: Path, lexicon: Lexicon) -> list[Story]:
    """Return the stories with their shares."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return [
        Story(
            row["story"],
            row["type"],
            dict(POLES[word] for word in row["type"].split("_")),
            lexicon.shares(row["story"]),
        )
        for row in rows
    ]


def area(found: Sequence[Story], trait: str, score: Callable[[Story], float]) -> str:
    """Return the AUC with its interval over profiles."""
    high = np.array([story.poles[trait] for story in found])
    scores = np.array([score(story) for story in found])
    profiles = sorted({story.profile for story in found})
    rows = [np.flatnonzero([s.profile == profile for s in found]) for profile in profiles]
    rng = np.random.default_rng(0)
    drawn = [
        np.concatenate([rows[each] for each in picked])
        for picked in rng.integers(0, len(rows), (_RESAMPLES, len(rows)))
    ]
    resampled = [roc_auc_score(high[d], scores[d]) for d in drawn if 0 < high[d].sum() < len(d)]
    value, low, top = interval(roc_auc_score(high, scores), np.array(resampled))
    return f"{value:.2f} ({low:.2f} to {top:.2f})"


def shuffled(found: Sequence[Story], trait: str, score: Callable[[Story], float]) -> str:
    """Return the range of AUC where the poles are dealt out at random."""
    high = np.array([story.poles[trait] for story in found])
    scores, rng = [score(story) for story in found], np.random.default_rng(0)
    areas = [roc_auc_score(rng.permutation(high), scores) for _ in range(_SHUFFLES)]
    low, top = np.quantile(areas, [0.025, 0.975])
    return f"{np.mean(areas):.2f} ({low:.2f} to {top:.2f})"


def row(lexicon: Lexicon, found: Sequence[Story], trait: str) -> list[str]:
    """Return a row of the table of stories."""

    def index(story: Story) -> float:
        return lexicon.index(trait, story.shares)

    high = [story.poles[trait] for story in found]
    signed = {
        name: [sign * story.shares[name] for story in found]
        for name, sign in lexicon.signs[trait].items()
    }
    best = max(signed, key=lambda name: float(roc_auc_score(high, signed[name])))
    sign = lexicon.signs[trait][best]
    return [
        trait,
        area(found, trait, index),
        area(found, trait, lambda story: len(words(story.text))),
        f"{'+' if sign > 0 else '-'}{best} {area(found, trait, lambda s: sign * s.shares[best])}",
        shuffled(found, trait, index),
    ]


def categories(lexicon: Lexicon, found: Sequence[Story], trait: str) -> str:
    """Return the AUC of each category of an index, in the direction of the literature."""
    high = [story.poles[trait] for story in found]
    return ", ".join(
        f"{'+' if sign > 0 else '-'}{name} "
        f"{roc_auc_score(high, [sign * story.shares[name] for story in found]):.2f}"
        for name, sign in lexicon.signs[trait].items()
    )


def crossed(lexicon: Lexicon, found: Sequence[Story], trait: str) -> list[str]:
    """Return the AUC of the index of a trait for the poles of every trait."""
    scores = [lexicon.index(trait, story.shares) for story in found]
    others = found[0].poles
    areas = [roc_auc_score([story.poles[other] for story in found], scores) for other in others]
    return [trait, *(f"{area:.2f}" for area in areas)]


def correlations(lexicon: Lexicon) -> list[list[str]]:
    """Return the rows of the table of our own texts."""
    rows, texts = [], read_statements(builtin(PERSONALITY_TEXTS))
    for trait in lexicon.signs:
        own = [one for one in texts if one.trait == trait]
        high = [float(one.level == "high") for one in own]
        index = [lexicon.index(trait, lexicon.shares(one.text)) for one in own]
        length = [float(len(words(one.text))) for one in own]
        cells = [
            f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})"
            for r in (associations(high, values)["pearson"] for values in (index, length))
        ]
        rows.append([trait, str(len(own)), *cells])
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dictionary", type=Path)
    parser.add_argument("--reference", action="store_true")
    given = parser.parse_args()
    lexicon = read_lexicon(given.dictionary)
    if given.reference:
        for name, (mean, sd) in reference_of(lexicon).items():
            print(f"  {name}: {{mean: {mean:.4f}, sd: {sd:.4f}}}")
    if given.data:
        found = stories(given.data / "persona_stories" / "gpt4.jsonl", lexicon)
        heads = ["trait", "AUC of the index", "of words alone", "best category", "shuffled poles"]
        print(markdown(heads, [row(lexicon, found, trait) for trait in lexicon.signs]), "\n")
        parts = [[trait, categories(lexicon, found, trait)] for trait in lexicon.signs]
        print(markdown(["trait", "AUC of its categories"], parts), "\n")
        rows = [crossed(lexicon, found, trait) for trait in lexicon.signs]
        print(markdown(["index of", *(f"poles of {t}" for t in found[0].poles)], rows), "\n")
    print(markdown(["trait", "texts", "r of the index", "of words alone"], correlations(lexicon)))


if __name__ == "__main__":
    main()
