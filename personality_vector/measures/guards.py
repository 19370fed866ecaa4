"""Guards: what replies look like besides their trait, and what was realised of an edit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from personality_vector.data.declining import Kind, are_of
from personality_vector.data.statements import normalised, read_statements
from personality_vector.data.texts import (
    compression,
    distinct_n,
    first_person,
    is_other_language,
    mean_words,
    repetition,
)
from personality_vector.errors import DataError, some
from personality_vector.measures.spec import Asking, AskingMeasure, AskingSpec, Traits
from personality_vector.recipes.schema import LocalPath, Real
from personality_vector.subject import Better, Reading, Reply, Subject
from personality_vector.subject.thoughts import names_marks

Number = Callable[[Sequence[str]], float | None]
"""What is made of the texts of all replies; ``None`` if they are too few or too short."""


class GuardsSpec(AskingSpec):
    """Length, variety, refusals and language of replies; of a weight edit what was realised.

    Verbatim recall counts replies that are a ``train`` statement of one of ``traits`` (by default
    of all) in ``statements``, word for word. ``benign`` is an instrument of harmless requests, such
    as ``builtin:eval/instruments/benign.yaml``, of which the refused ones are counted.
    """

    statements: LocalPath | None = None
    held_out: Real = Field(default=0.2, gt=0.0, lt=1.0)
    traits: Traits | None = None
    benign: LocalPath | None = None

    def open(self) -> "Guards":
        """Read the instruments and the statements.

        Raises:
            RecipeError: An instrument is missing or not one.
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
        benign = None
        if self.benign is not None:
            others = dict.fromkeys(("persona", "tasks", "limit"))
            benign = AskingSpec.asking(
                self.model_copy(update={"instrument": self.benign, **others})
            )
        return Guards(self.asking(), learned, benign, self.called)


@dataclass(frozen=True, slots=True)
class Guards(AskingMeasure):
    """Numbers to read beside every curve, each a share unless it says otherwise.

    Of replies: ``refusals`` decline; ``disclaimers`` say that a machine speaks, without feelings or
    traits; ``other_language`` is in another script or not in English; ``verbatim`` are statements
    which vectors may have learned from; ``over_refusal`` is the share of harmless requests that
    are refused. They read words; ``tests/benchmarks/guards.py`` measures how often they are wrong.

    Of words: ``first_person``, those for the speaker. Of word pairs: ``distinct_2``, those that
    differ (Li et al. 2016, arXiv:1510.03055). Of word 4-grams: ``repetition``, those that occurred
    before. ``compression``: bytes of all replies over those that zlib needs for them. ``words``:
    mean length of a reply; an empty one counts as 0. The last four depend on how much is said, so
    compare equal numbers of replies.

    ``realised``: projection of the change of the weights on the ideal one, which rounding to the
    dtype of the parameters makes smaller. Of a model that thinks also ``thoughts``, the share of
    replies with a thought, and ``unfinished``, of those that end inside one; these have no text, so
    the other numbers leave them out as unscored.

    Attributes:
        asking: The questions, and how replies are drawn.
        learned: Statements to look for, normalised; ``None`` leaves the number out.
        benign: Harmless requests; ``None`` leaves the number out.
    """

    asking: Asking
    learned: frozenset[str] | None = None
    benign: Asking | None = None
    name: str = "guards"

    version: ClassVar[int] = 2
    unit: ClassVar[str] = "share"
    better: ClassVar[Better] = "none"

    def collect(self, subject: Subject, seed: int) -> list[Reading]:
        """Return the numbers of the replies, and what was realised of the edit."""
        replies = [one.reply for one in self.asking(subject, seed)]
        numbers = dict(_NUMBERS)
        if self.learned is not None:
            numbers["verbatim"] = _share(lambda text: _bare(text) in (self.learned or ()))
        found = self._of(replies, numbers)
        if self.benign is not None:
            asked = [one.reply for one in self.benign(subject, seed)]
            found += self._of(asked, {"over_refusal": _NUMBERS["refusals"]})
        found += self._of_thoughts(subject, replies)
        if subject.realised is not None:
            found.append(Reading(f"{self.name}.realised", subject.realised, n=1))
        return found

    def _of(self, replies: Sequence[Reply], numbers: Mapping[str, Number]) -> list[Reading]:
        """Return numbers of the replies that are finished; the others are unscored."""
        texts = [reply.text for reply in replies if reply.is_finished]
        counts: dict[str, Any] = {"n": len(texts), "unscored": len(replies) - len(texts)}
        return [
            Reading(f"{self.name}.{name}", of(texts), **counts, unit=_UNITS.get(name, ""))
            for name, of in numbers.items()
        ]

    def _of_thoughts(self, subject: Subject, replies: Sequence[Reply]) -> list[Reading]:
        """Return how often the model thought, and how often it never got to an answer."""
        thoughts = [bool(reply.thought) or not reply.is_finished for reply in replies]
        if not any(thoughts) and not names_marks(subject.tokenizer):
            return []
        unfinished = sum(not reply.is_finished for reply in replies)
        shares = {"thoughts": sum(thoughts), "unfinished": unfinished}
        n = len(replies)
        return [Reading(f"{self.name}.{name}", each / n, n=n) for name, each in shares.items()]


def _share(test: Callable[[str], bool]) -> Number:
    """Return what gives the share of texts that pass a test, or ``None`` for no texts."""
    return lambda texts: sum(map(test, texts)) / len(texts) if texts else None


def _declining(kind: Kind) -> Number:
    return lambda texts: sum(are_of(kind, texts)) / len(texts) if texts else None


def _bare(text: str) -> str:
    """Return a text as it is compared: without case, white space and final punctuation."""
    return normalised(text).rstrip(".!")


_NUMBERS: Mapping[str, Number] = {
    "words": mean_words,
    "distinct_2": partial(distinct_n, n=2),
    "repetition": repetition,
    "compression": compression,
    "first_person": first_person,
    "refusals": _declining("refusal"),
    "disclaimers": _declining("disclaimer"),
    "other_language": _share(is_other_language),
}
_UNITS = {"words": "words", "compression": "ratio"}
