"""Linguistic: which words a model uses when it tells about itself, and how much it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from pydantic import Field

from personality_vector.data.lexicon import LONG, Lexicon, read_lexicon
from personality_vector.data.texts import moving_type_token, sentences, words
from personality_vector.errors import DataError, some
from personality_vector.measures.spec import Asking, AskingMeasure, AskingSpec, Traits
from personality_vector.numeric.statistics import mean_and_interval
from personality_vector.recipes.schema import LocalPath, Words
from personality_vector.subject import (
    Better,
    Findings,
    GenerationSpec,
    Observation,
    Reading,
    Subject,
)
from personality_vector.traits import Trait

_UNITS = {"words": "words", "words_per_sentence": "words", "type_token": "ratio"}
_Number = tuple[str, Trait]
"""The end of the name of a number, "" for an index, and its trait."""


class LinguisticSpec(AskingSpec):
    """Share of words by category in what a model tells about itself, and an index of each trait.

    ``dictionary`` is a ``.dic`` of LIWC or YAML like ``eval/lexicon/english.yaml``, in place of
    that. ``traits`` are by default all that it has an index of.
    """

    question: Words = "Tell me about yourself in about 300 words."
    generation: GenerationSpec = Field(default_factory=lambda: GenerationSpec(max_new_tokens=400))
    dictionary: LocalPath | None = None
    traits: Traits | None = None

    def open(self) -> "Linguistic":
        """Read the questions and the words.

        Raises:
            RecipeError: A file is missing or not what it should be.
            DataError: The dictionary is unreadable, or has no index of a trait.
        """
        lexicon, place = read_lexicon(self.dictionary), self.dictionary or "linguistic"
        if taken := {*_UNITS, LONG} & set(lexicon.entries):
            raise DataError(f"{place}: a category cannot be called {some(taken)}; rename it")
        if unknown := set(self.traits or ()) - set(lexicon.signs):
            known = f"known are {some(lexicon.signs)}" if lexicon.signs else "it has none"
            raise DataError(f"{place}: there is no index of {some(unknown)}; {known}")
        return Linguistic(self.asking(), lexicon, self.traits or tuple(lexicon.signs), self.called)


@dataclass(frozen=True, slots=True)
class Linguistic(AskingMeasure):
    """A description of language, and never the score of a trait.

    Of a reply: ``words``; ``words_per_sentence``, of sentences of three words or more;
    ``type_token``, the share of different words, as the mean over all windows of fifty words, so
    that it does not depend on length and a shorter reply has none (Covington and McFall 2010,
    J Quant Linguist 17, 94-100); and how many of a hundred words are of each category, where
    ``long_words`` have more than six letters.

    The number of a trait is its signed index: the mean of the signed z-scores of the categories
    which the literature ties to it, in standard deviations between shipped texts of a hundred
    words. Compare it between models; its zero is that of these texts and means nothing. An index is
    weak where the correlation with known poles is: 0.14 to 0.26 over the shipped texts, lowest for
    agreeableness. Those of extraversion and agreeableness tell anxious from calm tellers of stories
    nearly as well as the poles of their own trait. ``eval/results/linguistic.md`` has the numbers.

    Numbers are means over questions of the mean over their replies; intervals draw the questions
    again, or the replies to a single one. A reply without words, or in another language than the
    words are of, is unscored.

    Attributes:
        asking: The questions, and how replies are drawn.
        lexicon: The categories and the indices.
        traits: Those whose index is given.
    """

    asking: Asking
    lexicon: Lexicon
    traits: tuple[Trait, ...]
    name: str = "linguistic"

    unit: ClassVar[str] = "per hundred words"
    better: ClassVar[Better] = "none"

    def collect(self, subject: Subject, seed: int) -> Findings:
        """Return the numbers of the replies, and their means by question."""
        replies: dict[str, list[Mapping[_Number, float]]] = {}
        for one in self.asking(subject, seed):
            replies.setdefault(one.id, []).append(self._numbers(one.reply.text))
        readings, observations = list[Reading](), list[Observation]()
        for number in self._names():
            by_item = {
                item: [reply[number] for reply in own if number in reply]
                for item, own in replies.items()
            }
            readings.append(self._reading(number, by_item, sum(map(len, replies.values()))))
            observations += [
                Observation(self._called(number), number[1], item, fmean(values))
                for item, values in by_item.items()
                if values
            ]
        return Findings(readings=readings, observations=observations)

    def _names(self) -> list[_Number]:
        plain = [(name, "") for name in (*_UNITS, *self.lexicon.names)]
        return [*plain, *(("", trait) for trait in self.traits)]

    def _called(self, number: _Number) -> str:
        return f"{self.name}.{number[0]}" if number[0] else self.name

    def _numbers(self, text: str) -> dict[_Number, float]:
        """Return the numbers of a reply; none if it cannot be read."""
        if not self.lexicon.can_read(text):
            return {}
        found, shares = words(text), self.lexicon.shares(text)
        numbers: dict[_Number, float] = {(name, ""): share for name, share in shares.items()}
        numbers["words", ""] = float(len(found))
        numbers["words_per_sentence", ""] = fmean(len(words(one)) for one in sentences(text))
        variety = moving_type_token(found)
        if variety is not None:
            numbers["type_token", ""] = variety
        return numbers | {("", t): self.lexicon.index(t, shares) for t in self.traits}

    def _reading(
        self, number: _Number, by_item: Mapping[str, Sequence[float]], asked: int
    ) -> Reading:
        name, trait = number
        values = [value for own in by_item.values() for value in own]
        # The replies to a single question are drawn again in place of the questions.
        drawn = values if len(by_item) == 1 else [fmean(own) for own in by_item.values() if own]
        mean, low, high = mean_and_interval(drawn)
        return Reading(
            self._called(number),
            mean,
            trait,
            low,
            high,
            len(values),
            asked - len(values),
            "sd" if trait else _UNITS.get(name, ""),
        )
