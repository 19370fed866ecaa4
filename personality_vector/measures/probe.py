"""A trait without generation and without a judge: which statements the model finds likely."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from personality_vector.data.statements import Statement
from personality_vector.errors import DataError, NonFiniteError
from personality_vector.subject.chat import (
    ChatEdit,
    answered,
    mean_log_likelihood,
    question,
)
from personality_vector.traits import Pole, Trait


@dataclass(frozen=True, slots=True)
class ProbeScore:
    """How much likelier a model finds the high end of a trait than the low end.

    Attributes:
        value: ``high - low``, in nats per token; 0 is neutral only relative to these statements,
            so read it against the value of the unedited model.
        high: Mean over high-pole statements of the mean log-likelihood per token.
        low: The same for low-pole statements.
        n_high: Number of high-pole statements.
        n_low: Number of low-pole statements.
        standard_error: Of ``value`` over the sampling of statements, Welch's formula; ``None`` if
            a pole has one statement. Two interventions read the same statements, so the error of
            their difference is smaller than these two together.
    """

    value: float
    high: float
    low: float
    n_high: int
    n_low: int
    standard_error: float | None


@dataclass(frozen=True, slots=True)
class LikelihoodProbe:
    """Teacher-forced likelihood of held-out statements as answers to ``question``.

    Attributes:
        statements: Of one or more traits, both poles of each; none that a vector learned from.
        question: The user's message that every statement answers.
        system: A system message before it, if any.
        batch_size: Statements per forward pass.

    Raises:
        DataError: There are no statements, a trait has statements of one pole only, or the batch
            size is not positive.
    """

    statements: Sequence[Statement]
    question: str
    system: str | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        if not self.statements:
            raise DataError("a likelihood probe needs statements")
        if self.batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {self.batch_size}")
        poles = {statement.pole for statement in self.statements}
        for pole in sorted(poles):
            if pole.opposite not in poles:
                raise DataError(f"the probe has statements of {pole} but none of {pole.opposite}")

    @property
    def traits(self) -> tuple[Trait, ...]:
        """The traits that are measured, in order of first appearance."""
        return tuple(dict.fromkeys(statement.trait for statement in self.statements))

    def __call__(
        self, model: nn.Module, tokenizer: Any, edit: ChatEdit = identity
    ) -> dict[Trait, ProbeScore]:
        """Return the score of every trait.

        Raises:
            NonFiniteError: The model gives a statement a likelihood that is not a number.
        """
        by_pole: dict[Pole, list[float]] = {}
        likelihoods = self._likelihoods(model, tokenizer, edit)
        for statement, likelihood in zip(self.statements, likelihoods, strict=True):
            by_pole.setdefault(statement.pole, []).append(likelihood)
        return {
            trait: _score(by_pole[Pole(trait, "high")], by_pole[Pole(trait, "low")])
            for trait in self.traits
        }

    def _likelihoods(self, model: nn.Module, tokenizer: Any, edit: ChatEdit) -> list[float]:
        """Return the mean log-likelihood per token of each statement, in nats."""
        # By length, so that a batch holds little padding.
        order = sorted(range(len(self.statements)), key=lambda i: len(self.statements[i].text))
        asked = edit(question(self.question, system=self.system))
        chats = [answered(asked, self.statements[index].text) for index in order]
        found = mean_log_likelihood(model, tokenizer, chats, self.batch_size).tolist()
        likelihoods = dict(zip(order, found, strict=True))
        for index, value in likelihoods.items():
            if not math.isfinite(value):
                text = self.statements[index].text
                raise NonFiniteError(f"the model gives {text[:60]!r} a log-likelihood of {value}")
        return [likelihoods[index] for index in range(len(self.statements))]


def _score(high: Sequence[float], low: Sequence[float]) -> ProbeScore:
    means = statistics.fmean(high), statistics.fmean(low)
    error = None
    if min(len(high), len(low)) > 1:
        error = math.sqrt(
            statistics.variance(high) / len(high) + statistics.variance(low) / len(low)
        )
    return ProbeScore(means[0] - means[1], *means, len(high), len(low), error)
