"""Guards: what a reply looks like besides its trait, and what was lost on the way to the edit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import Field

from personality_vector.data.statements import normalised, read_statements
from personality_vector.data.texts import distinct_n, mean_words
from personality_vector.measures.asking import Asking, AskingSpec
from personality_vector.measures.likelihood import Traits
from personality_vector.measures.spec import BaseMeasure
from personality_vector.recipes.schema import LocalPath, Real
from personality_vector.subject.protocols import Better, Findings, Reading

if TYPE_CHECKING:
    from personality_vector.subject.subject import Subject


class GuardsSpec(AskingSpec):
    """Length, variety and verbatim recall of replies; of a weight edit the share that was realised.

    Verbatim recall counts replies that are a ``train`` statement of one of ``traits`` (by default
    of all) in ``statements``, word for word.
    """

    statements: LocalPath | None = None
    held_out: Real = Field(default=0.2, gt=0.0, lt=1.0)
    traits: Traits | None = None

    def open(self) -> "Guards":
        """Read the instrument and the statements.

        Raises:
            RecipeError: The instrument is missing or not one.
            DataError: The statements are missing or unreadable.
        """
        return Guards(self.asking(), self._learned(), self.called)

    def _learned(self) -> frozenset[str] | None:
        if self.statements is None:
            return None
        found = read_statements(self.statements, part="train", held_out=self.held_out)
        wanted = self.traits or {statement.trait for statement in found}
        return frozenset(_bare(statement.text) for statement in found if statement.trait in wanted)


class _Collected(NamedTuple):
    texts: list[str]
    realised: float | None


@dataclass(frozen=True, slots=True)
class Guards(BaseMeasure):
    """Numbers that stand beside every curve.

    ``words``: mean length of a reply; an empty one counts as 0. ``distinct_2``: share of distinct
    word pairs among all (Li et al. 2016, arXiv:1510.03055). ``verbatim``: share of replies that are
    statements which vectors may have learned from. ``realised``: projection of the change of the
    weights on the ideal one, which rounding to the dtype of the parameters makes smaller.

    Attributes:
        asking: The questions, and how replies are drawn.
        learned: Statements as they are compared, or ``None`` for no such number.
    """

    asking: Asking
    learned: frozenset[str] | None = None
    name: str = "guards"

    unit: ClassVar[str] = "share"
    better: ClassVar[Better] = "none"

    def collect(self, subject: "Subject", seed: int) -> _Collected:
        """Return the replies, and what was realised of the edit."""
        texts = [reply.text for _, _, reply in self.asking(subject, seed)]
        return _Collected(texts, subject.realised)

    def finish(self, base: "Subject", collected: _Collected) -> Findings:  # noqa: ARG002
        """Return the numbers."""
        texts, n = collected.texts, len(collected.texts)
        found = [
            Reading(f"{self.name}.words", mean_words(texts), n=n, unit="words"),
            Reading(f"{self.name}.distinct_2", distinct_n(texts, 2), n=n),
        ]
        if self.learned is not None:
            share = _verbatim(texts, self.learned)
            found.append(Reading(f"{self.name}.verbatim", share, n=n))
        if collected.realised is not None:
            found.append(Reading(f"{self.name}.realised", collected.realised, n=1))
        return Findings(readings=found)


def _verbatim(texts: Sequence[str], learned: frozenset[str]) -> float:
    return sum(_bare(text) in learned for text in texts) / len(texts)


def _bare(text: str) -> str:
    """Return a text as it is compared: without case, white space and final punctuation."""
    return normalised(text).rstrip(".!")
