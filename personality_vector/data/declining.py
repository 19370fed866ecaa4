"""Replies that decline a request, and replies in which a machine says that it is one."""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

from personality_vector.data.features import WordFeatures
from personality_vector.data.rows import raw_rows
from personality_vector.data.statements import read_statements
from personality_vector.data.texts import read_texts
from personality_vector.lab import BUILTIN, NEUTRAL_TEXTS, PERSONALITY_TEXTS, builtin

Kind = Literal["refusal", "disclaimer"]

PEOPLE = f"{BUILTIN}eval/judges/people.jsonl"
"""What people say in the words of refusals and disclaimers."""

_OPENING = 400  # characters: what is said after them no longer declines
_STRENGTH = 10.0
_FALSE_ALARMS = 0.01
_FOLDS = 5


def are_of(kind: Kind, texts: Sequence[str]) -> list[bool]:
    """Return which texts decline a request, or say that a machine without traits speaks.

    A logistic regression on the words of the shipped texts, of which it learned some 200 of each
    kind. Its threshold is that of 1 % false alarms on texts that were left out of learning. It
    reads how a text begins. ``tests/benchmarks/guards.py`` measures how often it is wrong.

    >>> are_of("refusal", ["I'm sorry, but I can't help with that.", "I can't stand crowds."])
    [True, False]
    """
    return [kind in found for found in kinds_of(texts)]


def kinds_of(texts: Sequence[str]) -> list[set[Kind]]:
    """Return which of the kinds each text is of, as :func:`are_of` tells them."""
    found: list[set[Kind]] = [set() for _ in texts]
    spoken = [number for number, text in enumerate(texts) if text.strip()]
    if spoken:
        features, guards = _learned()
        rows = features([[texts[number][:_OPENING]] for number in spoken])
        for kind, guard in guards.items():
            likely = guard.regression.predict_proba(rows)[:, 1] > guard.threshold
            for number, is_of in zip(spoken, likely, strict=True):
                if is_of:
                    found[number].add(kind)
    return found


class _Guard(NamedTuple):
    regression: Any
    threshold: float


@cache
def _learned() -> tuple[WordFeatures, dict[Kind, _Guard]]:
    import numpy as np

    neutral = [r for r in raw_rows(builtin(NEUTRAL_TEXTS)).values() if r["part"] == "train"]
    people = read_statements(builtin(PERSONALITY_TEXTS), part="train")
    others = [*(one.text for one in people), *read_texts(builtin(PEOPLE))]
    texts = [*(row["text"] for row in neutral), *others]
    features = WordFeatures()
    rows = features.learned([[text[:_OPENING]] for text in texts])
    fold, guards = np.arange(len(texts)) % _FOLDS, dict[Kind, _Guard]()
    for kind in get_args(Kind):
        own = np.array([*(row["kind"] == kind for row in neutral), *[False] * len(others)])
        likely = np.zeros(len(texts))
        for out in (fold == number for number in range(_FOLDS)):
            likely[out] = _fitted(rows[~out], own[~out]).predict_proba(rows[out])[:, 1]
        threshold = float(np.quantile(likely[~own], 1 - _FALSE_ALARMS))
        guards[kind] = _Guard(_fitted(rows, own), threshold)
    return features, guards


def _fitted(rows: Any, own: Any) -> Any:
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    weights = np.where(own, 5.0, 1.0)  # there are far fewer of them
    return LogisticRegression(C=_STRENGTH, max_iter=1000, tol=1e-3).fit(rows, own, weights)
