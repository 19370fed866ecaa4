"""Guards: length, variety and recall of replies, and the share of an edit that was realised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from personality_vector.data.statements import normalised, read_statements
from personality_vector.data.texts import distinct_n, mean_words
from personality_vector.errors import DataError, some
from personality_vector.measures.likelihood import Traits
from personality_vector.measures.spec import Asking, AskingSpec, BaseMeasure
from personality_vector.recipes.schema import LocalPath, Real
from personality_vector.subject import Better, Reading, Reply, Subject
from personality_vector.subject.thoughts import names_marks


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
    weights on the ideal one, which rounding to the dtype of the parameters makes smaller. Of a
    model that thinks also ``thoughts``, the share of replies with a thought, and ``unfinished``, of
    those that end inside one; these have no text, so the other numbers leave them out as unscored.

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
        replies = [reply for _, _, reply in self.asking(subject, seed)]
        texts = [reply.text for reply in replies if reply.is_finished]
        counts: dict[str, Any] = {"n": len(texts), "unscored": len(replies) - len(texts)}
        found = [
            Reading(f"{self.name}.words", mean_words(texts), **counts, unit="words"),
            Reading(f"{self.name}.distinct_2", distinct_n(texts, 2), **counts),
        ]
        if self.learned is not None:
            recalled = [_bare(text) in self.learned for text in texts]
            share = sum(recalled) / len(texts) if texts else None
            found.append(Reading(f"{self.name}.verbatim", share, **counts))
        found += self._of_thoughts(subject, replies)
        if subject.realised is not None:
            found.append(Reading(f"{self.name}.realised", subject.realised, n=1))
        return found

    def _of_thoughts(self, subject: Subject, replies: Sequence[Reply]) -> list[Reading]:
        """Return how often the model thought, and how often it never got to an answer."""
        thoughts = [bool(reply.thought) or not reply.is_finished for reply in replies]
        if not any(thoughts) and not names_marks(subject.tokenizer):
            return []
        unfinished = sum(not reply.is_finished for reply in replies)
        shares = {"thoughts": sum(thoughts), "unfinished": unfinished}
        n = len(replies)
        return [Reading(f"{self.name}.{name}", each / n, n=n) for name, each in shares.items()]


def _bare(text: str) -> str:
    """Return a text as it is compared: without case, white space and final punctuation."""
    return normalised(text).rstrip(".!")
