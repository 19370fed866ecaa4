"""An offline judge: bag-of-words classifiers that learned from labelled statements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personality_vector.errors import DataError, some
from personality_vector.evaluation.administer import Response
from personality_vector.evaluation.scores import HIGHEST, LOWEST, Score
from personality_vector.evaluation.texts import distinct_n, words
from personality_vector.statements import Statement, normalised
from personality_vector.traits import Trait

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
    """

    trait: Trait
    accuracy: float
    auc: float
    n_train: int
    n_held_out: int
    accuracy_length_only: float


@dataclass(frozen=True, slots=True)
class StatementJudge:
    """For each trait, TF-IDF of words and word pairs and a logistic regression.

    Deterministic, free, and a weak witness: it reads vocabulary, not behaviour. It learned from
    single statements, so a long answer, irony or a negation that it has not met can mislead it,
    and ``P(high)`` is not calibrated beyond the balance of the two poles: compare scores of one
    judge with each other, not with a human's 4.2. Use it beside the likelihood probe.

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
            classifiers[trait] = _classifier(seed).fit(*learned)
            reports.append(_report(trait, classifiers[trait], learned, measured))
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


def _classifier(seed: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import
    from sklearn.pipeline import make_pipeline

    vectorizer = TfidfVectorizer(
        tokenizer=words, token_pattern=None, lowercase=False, ngram_range=(1, 2), sublinear_tf=True
    )
    return make_pipeline(vectorizer, _regression(seed))


def _regression(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    # Balanced, so that 3 stays neutral when one pole has more statements.
    return LogisticRegression(C=_C, class_weight="balanced", max_iter=1000, random_state=seed)


_Labelled = tuple[list[str], list[bool]]
"""Texts, and whether each is of the high pole."""


def _labelled(statements: Sequence[Statement], trait: Trait, part: str) -> _Labelled:
    rows = sorted((s.text, s.level == "high") for s in statements if s.trait == trait)
    texts, labels = [text for text, _ in rows], [is_high for _, is_high in rows]
    if len(set(labels)) < 2:
        raise DataError(f"the judge of {trait} needs {part} statements of both poles")
    return texts, labels


def _report(trait: Trait, classifier: Any, learned: _Labelled, measured: _Labelled) -> JudgeReport:
    from sklearn.metrics import roc_auc_score

    texts, labels = measured
    return JudgeReport(
        trait=trait,
        accuracy=float(classifier.score(texts, labels)),
        auc=float(roc_auc_score(labels, classifier.predict_proba(texts)[:, 1])),
        n_train=len(learned[0]),
        n_held_out=len(texts),
        accuracy_length_only=_length_only(learned, measured),
    )


def _length_only(learned: _Labelled, measured: _Labelled) -> float:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    lengths = [[[float(len(text))] for text in texts] for texts, _ in (learned, measured)]
    model = make_pipeline(StandardScaler(), _regression(0)).fit(lengths[0], learned[1])
    return float(model.score(lengths[1], measured[1]))


def _require_disjoint(train: Sequence[Statement], held_out: Sequence[Statement]) -> None:
    shared = {normalised(s.text) for s in train} & {normalised(s.text) for s in held_out}
    if shared:
        raise DataError(
            f"{len(shared)} statements are both learned from and measured on, "
            f"such as {min(shared)[:60]!r}"
        )
