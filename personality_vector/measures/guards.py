"""Guards: length, variety and recall of replies, and the share of an edit that was realised."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from personality_vector.data.statements import normalised, read_statements
from personality_vector.data.texts import distinct_n, mean_words
from personality_vector.errors import DataError, some
from personality_vector.measures.likelihood import Traits
from personality_vector.measures.spec import Asking, AskingSpec, BaseMeasure
from personality_vector.recipes.schema import LocalPath, Real
from personality_vector.subject import Better, Reading, Subject


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
        learned = None
        if self.statements is not None:
            found = read_statements(self.statements, part="train", held_out=self.held_out)
            known = {statement.trait for statement in found}
            wanted = set(self.traits or known)
            if not wanted <= known:
                raise DataError(
                    f"{self.statements}: has no train statements of {some(wanted - known)}"
                )
            learned = frozenset(_bare(one.text) for one in found if one.trait in wanted)
        return Guards(self.asking(), learned, self.called)


@dataclass(frozen=True, slots=True)
class Guards(BaseMeasure):
    """Numbers to read beside every curve.

    ``words``: mean length of a reply; an empty one counts as 0. ``distinct_2``: share of distinct
    word pairs among all (Li et al. 2016, arXiv:1510.03055). ``verbatim``: share of replies that are
    statements which vectors may have learned from. ``realised``: projection of the change of the
    weights on the ideal one, which rounding to the dtype of the parameters makes smaller.

    Attributes:
        asking: The questions, and how replies are drawn.
        learned: Statements to look for, normalised; ``None`` leaves the number out.
    """

    asking: Asking
    learned: frozenset[str] | None = None
    name: str = "guards"

    unit: ClassVar[str] = "share"
    better: ClassVar[Better] = "none"

    def collect(self, subject: Subject, seed: int) -> list[Reading]:
        """Return the numbers of the replies, and what was realised of the edit."""
        texts = [reply.text for _, _, reply in self.asking(subject, seed)]
        n = len(texts)
        found = [
            Reading(f"{self.name}.words", mean_words(texts), n=n, unit="words"),
            Reading(f"{self.name}.distinct_2", distinct_n(texts, 2), n=n),
        ]
        if self.learned is not None:
            recalled = [_bare(text) in self.learned for text in texts]
            found.append(Reading(f"{self.name}.verbatim", sum(recalled) / n, n=n))
        if subject.realised is not None:
            found.append(Reading(f"{self.name}.realised", subject.realised, n=1))
        return found


def _bare(text: str) -> str:
    """Return a text as it is compared: without case, white space and final punctuation."""
    return normalised(text).rstrip(".!")
