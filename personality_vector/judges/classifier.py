"""An offline judge: classifiers that learned both poles of a trait, and what is neither."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import version as distribution_version
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from personality_vector.data.features import StateFeatures, WordFeatures, identity_of_model
from personality_vector.data.personas import COHERENCE
from personality_vector.data.statements import Statement, normalised, read_statements
from personality_vector.data.texts import distinct_n, read_texts, words
from personality_vector.errors import DataError, StorageError, some
from personality_vector.files import write_file
from personality_vector.judges.spec import BaseJudge, JudgeSpec
from personality_vector.lab import NEUTRAL_TEXTS, PERSONALITY_TEXTS, builtin, cache_folder
from personality_vector.recipes.schema import LocalPath, ModelRef, Real
from personality_vector.recipes.schema import Words as Text
from personality_vector.subject import Answer, Quality, Rubric, Score, digest_of, identity_of
from personality_vector.traits import Level, Pole, Trait

LOWEST, HIGHEST = 1.0, 5.0
"""Ends of the scale; 3 is neutral."""

_FALSE_ALARMS = 0.03  # of neutral texts of a kind that was not learned
_FOLDS = 3
_LEVELS: tuple[Level, ...] = ("high", "low")
_OTHERS = 0.5  # weight of a statement of another trait; one of the trait has 1 on average
_KNOWN = 1 / 3  # share of the words that a text in the language of the statements has at least
_KEPT = 10  # traits whose classifiers this process keeps: learning them takes longer than rating
_LOOP_WORDS = 6  # a shorter text has too few bigrams to tell a loop from a sentence
_LOOP_SHARE = 1 / 3  # a phrase said three times or more leaves at most this share distinct


class ClassifierJudge(JudgeSpec):
    """Classifiers of the poles of ``statements`` and of ``neutral`` texts, which show neither.

    Rows whose ``part`` is ``held_out`` are not learned; they measure the judge. Statements that
    name no part are divided by ``held_out``. The judge sees words, or with a ``model`` the hidden
    states of that model as it reads the text, which is slower and better.
    """

    statements: LocalPath = builtin(PERSONALITY_TEXTS)
    neutral: LocalPath | None = builtin(NEUTRAL_TEXTS)
    held_out: Real = Field(default=0.2, gt=0.0, lt=1.0)
    model: ModelRef | None = None
    name: Text = "classifier"

    def open(self) -> "StatementJudge":
        """Return the judge, which learns when it rates for the first time.

        Raises:
            DataError: The texts cannot be read, or a pole is missing from either part.
            CheckpointError: The model is not a checkpoint.
        """
        learned, unseen = (
            tuple(read_texts(self.neutral, part)) if self.neutral else ()
            for part in ("train", "held_out")
        )
        return StatementJudge(
            tuple(read_statements(self.statements, part="train", held_out=self.held_out)),
            tuple(read_statements(self.statements, part="held_out", held_out=self.held_out)),
            self.name,
            learned,
            unseen,
            self.model,
        )


@dataclass(frozen=True)
class StatementJudge(BaseJudge):
    """For each trait, a logistic regression of three classes: high pole, low pole and neither.

    ``s`` is ``P(high | text) - P(low | text)``; or, if it is further from 0, the same summed over
    the ``n`` sentences of the text and divided by ``sqrt(n)``, since a long text is mostly about
    other things. A text with ``|s|`` below a threshold is *unscored*: it shows too little of the
    trait. The threshold is such that 3 % of the neutral texts exceed it when their kind was left
    out of learning. Above it, a high pole scores ``1 + 4 P(high | text, not neither)``, a low one
    6 minus that, where the probability is a logistic function of ``s``, fitted on statements that
    were left out. Coherence is 5 wherever the judge can read the reply. A text that is empty,
    repeats itself or has too few known words is unscored as well.

    Statements of the other traits are examples of neither. Without neutral texts, everything that
    can be read is scored.

    Deterministic and free. Its words are a weak witness: it reads vocabulary, not behaviour, and
    irony misleads it.

    Attributes:
        train: Labelled statements, both poles of each trait; related ones stand together.
        held_out: Other labelled statements, on which its quality is measured.
        name: Name in tables.
        neutral: Texts without personality, in the order of their kinds.
        unseen: Other such texts, on which its false alarms are measured.
        model: A checkpoint whose hidden states are the features, in place of words.

    Raises:
        DataError: A pole is missing from either part, or a statement is in both.
    """

    train: Sequence[Statement]
    held_out: Sequence[Statement]
    name: str = field(default="classifier", compare=False)
    neutral: Sequence[str] = ()
    unseen: Sequence[str] = ()
    model: str | None = None

    scale: ClassVar[tuple[float, float]] = (LOWEST, HIGHEST)
    version: ClassVar[int] = 3
    """Raised when the same statements give other scores."""

    def __post_init__(self) -> None:
        shared = {normalised(s.text) for s in self.train}.intersection(
            normalised(s.text) for s in self.held_out
        )
        if shared:
            raise DataError(
                f"{len(shared)} statements are both learned from and measured on, "
                f"such as {min(shared)[:60]!r}"
            )
        if not self.train:
            raise DataError("a judge needs labelled statements to learn from")
        for trait in self.traits:
            _labelled(self.train, trait, "train")
            _labelled(self.held_out, trait, "held-out")

    @cached_property
    def traits(self) -> tuple[Trait, ...]:
        """The traits that it knows, in alphabetical order."""
        return tuple(sorted({statement.trait for statement in self.train}))

    def identity(self) -> str:
        """Return the digest of the texts of both parts, and of the model."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        # Thousands of statements, and a study asks for every cell.
        return digest_of(identity_of(self), *map(identity_of_model, filter(None, [self.model])))

    def __call__(self, rubric: Rubric, answers: Sequence[Answer], /) -> list[Score]:
        """Return one score for each answer, in order.

        Raises:
            DataError: The rubric has no pole, or its trait is unknown to the judge.
        """
        pole = None
        if rubric.trait != COHERENCE.trait:
            pole = rubric.pole
            if pole is None:
                raise DataError(
                    f"a judge that learned from statements rates poles, and {rubric.trait} has "
                    "none; choose another judge"
                )
            if pole.trait not in self.traits:
                raise DataError(f"the judge knows {some(self.traits)}, not {pole.trait!r}")
        return self._rated([answer.reply for answer in answers], pole) if answers else []

    def quality(self) -> list[Quality]:
        """Return how well each trait's poles are told apart, and from neutral texts.

        On held-out statements: ``judge_coverage`` is the share that is scored, ``judge_accuracy``
        the share of these on the right side of 3, and ``judge_auc`` the area under the ROC curve
        over all, with the unscored at 3; chance is 0.5. ``judge_accuracy_length_only`` is what the
        number of characters alone, a known confound, would achieve. ``judge_false_alarms`` is the
        share of held-out neutral texts that get a score, and ``judge_off_topic`` that of held-out
        statements of other traits. It is measured once and then kept in the user's cache.
        """
        version = distribution_version("scikit-learn")
        file = cache_folder("judges") / f"{digest_of(self.identity(), version)}.json"
        with suppress(OSError, ValueError, TypeError, KeyError):
            return [Quality(*row) for row in json.loads(file.read_bytes())["quality"]]
        found = [
            Quality(trait, name, value, sum(s.trait == trait for s in self.held_out))
            for trait in self.traits
            for name, value in self._measured(trait).items()
            if value is not None
        ]
        with suppress(StorageError):
            write_file(file, json.dumps({"quality": list(map(astuple, found))}).encode())
        return found

    def _rated(self, texts: Sequence[str], pole: Pole | None) -> list[Score]:
        """Return the scores of texts for a pole, or for coherence if there is none."""
        # Every trait's classifier has learned the words of all.
        learned = self._learned(pole.trait if pole else self.traits[0])
        flaws = [_flaw(text) or _unknown(learned.features.known(text)) for text in texts]
        readable = [text for text, flaw in zip(texts, flaws, strict=True) if not flaw]
        leaning = iter(learned.leaning(readable) if readable and pole else [0.0] * len(readable))
        return [
            Score(None, flaw)
            if flaw
            else learned.score(next(leaning), pole.level)
            if pole
            else Score(HIGHEST)
            for flaw in flaws
        ]

    def _learned(self, trait: Trait) -> "Learned":
        return _learned(tuple(self.train), tuple(self.neutral), trait, self.model)

    def _measured(self, trait: Trait) -> dict[str, float | None]:
        # Slow to import.
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import roc_auc_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        (seen, seen_high), (texts, is_high) = (
            _labelled(self.train, trait, "train"),
            _labelled(self.held_out, trait, "held-out"),
        )
        by_length = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        by_length.fit([[len(text)] for text in seen], seen_high)
        pole, lengths = Pole(trait, "high"), [[len(text)] for text in texts]
        values = [score.value for score in self._rated(texts, pole)]
        right = [
            (value > 3.0) == high
            for value, high in zip(values, is_high, strict=True)
            if value is not None
        ]
        others = [s.text for s in self.held_out if s.trait != trait]
        return {
            "judge_accuracy": sum(right) / len(right) if right else None,
            "judge_auc": float(roc_auc_score(is_high, [v or 3.0 for v in values])),
            "judge_coverage": len(right) / len(values),
            "judge_accuracy_length_only": float(by_length.score(lengths, is_high)),
            "judge_false_alarms": self._scored(self.unseen, pole),
            "judge_off_topic": self._scored(others, pole),
        }

    def _scored(self, texts: Sequence[str], pole: Pole) -> float | None:
        """Return the share of texts that get a score, if any could be left unscored."""
        if not texts or not self.neutral:
            return None
        found = [score.value is not None for score in self._rated(texts, pole)]
        return sum(found) / len(found)


def _flaw(text: str) -> str:
    """Return why ``text`` cannot be rated, or "" if it can."""
    found = words(text)
    if not found:
        return "the answer is empty" if not text.strip() else "the answer has no words"
    if len(found) > 1 and len(set(found)) == 1:
        return f"the answer is one word repeated: {found[0][:20]!r}"
    is_loop = len(found) >= _LOOP_WORDS and (distinct_n([text], 2) or 0.0) <= _LOOP_SHARE
    return "the answer repeats itself" if is_loop else ""


def _unknown(share: float) -> str:
    if share == 0.0:
        return "no word of the answer is known to the judge"
    return "" if share >= _KNOWN else f"the judge knows {share:.0%} of the words of the answer"


def _labelled(
    statements: Sequence[Statement], trait: Trait, part: str
) -> tuple[list[str], list[bool]]:
    """Return the statements of a trait, and whether each is of the high pole."""
    own = [statement for statement in statements if statement.trait == trait]
    texts, labels = [one.text for one in own], [one.level == "high" for one in own]
    if len(set(labels)) < 2:
        raise DataError(f"the judge of {trait} needs {part} statements of both poles")
    return texts, labels


class Learned(NamedTuple):
    """The classifier of one trait.

    Attributes:
        features: From texts to rows of numbers.
        regression: Of three classes: 1 high, -1 low and 0 neither.
        threshold: Texts with a smaller ``|s|`` are unscored.
        slope: ``P(high | not neither) = 1 / (1 + exp(-slope s))``; where it is ``None``, the mean
            of 1 and ``s``.
    """

    features: Any
    regression: Any
    threshold: float = 0.0
    slope: float | None = None

    def leaning(self, texts: Sequence[str]) -> list[float]:
        """Return ``s`` of each text."""
        passages = self.features.read(texts)
        rows = self.features(passages)
        found: list[float] = _leaning(self.regression, rows, passages).tolist()
        return found

    def score(self, leaning: float, level: Level) -> Score:
        """Return the score of a text for one pole."""
        if abs(leaning) < self.threshold:
            return Score(None, f"shows too little of the trait (s = {leaning:.2f})")
        lean = (
            max(-1.0, min(leaning, 1.0))
            if self.slope is None
            else math.tanh(self.slope * leaning / 2)
        )
        high = (1.0 + lean) / 2
        value = LOWEST + (HIGHEST - LOWEST) * (high if level == "high" else 1.0 - high)
        return Score(value, f"P(high) = {high:.3f}")


@lru_cache(_KEPT)
def _learned(
    statements: tuple[Statement, ...], neutral: tuple[str, ...], trait: Trait, model: str | None
) -> Learned:
    """Learn one trait; its threshold and slope come from texts that were left out of learning.

    Both poles have equal weight.
    """
    import numpy as np

    _, is_high = _labelled(statements, trait, "train")
    share = {level: len(is_high) / (2 * is_high.count(level == "high")) for level in _LEVELS}
    own = [s.trait == trait for s in statements]
    signs = [s.pole.sign if mine else 0 for s, mine in zip(statements, own, strict=True)]
    weights = [share[s.level] if mine else _OTHERS for s, mine in zip(statements, own, strict=True)]
    classes = np.array(signs + [0] * len(neutral))
    weighted = np.array(weights + [1.0] * len(neutral))
    whole, *thirds = _seen(statements, neutral, model)
    strength = whole.features.strength
    regression = _regression(strength).fit(whole.rows, classes, weighted)
    if not neutral:
        return Learned(whole.features, regression)
    leaning = np.zeros(len(classes))
    for seen in thirds:
        kept = ~seen.is_left_out
        part = _regression(strength).fit(seen.rows, classes[kept], weighted[kept])
        leaning[seen.is_left_out] = _leaning(part, seen.left_out, seen.passages)
    threshold = np.quantile(np.abs(leaning[-len(neutral) :]), 1 - _FALSE_ALARMS)
    mine = classes != 0
    slope = _regression(1.0, fit_intercept=False).fit(leaning[mine, None], classes[mine])
    return Learned(whole.features, regression, float(threshold), float(slope.coef_[0, 0]))


class _Seen(NamedTuple):
    """Features of what is learned, and of the texts that are left out and their sentences."""

    features: Any
    rows: Any
    is_left_out: Any
    left_out: Any
    passages: Sequence[Any]


@lru_cache(1)
def _seen(
    statements: tuple[Statement, ...], neutral: tuple[str, ...], model: str | None
) -> list[_Seen]:
    """Return the features of all texts, and those with each third left out, for every trait.

    A third of each pole and of the neutral texts in their order, so that what stands together is
    left out together: a kind of text, or a statement and the opposite that was written for it.
    """
    import numpy as np

    texts = [*(s.text for s in statements), *neutral]
    groups = np.array([*(str(s.pole) for s in statements), *[""] * len(neutral)])
    third = np.zeros(len(texts), int)
    for group in set(groups):
        (places,) = np.nonzero(groups == group)
        third[places] = np.arange(len(places)) * _FOLDS // len(places)
    every = _features(model).read(texts, keep=True)
    found = []
    for number in range(-1, _FOLDS if neutral else 0):
        features, out = _features(model), third == number
        rows = features.learned([one for one, left in zip(every, out, strict=True) if not left])
        passages = [one for one, left in zip(every, out, strict=True) if left]
        left_out = features(passages) if passages else None
        found.append(_Seen(features, rows, out, left_out, passages))
    return found


def _features(model: str | None) -> Any:
    return StateFeatures(model) if model else WordFeatures()


def _regression(strength: float, *, fit_intercept: bool = True) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=1000, tol=1e-3, fit_intercept=fit_intercept)


def _leaning(regression: Any, rows: Any, passages: Sequence[Any]) -> Any:
    """Return ``s`` of texts with these passages, whose features are ``rows``."""
    import numpy as np

    by_class = dict(zip(regression.classes_, regression.predict_proba(rows).T, strict=True))
    each, count = by_class[1] - by_class[-1], np.array([len(text) for text in passages])
    first = np.cumsum(count) - count
    whole, sums = each[first], np.add.reduceat(each, first) - each[first]
    together = sums / np.sqrt(count - 1)
    return np.where(np.abs(whole) >= np.abs(together), whole, together)
