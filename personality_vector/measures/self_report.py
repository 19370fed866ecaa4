"""Self-report: a questionnaire that a model fills in about itself."""

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field, model_validator

from personality_vector.data.questionnaires import (
    KeyRef,
    Norms,
    Questionnaire,
    QuestionnaireItem,
    read_questionnaire,
)
from personality_vector.errors import DataError, ModelError, NonFiniteError, some
from personality_vector.judges.spec import LEAST_MASS
from personality_vector.measures.spec import BaseMeasure, MeasureSpec, Traits
from personality_vector.numeric.statistics import t_interval
from personality_vector.recipes.schema import LocalPath, Whole, Words
from personality_vector.subject import (
    Chat,
    Findings,
    GenerationSpec,
    Observation,
    Reading,
    Subject,
    digest_of,
    identity_of,
    question,
)
from personality_vector.traits import BIG_FIVE, Trait

# What all items share comes first, since tokens with which prompts begin alike are read once.
_PROMPT = """\
How well does the description below fit you?

{options}

Answer with one letter.

Description: {text}"""
_LETTERS = string.ascii_uppercase
_LEAST_LOG = -1e4  # of a letter that is ruled out, so that a mean over orders stays a number
_LETTER = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")
_WORDS, _GOES_ON = "AI", re.compile(r"\s+\w")  # letters that are words, if a sentence goes on
_CURLY = "\N{RIGHT SINGLE QUOTATION MARK}"

Order = tuple[int, ...]
"""The option at each position."""


class SelfReportSpec(MeasureSpec):
    """A questionnaire that the model fills in about itself, from a file of the user.

    ``key`` says what its items measure, by the name of a shipped key or the file of one's own.
    ``answers`` are the likelihood of each option's letter, in every order of the options, or
    ``generated`` replies, which are read.
    """

    questionnaire: LocalPath
    scoring_key: KeyRef | None = Field(default=None, alias="key")
    traits: Traits | None = None
    facets: bool = False
    answers: Literal["likelihood", "generated"] = "likelihood"
    system: Words | None = None
    generation: GenerationSpec = GenerationSpec()
    batch_size: Whole = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _generation_is_of_replies(self) -> "SelfReportSpec":
        if self.answers == "likelihood" and self.generation != GenerationSpec():
            raise ValueError("generation is for replies; add answers: generated, or leave it out")
        return self

    def open(self) -> "SelfReport":
        """Read the questionnaire.

        Raises:
            RecipeError: The key is missing or not one.
            DataError: The questionnaire cannot be read, or has no items of a trait.
        """
        found = read_questionnaire(self.questionnaire, self.scoring_key)
        if self.traits is not None:
            try:
                found = found.about(self.traits)
            except DataError as error:
                raise DataError(f"{self.questionnaire}: {error}") from error
        generation = self.generation if self.answers == "generated" else None
        return SelfReport(found, self.facets, self.system, generation, self.batch_size, self.called)


class _Filled(NamedTuple):
    """A questionnaire as it was filled in.

    Attributes:
        raw: The answer to each item on the scale, before items are reversed; NaN is unscored.
        positions: How much was chosen at each position, over all that could be read.
        replies: How many were generated.
    """

    raw: Float[ndarray, " items"]
    positions: Float[ndarray, " options"]
    replies: int = 0


@dataclass(frozen=True, slots=True)
class SelfReport(BaseMeasure):
    """What a model says of itself, on the scale of a questionnaire.

    Each item is put with its options in both directions and in all rotations of these, so that
    each option stands equally often at each position. With ``log p(o)`` the log-probability of the
    letter of option ``o`` as the first token, normalised over the letters, and its mean over
    orders, the answer is ``sum(value(o) softmax(mean log p)(o))``. Where ``log p`` is the sum of
    something about the option and something about the position, the position drops out exactly. An
    item is scored ``low + high - answer`` if it is reversed. Letters that hold less than a quarter
    of the probability, as a mean over orders, leave it unscored.

    With ``generation``, a reply is drawn for each sample, in an order that changes from sample to
    sample, and read: one letter, or the words of one option. As many samples as there are orders,
    ten for five options, put every option at every place. An item is the mean of the samples that
    can be read, and unscored if none can; ``unreadable`` is the share of replies that cannot.

    Of each trait, and as ``.FACET`` of each facet: the mean over items, with Student's 95 %
    interval over items. Of no trait:

    - ``acquiescence``: mean over traits of the mean of ``answer(items that are not reversed)`` and
      ``answer(reversed items)``, minus the middle of the scale: agreeing with either, in points;
    - ``position_bias``: total variation distance of the positions from chance, in [0, 1];
    - ``consistency``: ``1 - v / u`` with ``v`` the variance of scored items within a trait, mean
      over traits, and ``u`` the mean squared distance of answers from the middle: 1 if the items of
      a trait agree, about 0 if what is answered has nothing to do with the trait;
    - ``spread``: standard deviation of the answers, in points; 0 is one answer to everything.

    What a model says of itself need not be what it does: fine-tuning can move the one and not the
    other (arXiv:2509.03730). Never average it with measures of behaviour.

    Attributes:
        questionnaire: Items and options.
        facets: Whether facets are read too.
        system: A system message before each question, if any.
        generation: How replies are drawn; ``None`` reads likelihoods.
        batch_size: Questions per forward pass; it changes speed and memory only.

    Source:
        Questionnaires for models: MPI, Jiang et al. 2023, arXiv:2206.07550. Options in changed
        order: TRAIT, Lee et al. 2024, arXiv:2406.14703. Acquiescence from items of both
        directions: Soto et al. 2008, J. Pers. Soc. Psychol. 94, 718-737.
    """

    questionnaire: Questionnaire
    facets: bool = False
    system: str | None = None
    generation: GenerationSpec | None = None
    batch_size: int = field(default=32, compare=False)
    name: str = "self_report"

    unit: ClassVar[str] = "score"

    def identity(self) -> str:
        """Return a digest of all that the numbers depend on, and of how items are put."""
        return digest_of(identity_of(self), _PROMPT)

    @property
    def scale(self) -> tuple[float, float]:
        """The ends of the scale of the questionnaire."""
        low, high = self.questionnaire.scale
        return float(low), float(high)

    @property
    def norms(self) -> Norms | None:
        """What people score, for a report."""
        return self.questionnaire.norms

    def collect(self, subject: Subject, seed: int) -> Findings:
        """Return the numbers, and the score of each item.

        Raises:
            ModelError: The tokenizer has no token for a letter.
            NonFiniteError: The model gives a letter a likelihood that is not a number.
            LengthError: A question is longer than the model reads.
        """
        items = self.questionnaire.items
        filled = self._likely(subject) if self.generation is None else self._replied(subject, seed)
        low, high = self.scale
        scored = np.where(self._keyed > 0, filled.raw, low + high - filled.raw)
        readings, observations = [*self._of_style(filled, scored)], []
        for (name, trait), places in self._groups().items():
            readings.append(_reading(name, trait, scored[places]))
            rows = ((items[n].id, float(scored[n])) for n in places if np.isfinite(scored[n]))
            observations += [Observation(name, trait, item, value) for item, value in rows]
        return Findings(readings=readings, observations=observations)

    def _groups(self) -> dict[tuple[str, Trait], list[int]]:
        """Return the places of the items of each trait, and of each facet, under their names."""
        traits = {item.trait for item in self.questionnaire.items}
        ordered = [*(t for t in BIG_FIVE if t in traits), *sorted(traits - {*BIG_FIVE})]
        found: dict[tuple[str, Trait], list[int]] = {(self.name, trait): [] for trait in ordered}
        for place, item in enumerate(self.questionnaire.items):
            found[self.name, item.trait].append(place)
        for place, item in enumerate(self.questionnaire.items):
            if self.facets and item.facet:
                found.setdefault((f"{self.name}.{item.facet}", item.trait), []).append(place)
        return found

    def _likely(self, subject: Subject) -> _Filled:
        """Return what the letters of the options say, averaged over orders."""
        log_probs = self._log_probs(subject)
        total = np.logaddexp.reduce(log_probs, axis=2, keepdims=True)
        at_position = log_probs - total
        places = np.array([np.argsort(order) for order in self._orders])
        of_option = np.take_along_axis(at_position, places[None], axis=2).mean(axis=1)
        likely = np.exp(of_option - np.logaddexp.reduce(of_option, axis=1, keepdims=True))
        is_scored = np.exp(total).mean(axis=(1, 2)) >= LEAST_MASS
        raw = np.where(is_scored, likely @ self._values, np.nan)
        return _Filled(raw, np.exp(at_position[is_scored]).sum(axis=(0, 1)))

    def _log_probs(self, subject: Subject) -> Float[ndarray, "items orders options"]:
        """Return the log-probability of the letter at each position, in each order."""
        items, orders = self.questionnaire.items, self._orders
        tokens = _letter_tokens(subject, len(orders[0]))
        # Questions that begin alike follow one another, and those of about one length.
        by_length = sorted(range(len(items)), key=lambda place: len(items[place].text))
        rows = [(place, n) for n in range(len(orders)) for place in by_length]
        chats = [self._asked(items[place], orders[n]) for place, n in rows]
        found = subject.next_token(chats, list(tokens), self.batch_size).double().numpy()
        if np.isnan(found).any():
            raise NonFiniteError(f"{self.name}: the model gives a letter a likelihood of nan")
        log_probs = np.full((len(items), len(orders), len(orders[0])), _LEAST_LOG)
        for (place, n), row in zip(rows, found, strict=True):
            for letter, value in zip(tokens.values(), row, strict=True):
                cell = place, n, _LETTERS.index(letter)
                log_probs[cell] = np.logaddexp(log_probs[cell], value)
        return log_probs

    def _replied(self, subject: Subject, seed: int) -> _Filled:
        """Return what generated replies say, averaged over samples."""
        from personality_vector.numeric.random import key_for
        from personality_vector.subject.draws import sample_seed

        assert self.generation is not None
        asked = replace(subject, sampling=self.generation.sampling())
        items, orders = self.questionnaire.items, self._orders
        answers = np.full((len(items), self.generation.samples), np.nan)
        positions = np.zeros(len(orders[0]))
        for sample in range(self.generation.samples):
            # The order that an item begins with has nothing to do with its trait.
            chosen = [orders[(key_for(0, item.id) + sample) % len(orders)] for item in items]
            chats = [self._asked(*each) for each in zip(items, chosen, strict=True)]
            replies = asked.replies(chats, sample_seed(seed, sample))
            for place, (order, reply) in enumerate(zip(chosen, replies, strict=True)):
                position = _position_in(reply.text, self._in_order(order))
                if position is not None:
                    answers[place, sample] = self._values[order[position]]
                    positions[position] += 1
        counts = np.isfinite(answers).sum(axis=1)
        means = np.nansum(answers, axis=1) / np.maximum(counts, 1)
        return _Filled(np.where(counts > 0, means, np.nan), positions, answers.size)

    def _asked(self, item: QuestionnaireItem, order: Order) -> Chat:
        lettered = zip(_LETTERS, self._in_order(order), strict=False)
        options = "\n".join(f"{letter}. {option}" for letter, option in lettered)
        return question(_PROMPT.format(options=options, text=item.text), system=self.system)

    def _in_order(self, order: Order) -> list[str]:
        return [self.questionnaire.options[option] for option in order]

    @property
    def _orders(self) -> list[Order]:
        """All rotations of the options in both directions."""
        rising = tuple(range(len(self.questionnaire.options)))
        both = [(*each[n:], *each[:n]) for each in (rising, rising[::-1]) for n in rising]
        return [*dict.fromkeys(both)]

    @property
    def _values(self) -> Float[ndarray, " options"]:
        return self.scale[0] + np.arange(len(self.questionnaire.options), dtype=float)

    @property
    def _keyed(self) -> Float[ndarray, " items"]:
        return np.array([float(item.keyed) for item in self.questionnaire.items])

    def _of_style(self, filled: _Filled, scored: Float[ndarray, " items"]) -> Iterator[Reading]:
        """Yield the numbers of no trait: how it is answered, whatever is asked."""
        raw, options = _known(filled.raw), len(filled.positions)
        traits = [places for (name, _), places in self._groups().items() if name == self.name]
        leanings = [
            lean for places in traits if (lean := self._leaning(filled.raw, places)) is not None
        ]
        variances = [own.var(ddof=1) for p in traits if len(own := _known(scored[p])) > 1]
        share = filled.positions / max(filled.positions.sum(), 1.0)
        distance = np.mean((raw - sum(self.scale) / 2) ** 2) if variances else 0.0
        found = {
            "acquiescence": ("points", np.mean(leanings) if leanings else None),
            "position_bias": ("share", abs(share - 1 / options).sum() / 2 if len(raw) else None),
            "consistency": ("share", 1 - np.mean(variances) / distance if distance else None),
            "spread": ("points", raw.std() if len(raw) else None),
        }
        if filled.replies:
            silent = filled.replies - int(filled.positions.sum())
            yield Reading(
                f"{self.name}.unreadable", silent / filled.replies, n=filled.replies, unit="share"
            )
        for name, (unit, value) in found.items():
            if value is not None or not len(raw):  # what such items cannot say is left out
                known = None if value is None else float(value)
                n, missing = len(raw), len(scored) - len(raw)
                yield Reading(f"{self.name}.{name}", known, n=n, unscored=missing, unit=unit)

    def _leaning(self, raw: Float[ndarray, " items"], places: Sequence[int]) -> float | None:
        """Return how far answers of both directions are above the middle, if there are both."""
        keyed, own = self._keyed[places], raw[places]
        sides = [_known(own[keyed == sign]) for sign in (1.0, -1.0)]
        means = [float(side.mean()) for side in sides if len(side)]
        return sum(means) / 2 - sum(self.scale) / 2 if len(means) > 1 else None


def _known(values: Float[ndarray, " n"]) -> Float[ndarray, " known"]:
    known: Float[ndarray, " known"] = values[np.isfinite(values)]
    return known


def _reading(name: str, trait: Trait, scored: Float[ndarray, " items"]) -> Reading:
    known = _known(scored)
    if not len(known):
        return Reading(name, None, trait, unscored=len(scored))
    value = float(known.mean())
    # Items that all agree leave no doubt about their mean.
    same = (value, value) if len(known) > 1 else (None, None)
    low, high = t_interval(known) or same
    return Reading(name, value, trait, low, high, len(known), len(scored) - len(known))


def _letter_tokens(subject: Subject, count: int) -> dict[int, str]:
    """Return the tokens that are the letter of one of so many options.

    Raises:
        ModelError: A letter has none.
    """
    from personality_vector.subject.continuations import words_as_tokens

    letters = _LETTERS[:count]
    found = words_as_tokens(subject.tokenizer.get_vocab(), letters)
    if lacking := set(letters) - set(found.values()):
        raise ModelError(
            f"the tokenizer has no token for {some(lacking)}, so the likelihood of an option "
            "cannot be read; use answers: generated"
        )
    return found


def _position_in(reply: str, options: Sequence[str]) -> int | None:
    """Return the position that a reply names by its letter or its words, if it names just one."""
    text = reply.replace(_CURLY, "'")
    letters = [
        match[1]
        for match in _LETTER.finditer(text)
        if not (match[1] in _WORDS and _GOES_ON.match(text, match.end()))
    ]
    found = {_LETTERS.index(letter) for letter in letters if letter in _LETTERS[: len(options)]}
    said = [option for option in options if _holds(text, option)]
    named = [one for one in said if not any(one != more and _holds(more, one) for more in said)]
    found |= {options.index(option) for option in named}
    return found.pop() if len(found) == 1 else None


def _holds(text: str, words: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(words.lower())}(?!\w)", text.lower()))
