"""An offline judge: bag-of-words classifiers that learned from labelled statements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personality_vector.data.statements import Statement, normalised
from personality_vector.errors import DataError, some
from personality_vector.judges.scores import HIGHEST, LOWEST, Score
from personality_vector.judges.texts import distinct_n, words
from personality_vector.measures.administer import Response
from personality_vector.traits import Pole, Trait

_C = 10.0  # by 5-fold AUC on the train part of big5_statements: the knee between 0.3 and 30
_LOOP_WORDS = 6  # a shorter text has too few bigrams to tell a loop from a sentence
_LOOP_SHARE = 1 / 3  # a phrase said three times or more leaves at most this share distinct


@dataclass(frozen=True, slots=True)
class JudgeReport:
    """How well the judge of one trait tells the poles of held-out statements apart.

    Attributes:
        trait: The trait.
        accuracy: Share of held-out statements on the right side of 3; chance is 0.5.
        auc: Area under the ROC curve; chance is 0.5.
        n_train: Statements learned from.
        n_held_out: Statements measured on.
        accuracy_length_only: Accuracy of the same kind of classifier that sees only the number of
            characters: what length alone, a known confound, would achieve.
        off_topic: How far from 3 the mean score lies on the held-out statements of the worst pole
            of another trait, on the 1-5 scale; ``None`` if there is no other trait.
    """

    trait: Trait
    accuracy: float
    auc: float
    n_train: int
    n_held_out: int
    accuracy_length_only: float
    off_topic: float | None


@dataclass(frozen=True, slots=True)
class StatementJudge:
    """For each trait, TF-IDF of words and word pairs and a logistic regression.

    Statements of the other traits are learned as neutral: each counts as high and as low, and
    together they weigh as much as the trait's own. Without them, an answer about ideas would move
    extraversion by more than a point, since both traits' statements say "new" and "enjoy".

    Deterministic, free, and a weak witness: it reads vocabulary, not behaviour. It learned from
    single statements, so a long answer, irony or a negation that it has not met can mislead it. An
    answer about nothing in particular is scored too, by its function words, somewhere around 3.
    ``P(high)`` is not calibrated beyond the balance of the two poles: compare scores of one judge
    with each other, not with a human's 4.2. Use it beside the likelihood probe.

    Made by :meth:`fit`.
    """

    classifiers: Mapping[Trait, Any]
    reports: Sequence[JudgeReport]

    @classmethod
    def fit(
        cls, train: Sequence[Statement], held_out: Sequence[Statement], seed: int = 0
    ) -> "StatementJudge":
        """Learn every trait of ``train`` and measure it on ``held_out``.

        The order of statements does not matter.

        Args:
            train: Labelled statements, both poles of each trait.
            held_out: The same of other statements.
            seed: Of the logistic regression; its solver, lbfgs, draws nothing at present.

        Raises:
            DataError: A pole is missing from either part, or a statement is in both.
        """
        _require_disjoint(train, held_out)
        if not train:
            raise DataError("a judge needs labelled statements to learn from")
        classifiers: dict[Trait, Any] = {}
        reports: list[JudgeReport] = []
        for trait in sorted({statement.trait for statement in train}):
            learned = _labelled(train, trait, "train")
            measured = _labelled(held_out, trait, "held-out")
            classifiers[trait] = _fitted(learned, _others(train, trait), seed)
            off_topic = _off_topic(classifiers[trait], trait, held_out)
            reports.append(_report(trait, classifiers[trait], learned, measured, off_topic))
        return cls(classifiers, reports)

    def __call__(self, response: Response, trait: Trait) -> Score:
        """Return ``1 + 4 P(high | text)``, or *unscored* if there is nothing to read.

        Raises:
            DataError: The judge has not learned ``trait``.
        """
        return self.score(response.text, trait)

    def score(self, text: str, trait: Trait) -> Score:
        """Rate a bare text for ``trait``, as :meth:`__call__` does for a response."""
        if trait not in self.classifiers:
            raise DataError(f"the judge knows {some(self.classifiers)}, not {trait!r}")
        flaw = _flaw(text)
        if flaw:
            return Score(None, text, flaw)
        vectorizer, regression = (step for _, step in self.classifiers[trait].steps)
        features = vectorizer.transform([text])
        if features.nnz == 0:
            return Score(None, text, "no word of the answer is known to the judge")
        probability = float(regression.predict_proba(features)[0, 1])
        return Score(
            LOWEST + (HIGHEST - LOWEST) * probability, text, f"P(high) = {probability:.3f}"
        )

    def report(self) -> list[JudgeReport]:
        """Return the measured quality of the judge of each trait, traits in alphabetical order."""
        return list(self.reports)


def _flaw(text: str) -> str:
    """Return why ``text`` is no answer, or nothing."""
    found = words(text)
    if not found:
        return "the answer is empty" if not text.strip() else "the answer has no words"
    if len(found) > 1 and len(set(found)) == 1:
        return f"the answer is one word repeated: {found[0][:20]!r}"
    if len(found) >= _LOOP_WORDS and (distinct_n([text], 2) or 0.0) <= _LOOP_SHARE:
        return "the answer repeats itself"
    return ""


_Labelled = tuple[list[str], list[bool]]
"""Texts, and whether each is of the high pole."""


def _labelled(statements: Sequence[Statement], trait: Trait, part: str) -> _Labelled:
    rows = sorted((s.text, s.level == "high") for s in statements if s.trait == trait)
    texts, labels = [text for text, _ in rows], [is_high for _, is_high in rows]
    if len(set(labels)) < 2:
        raise DataError(f"the judge of {trait} needs {part} statements of both poles")
    return texts, labels


def _others(statements: Sequence[Statement], trait: Trait) -> list[str]:
    return sorted(s.text for s in statements if s.trait != trait)


def _fitted(learned: _Labelled, neutral: Sequence[str], seed: int) -> Any:
    """Learn the poles with equal weight, and ``neutral`` as both at once with as much again."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import
    from sklearn.pipeline import make_pipeline

    texts, labels = learned
    share = {label: len(labels) / (2 * labels.count(label)) for label in (True, False)}
    weights = [share[label] for label in labels]
    weights += [len(labels) / (2 * len(neutral))] * (2 * len(neutral)) if neutral else []
    vectorizer = TfidfVectorizer(
        tokenizer=words, token_pattern=None, lowercase=False, ngram_range=(1, 2), sublinear_tf=True
    )
    classifier = make_pipeline(vectorizer, _regression(seed))
    return classifier.fit(
        [*texts, *neutral, *neutral],
        [*labels, *[True] * len(neutral), *[False] * len(neutral)],
        logisticregression__sample_weight=weights,
    )


def _regression(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=_C, max_iter=1000, random_state=seed)


def _report(
    trait: Trait,
    classifier: Any,
    learned: _Labelled,
    measured: _Labelled,
    off_topic: float | None,
) -> JudgeReport:
    from sklearn.metrics import roc_auc_score

    texts, labels = measured
    return JudgeReport(
        trait=trait,
        accuracy=float(classifier.score(texts, labels)),
        auc=float(roc_auc_score(labels, classifier.predict_proba(texts)[:, 1])),
        n_train=len(learned[0]),
        n_held_out=len(texts),
        accuracy_length_only=_length_only(learned, measured),
        off_topic=off_topic,
    )


def _length_only(learned: _Labelled, measured: _Labelled) -> float:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lengths = [[[float(len(text))] for text in texts] for texts, _ in (learned, measured)]
    regression = _regression(0).set_params(class_weight="balanced")
    model = make_pipeline(StandardScaler(), regression).fit(lengths[0], learned[1])
    return float(model.score(lengths[1], measured[1]))


def _off_topic(classifier: Any, trait: Trait, held_out: Sequence[Statement]) -> float | None:
    by_pole: dict[Pole, list[str]] = {}
    for statement in held_out:
        if statement.trait != trait:
            by_pole.setdefault(statement.pole, []).append(statement.text)
    means = [float(classifier.predict_proba(texts)[:, 1].mean()) for texts in by_pole.values()]
    return max(((HIGHEST - LOWEST) * abs(mean - 0.5) for mean in means), default=None)


def _require_disjoint(train: Sequence[Statement], held_out: Sequence[Statement]) -> None:
    shared = {normalised(s.text) for s in train} & {normalised(s.text) for s in held_out}
    if shared:
        raise DataError(
            f"{len(shared)} statements are both learned from and measured on, "
            f"such as {min(shared)[:60]!r}"
        )
