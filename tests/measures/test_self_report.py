"""Self-report: scripted respondents get what the key implies, whatever the order of options."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from personality_vector.data.questionnaires import Questionnaire, QuestionnaireItem
from personality_vector.errors import ModelError, NonFiniteError
from personality_vector.measures.self_report import SelfReport
from personality_vector.study.respondents import AGREES, DISAGREES, FLAT, RANDOM, respondent
from personality_vector.subject.spec import GenerationSpec
from personality_vector.traits import BIG_FIVE

OPTIONS = ("Not at all", "A little", "Partly", "Mostly", "Completely")
KEYED = (1, 1, 1, -1, 1, -1, 1, -1)
ITEMS = tuple(
    QuestionnaireItem(f"{trait}-{n}", f"{trait} {n}", trait, keyed, f"half-{n % 2}")
    for trait, (n, keyed) in product(BIG_FIVE, enumerate(KEYED))
)
BY_TEXT = {item.text: item for item in ITEMS}
MEASURE = SelfReport(Questionnaire(ITEMS, OPTIONS, (1, 5)))
Rule = Callable[[QuestionnaireItem, list[int]], np.ndarray]


@dataclass(frozen=True)
class Scripted:
    """Gives each position the log-probability that a rule says for its option."""

    rule: Rule
    letters: str = "ABCDE"
    mass: float = 0.9

    @property
    def tokenizer(self):
        return SimpleNamespace(get_vocab=lambda: {x: n + 7 for n, x in enumerate(self.letters)})

    def next_token(self, chats, among, _):
        assert among == [7, 8, 9, 10, 11]
        return torch.tensor(np.array([self._said(chat[-1]["content"]) for chat in chats]))

    def _said(self, asked):
        options = re.findall(r"^[A-E]\. (.*)$", asked, re.MULTILINE)
        item = BY_TEXT[asked.rpartition("Description: ")[2]]
        found = self.rule(item, [OPTIONS.index(option) for option in options])
        return found - np.logaddexp.reduce(found) + np.log(self.mass)


def choosing(answer):
    """Return a rule that is sure of one answer, from 1 to 5, to each item."""
    return Scripted(lambda item, order: -30.0 * (np.array(order) != answer(item) - 1))


def readings(subject, measure=MEASURE):
    found = measure.collect(subject, 0)
    return {(one.measure, one.trait): one for one in found.readings}


def style(subject):
    found = readings(subject)
    return {name: found[f"self_report.{name}", ""].value for name in ("acquiescence", "spread")}


def extravert(item):
    return 3 if item.trait != "extraversion" else 5 if item.keyed == 1 else 1


def told(subject):
    return respondent(MEASURE.collect(subject, 0).readings, MEASURE.scale)


def drawn(*ratings):
    """Return a respondent who draws a rating for each item from these."""
    rng = np.random.default_rng(0)
    given = {item.id: int(rng.choice(ratings)) for item in ITEMS}
    return choosing(lambda item: given[item.id])


def test_one_who_answers_5_to_everything_is_told_and_scores_what_the_key_implies():
    subject = choosing(lambda _: 5)
    assert style(subject) == pytest.approx({"acquiescence": 2, "spread": 0})
    share = np.mean(np.array(KEYED) == 1)
    for trait in BIG_FIVE:
        found = readings(subject)["self_report", trait]
        assert found.value == pytest.approx(5 * share + 1 * (1 - share))
        assert (found.n, found.unscored) == (8, 0)
    assert told(subject) == FLAT


def test_a_perfect_extravert_is_told():
    subject = choosing(extravert)
    found = readings(subject, replace(MEASURE, facets=True))
    for trait, facet in product(BIG_FIVE, ("", ".half-0", ".half-1")):
        one = found[f"self_report{facet}", trait]
        mean = 5 if trait == "extraversion" else 3
        assert (one.value, one.low, one.high) == pytest.approx((mean, mean, mean))
        assert one.n == (4 if facet else 8)
    assert found["self_report.consistency", ""].value == pytest.approx(1)
    assert found["self_report.acquiescence", ""].value == pytest.approx(0)
    assert told(subject) == "Answers consistently: high in extraversion."


@pytest.mark.parametrize(("ratings", "says"), [((4, 5), AGREES), ((1, 2), DISAGREES)])
def test_one_who_agrees_with_either_key_is_told(ratings, says):
    subject = drawn(*ratings)
    assert style(subject)["acquiescence"] == pytest.approx(np.mean(ratings) - 3, abs=0.3)
    assert told(subject) == says


def test_one_who_answers_at_random_is_told():
    subject = drawn(1, 2, 3, 4, 5)
    assert abs(readings(subject)["self_report.consistency", ""].value) < 0.25
    assert told(subject) == RANDOM


def test_a_faint_respondent_is_told_as_a_loud_one():
    """Expectations of a model that is not sure lie near the middle, whoever it is."""

    def faint(answer):
        return Scripted(lambda item, order: np.array(order) * (answer(item) - 3) * 0.3)

    assert told(faint(extravert)) == "Answers consistently: high in extraversion."
    noise = dict(
        zip([one.id for one in ITEMS], np.random.default_rng(1).normal(size=40), strict=True)
    )
    assert told(faint(lambda item: 4 + noise[item.id] / 2)) == AGREES
    assert told(faint(lambda item: 3 + noise[item.id])) == RANDOM
    assert style(faint(lambda item: 4 + noise[item.id] / 2))["acquiescence"] < 0.6


def test_what_depends_on_the_position_drops_out():
    """If log p = f(option) + g(position) + constant, no number but the bias knows g."""
    rng = np.random.default_rng(2)
    of_option = {item.id: rng.normal(size=5) for item in ITEMS}
    of_position = np.array([3.0, -1.0, 0.5, 0.0, 1.0])

    def rule(share):
        return Scripted(lambda item, order: of_option[item.id][order] + share * of_position)

    plain, biased = readings(rule(0.0)), readings(rule(1.0))
    bias = ("self_report.position_bias", "")
    assert plain.pop(bias).value == pytest.approx(0, abs=1e-9)
    assert biased.pop(bias).value > 0.3
    for name, one in plain.items():
        assert biased[name].value == pytest.approx(one.value, abs=1e-6)
    likely = np.exp(of_option[ITEMS[0].id])
    expected = likely @ np.arange(1, 6) / likely.sum()
    seen = MEASURE.collect(rule(1.0), 0).observations
    assert seen[0].value == pytest.approx(expected, abs=1e-6)


def test_one_who_always_takes_the_first_position_is_all_bias():
    first = Scripted(lambda *_: -30.0 * (np.arange(5) > 0))
    found = readings(first)
    assert found["self_report.position_bias", ""].value == pytest.approx(0.8)
    assert style(first)["spread"] == pytest.approx(0, abs=1e-9)


def test_an_item_is_unscored_where_the_letters_have_little_probability():
    whole = choosing(extravert)

    def next_token(chats, *how):
        found = whole.next_token(chats, *how)
        is_shy = torch.tensor(["extraversion 0" in chat[-1]["content"] for chat in chats])
        return found - 5.0 * is_shy[:, None]

    shy = SimpleNamespace(tokenizer=whole.tokenizer, next_token=next_token)
    found = readings(shy)
    own = found["self_report", "extraversion"]
    assert (own.value, own.n, own.unscored) == (pytest.approx(5), 7, 1)
    assert found["self_report.spread", ""].unscored == 1
    assert "extraversion-0" not in {one.item for one in MEASURE.collect(shy, 0).observations}
    mute = replace(whole, mass=0.2)
    assert {one.value for one in readings(mute).values()} == {None}
    assert {one.unscored for one in readings(mute).values()} == {8, 40}
    assert told(mute) == "No answer could be read."


def test_letters_that_are_no_tokens_or_no_numbers_are_refused():
    with pytest.raises(ModelError, match="no token for D, E, so the likelihood"):
        MEASURE.collect(replace(choosing(extravert), letters="ABC"), 0)
    broken = SimpleNamespace(
        tokenizer=choosing(extravert).tokenizer,
        next_token=lambda chats, *_: torch.full((len(chats), 5), torch.nan),
    )
    with pytest.raises(NonFiniteError, match="self_report: the model gives a letter a likelihood"):
        MEASURE.collect(broken, 0)


GENERATED = replace(MEASURE, generation=GenerationSpec(samples=10, temperature=1.0))


@pytest.mark.parametrize(
    ("reply", "raw"),
    [
        ("completely.", 5),
        ("The answer is: Not at all", 1),
        ("B", 3),  # each option stands there twice among ten orders
        ("(C)", 3),
        ("I'd say E, because I like people.", 3),
        ("A friend of mine says: a little", 2),
        ("A", 3),
        ("Mostly, or a little", None),
        ("B or C", None),
        ("I cannot say.", None),
        ("F", None),
        ("", None),
    ],
)
def test_a_reply_is_read_if_it_names_one_letter_or_one_option(parrot, reply, raw):
    found = GENERATED.collect(parrot(reply), 0)
    total = {one.trait: one for one in found.readings if one.measure == "self_report"}
    values = {one.item: one.value for one in found.observations}
    if raw is None:
        assert [one.value for one in total.values()] == [None] * 5
        assert {one.unscored for one in total.values()} == {8}
    else:
        assert len(values) == len(ITEMS)
        for item in ITEMS:
            assert values[item.id] == pytest.approx(raw if item.keyed == 1 else 6 - raw)


def test_a_letter_against_the_words_of_its_option_is_unreadable(parrot):
    """Which letter an option has changes with the order, so both agree in two orders of ten."""
    found = GENERATED.collect(parrot("A. Completely"), 0)
    assert {one.value for one in found.observations} == {1.0, 5.0}
    one = replace(GENERATED, generation=GenerationSpec())
    readable = len(one.collect(parrot("A. Completely"), 0).observations)
    assert 0 < readable < len(ITEMS) / 2


def test_norms_and_scale_are_those_of_the_questionnaire():
    wide = replace(MEASURE.questionnaire, options=("No", "Yes"), scale=(0, 1))
    assert replace(MEASURE, questionnaire=wide).scale == (0.0, 1.0)
    assert MEASURE.norms is None
