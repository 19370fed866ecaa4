"""An offline judge: bag-of-words classifiers that learned from labelled statements."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, ClassVar

from pydantic import Field

from personality_vector.data.personas import COHERENCE
from personality_vector.data.statements import Statement, normalised, read_statements
from personality_vector.data.texts import distinct_n, words
from personality_vector.errors import DataError, some
from personality_vector.judges.spec import BaseJudge, JudgeSpec
from personality_vector.lab import BIG_FIVE_STATEMENTS, builtin
from personality_vector.recipes.schema import LocalPath, Real, Words
from personality_vector.subject import Answer, Quality, Rubric, Score, identity_of
from personality_vector.traits import Pole, Trait

LOWEST, HIGHEST = 1.0, 5.0
"""Ends of the scale; 3 is neutral."""

_C = 10.0  # by 5-fold AUC on the train part of big5_statements: the knee between 0.3 and 30
_KEPT = 10  # traits whose classifiers this process keeps: learning them takes longer than rating
_LOOP_WORDS = 6  # a shorter text has too few bigrams to tell a loop from a sentence
_LOOP_SHARE = 1 / 3  # a phrase said three times or more leaves at most this share distinct


class ClassifierJudge(JudgeSpec):
    """Classifiers of the poles of ``statements``, of which a share is ``held_out`` to test them."""

    statements: LocalPath = builtin(BIG_FIVE_STATEMENTS)
    held_out: Real = Field(default=0.2, gt=0.0, lt=1.0)
    name: Words = "classifier"

    def open(self) -> "StatementJudge":
        """Return the judge, which learns when it rates for the first time.

        Raises:
            DataError: The statements cannot be read, or a pole is missing from either part.
        """
        return StatementJudge(
            tuple(read_statements(self.statements, part="train", held_out=self.held_out)),
            tuple(read_statements(self.statements, part="held_out", held_out=self.held_out)),
            self.name,
        )


@dataclass(frozen=True)
class StatementJudge(BaseJudge):
    """For each trait, TF-IDF of words and word pairs and a logistic regression.

    A high pole scores ``1 + 4 P(high | reply)``, a low one ``5 - 4 P(high | reply)``, and
    coherence 5 wherever the judge can read the reply. A text that is empty, repeats itself or has
    no word known to the judge is unscored.

    Statements of the other traits are learned as neutral: each counts as high and as low, and
    together they weigh as much as the trait's own. Without them, an answer about ideas would move
    extraversion by more than a point, since both traits' statements say "new" and "enjoy".

    Deterministic, free, and a weak witness: it reads vocabulary, not behaviour. It learned from
    single statements, so a long answer, irony or an unfamiliar negation can mislead it. An
    answer about nothing in particular is scored too, by its function words, somewhere around 3.
    ``P(high)`` is not calibrated beyond the balance of the two poles: compare scores of one judge
    with each other, not with a human's 4.2. Use it together with the likelihood.

    Attributes:
        train: Labelled statements, both poles of each trait; their order does not matter.
        held_out: Other labelled statements, on which its quality is measured.
        name: Name in tables.

    Raises:
        DataError: A pole is missing from either part, or a statement is in both.
    """

    train: Sequence[Statement]
    held_out: Sequence[Statement]
    name: str = field(default="classifier", compare=False)

    scale: ClassVar[tuple[float, float]] = (LOWEST, HIGHEST)
    version: ClassVar[int] = 1
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

    @cached_property
    def classifiers(self) -> dict[Trait, Any]:
        """A pipeline of scikit-learn for each trait, fitted when it is needed."""
        return {trait: _fitted(tuple(self.train), trait) for trait in self.traits}

    def identity(self) -> str:
        """Return the digest of the statements of both parts."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        # Thousands of statements, and a study asks for every cell.
        return identity_of(self)

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
        return [self._rate(answer.reply, pole) for answer in answers]

    def quality(self) -> list[Quality]:
        """Return how well each trait's poles are told apart on held-out statements.

        ``judge_accuracy`` is the share on the right side of 3 and ``judge_auc`` the area under the
        ROC curve; chance is 0.5. ``judge_accuracy_length_only`` is what the number of characters
        alone, a known confound, would achieve. ``judge_off_topic`` is how far from 3 the mean
        score lies on the worst pole of another trait, where there is one.
        """
        train, held_out = tuple(self.train), tuple(self.held_out)
        return [
            Quality(trait, name, value, sum(s.trait == trait for s in held_out))
            for trait in self.traits
            for name, value in _measured(train, held_out, trait).items()
            if value is not None
        ]

    def _rate(self, text: str, pole: Pole | None) -> Score:
        """Return the score of one text for a pole, or for coherence if there is none."""
        flaw = _flaw(text)
        if flaw:
            return Score(None, flaw)
        # Every trait's classifier has learned the words of all.
        trait = pole.trait if pole else self.traits[0]
        vectorizer, regression = (step for _, step in self.classifiers[trait].steps)
        features = vectorizer.transform([text])
        if features.nnz == 0:
            return Score(None, "no word of the answer is known to the judge")
        if pole is None:
            return Score(HIGHEST)
        probability = float(regression.predict_proba(features)[0, 1])
        value = LOWEST + (HIGHEST - LOWEST) * probability
        return Score(
            value if pole.level == "high" else LOWEST + HIGHEST - value,
            f"P(high) = {probability:.3f}",
        )


def _flaw(text: str) -> str:
    """Return why ``text`` cannot be rated, or "" if it can."""
    found = words(text)
    if not found:
        return "the answer is empty" if not text.strip() else "the answer has no words"
    if len(found) > 1 and len(set(found)) == 1:
        return f"the answer is one word repeated: {found[0][:20]!r}"
    is_loop = len(found) >= _LOOP_WORDS and (distinct_n([text], 2) or 0.0) <= _LOOP_SHARE
    return "the answer repeats itself" if is_loop else ""


def _labelled(
    statements: Sequence[Statement], trait: Trait, part: str
) -> tuple[list[str], list[bool]]:
    """Return the statements of a trait, and whether each is of the high pole."""
    rows = sorted((s.text, s.level == "high") for s in statements if s.trait == trait)
    texts, labels = [text for text, _ in rows], [is_high for _, is_high in rows]
    if len(set(labels)) < 2:
        raise DataError(f"the judge of {trait} needs {part} statements of both poles")
    return texts, labels


@lru_cache(_KEPT)
def _fitted(statements: tuple[Statement, ...], trait: Trait) -> Any:
    """Learn the poles with equal weight, and all other statements as both, with as much again."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts, labels = _labelled(statements, trait, "train")
    neutral = sorted(s.text for s in statements if s.trait != trait)
    share = {label: len(labels) / (2 * labels.count(label)) for label in (True, False)}
    weights = [share[label] for label in labels]
    weights += [len(labels) / (2 * len(neutral))] * (2 * len(neutral)) if neutral else []
    vectorizer = TfidfVectorizer(
        tokenizer=words, token_pattern=None, lowercase=False, ngram_range=(1, 2), sublinear_tf=True
    )
    return _regression_on(vectorizer).fit(
        [*texts, *neutral, *neutral],
        [*labels, *[True] * len(neutral), *[False] * len(neutral)],
        logisticregression__sample_weight=weights,
    )


@lru_cache(_KEPT)
def _measured(
    train: tuple[Statement, ...], held_out: tuple[Statement, ...], trait: Trait
) -> dict[str, float | None]:
    # Slow to import.
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    classifier = _fitted(train, trait)
    (seen, learned), (texts, labels) = (
        _labelled(train, trait, "train"),
        _labelled(held_out, trait, "held-out"),
    )
    lengths, others = ([[float(len(text))] for text in part] for part in (seen, texts))
    by_length = _regression_on(StandardScaler(), "balanced").fit(lengths, learned)
    poles = {statement.pole for statement in held_out if statement.trait != trait}
    means = [
        classifier.predict_proba([s.text for s in held_out if s.pole == pole])[:, 1].mean()
        for pole in poles
    ]
    return {
        "judge_accuracy": float(classifier.score(texts, labels)),
        "judge_auc": float(roc_auc_score(labels, classifier.predict_proba(texts)[:, 1])),
        "judge_accuracy_length_only": float(by_length.score(others, labels)),
        "judge_off_topic": max(
            ((HIGHEST - LOWEST) * abs(float(mean) - 0.5) for mean in means), default=None
        ),
    }


def _regression_on(features: Any, weights: str | None = None) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(
        features, LogisticRegression(C=_C, max_iter=1000, random_state=0, class_weight=weights)
    )
