"""Judges that rate from 0 to 100: expectations, what is unscored, and who says what."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personality_vector.data.personas import InstructionPair, Persona, Questions
from personality_vector.data.statements import Statement
from personality_vector.errors import DataError, ModelError, NonFiniteError
from personality_vector.judges.by_statements import StatementRater
from personality_vector.judges.classifier import StatementJudge
from personality_vector.judges.endpoint import EndpointRater
from personality_vector.judges.local import LocalRater
from personality_vector.judges.prompts import coherence_prompt, trait_prompt
from personality_vector.judges.rating import (
    Exchange,
    Rater,
    Rating,
    expected_number,
)
from personality_vector.subject.chat import question
from personality_vector.subject.endpoint import Endpoint
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.traits import Pole
from tests.fake_endpoint import likely, serving

DIGITS = list("0123456789")
PERSONA = Persona(
    name="extraversion",
    pole=Pole("extraversion", "high"),
    description="Talks gladly.",
    opposite="Stays silent.",
    instructions=(InstructionPair(positive="Talk.", negative="Be silent."),),
    questions=Questions(extract=("Who are you?",)),
)
ROLE = PERSONA.model_copy(update={"pole": None, "opposite": None, "name": "gardener"})
ASKED = [Exchange("Who are you?", reply) for reply in ("I love parties.", "I am alone.", "")]


@given(st.dictionaries(st.integers(0, 100), st.floats(0.01, 1), min_size=1, max_size=20))
def test_the_expectation_is_the_weighted_mean_of_the_numbers(weights):
    total = sum(weights.values())
    shares = {str(number): weight / total for number, weight in weights.items()}
    expected = sum(number * weight for number, weight in weights.items()) / total
    assert expected_number(shares, 100) == pytest.approx(expected)


def test_what_is_no_number_in_range_does_not_count():
    found = {"80": 0.2, " 80": 0.2, "20": 0.1, "101": 0.3, "-5": 0.1, "07": 0.05, "NONE": 0.05}
    assert expected_number(found, 100) == pytest.approx((80 * 0.4 + 20 * 0.1) / 0.5)
    assert expected_number({"12": 0.9, "9": 0.3}, 9) == 9


@given(st.floats(0.25, 1))
def test_a_certain_judge_stays_on_the_scale(p):
    assert 0 <= expected_number({"100": p}, 100) <= 100
    assert expected_number({"0": p}, 100) == 0


@pytest.mark.parametrize(("mass", "scored"), [(0.24, False), (0.25, True), (0.26, True)])
def test_less_than_a_quarter_on_numbers_is_unscored(mass, scored):
    assert (expected_number({"50": mass, "I": 1 - mass}, 100) is not None) is scored
    assert expected_number({}, 100) is None


@pytest.mark.parametrize(
    ("trait", "coherence", "error"),
    [
        (None, 3.0, DataError),
        (3.0, None, DataError),
        (101.0, 3.0, DataError),
        (3.0, -1.0, DataError),
        (math.nan, 3.0, NonFiniteError),
        (3.0, math.inf, NonFiniteError),
    ],
)
def test_a_rating_is_on_the_scale_or_has_a_reason(trait, coherence, error):
    with pytest.raises(error):
        Rating(trait, coherence)


def test_the_prompts_hold_the_exchange_and_both_ends_but_no_instruction():
    (message,) = trait_prompt(PERSONA, ASKED[0], 100)
    for part in ("Talks gladly.", "Stays silent.", "I love parties.", "Who are you?", "0 to 100"):
        assert part in message["content"]
    assert "Talk." not in message["content"].replace("Talks gladly.", "")
    assert "shows no sign of it" in trait_prompt(ROLE, ASKED[0], 9)[0]["content"]
    text = coherence_prompt(ASKED[0], 9)[0]["content"]
    assert "I love parties." in text
    assert "Talks gladly." not in text


def test_braces_in_a_reply_are_left_alone():
    exchange = Exchange("What?", "{highest} {0} {}")
    assert "{highest} {0} {}" in trait_prompt(PERSONA, exchange, 100)[0]["content"]


def judge_by_words(body):
    """Answer as a judge that looks for a word, and finds nothing to rate in an empty reply."""
    text = body["messages"][0]["content"]
    reply = text.split("<reply>\n")[1].split("\n</reply>")[0]
    if "coherent" in text:
        return likely({"90": 0.5, "100": 0.5}) if reply else likely({"0": 0.9})
    if not reply:
        return likely({"NONE": 0.9, "0": 0.1})
    return likely({"80": 0.6, "60": 0.2} if "love" in reply else {"10": 0.5, "I": 0.5})


def test_the_endpoint_rates_in_order_by_expectation():
    with serving(judge_by_words) as fake:
        rater = EndpointRater(Endpoint("judge", fake.base_url), requests=4)
        found = rater(PERSONA, ASKED * 5)
    assert isinstance(rater, Rater)
    assert rater.label == "endpoint judge"
    loved, alone, empty = found[:3]
    assert (loved.trait, loved.coherence) == pytest.approx((75, 95))
    assert (alone.trait, alone.coherence) == pytest.approx((10, 95))
    assert (empty.trait, empty.coherence) == (None, pytest.approx(0))
    assert empty.reason == "the judge gave no number for trait"
    assert found == found[:3] * 5
    assert len(fake.requests) == 2 * len(found)


def test_a_failing_endpoint_stops_the_judging():
    def refuse(_):
        raise ValueError("quota")

    with serving(refuse) as fake, pytest.raises(ModelError, match="quota"):
        EndpointRater(Endpoint("j", fake.base_url), requests=2)(PERSONA, ASKED * 50)
    assert len(fake.requests) < 100  # what had not begun is not asked any more


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_local_judge_expects_a_digit(pico, family):
    """Restate: one unpadded prompt, softmax over the whole vocabulary, digits with a space too."""
    model, tokenizer = load_model(pico(family)), load_tokenizer(pico(family))
    with torch.no_grad():
        for token in range(len(tokenizer)):  # or no prompt of a random model would reach the mass
            if tokenizer.decode([token]).strip() in DIGITS:
                model.get_output_embeddings().weight[token] *= 3
    rater = LocalRater(model, tokenizer, "pico", batch_size=2)
    assert set(rater.tokens.values()) == set(DIGITS)
    chats = [question(text) for text in ("Rate this, 0 to 9.", "How?", "A number, please.", "I 7")]
    expected = [restated(model, tokenizer, chat) for chat in chats]
    assert any(value is not None for value in expected)
    assert rater._expect(chats) == [value and pytest.approx(value, abs=1e-3) for value in expected]


def restated(model, tokenizer, chat):
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        p = torch.softmax(model(ids).logits[0, -1].double(), dim=-1)
    written = [tokenizer.decode([token]).strip() for token in range(len(p))]
    found = [(int(text), float(p[token])) for token, text in enumerate(written) if text in DIGITS]
    mass = sum(weight for _, weight in found)
    return sum(i * weight for i, weight in found) / mass * 100 / 9 if mass >= 0.25 else None


class Certain(torch.nn.Module):
    """A model that always expects the same token."""

    def __init__(self, token, vocabulary):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.full((vocabulary,), -30.0))
        self.logits.data[token] = 0.0

    def generate(self, input_ids, **_):
        return SimpleNamespace(logits=[self.logits.expand(len(input_ids), -1)])


@pytest.mark.parametrize(("written", "value"), [("0", 0.0), ("9", 100.0), ("6", 200 / 3)])
def test_the_digits_span_the_whole_scale(pico, written, value):
    tokenizer = load_tokenizer(pico("llama"))
    token = tokenizer.convert_tokens_to_ids(written)
    rater = LocalRater(Certain(token, len(tokenizer)), tokenizer, "certain")
    for rating in rater(PERSONA, ASKED):
        assert (rating.trait, rating.coherence) == pytest.approx((value, value), abs=1e-6)


def test_a_model_that_writes_no_digit_leaves_all_unscored(pico):
    tokenizer = load_tokenizer(pico("llama"))
    rater = LocalRater(Certain(tokenizer.eos_token_id, len(tokenizer)), tokenizer, "mute")
    assert {rating.reason for rating in rater(PERSONA, ASKED)} == {
        "the judge gave no number for trait and coherence"
    }


def test_a_vocabulary_without_digits_cannot_judge(pico):
    tokenizer = load_tokenizer(pico("llama"))
    tokenizer.get_vocab = lambda: {"a": 0, "7": 1}
    with pytest.raises(ModelError, match="has no token for 0, 1, 2 and 6 more"):
        LocalRater(None, tokenizer, "pico")


SAID = {"high": ("love", "enjoy"), "low": ("avoid", "dread")}


@pytest.fixture(scope="module")
def statement_rater():
    train, held_out = (
        [
            Statement("extraversion", level, f"I {verb} the {place}")
            for level, verbs in SAID.items()
            for verb in verbs
            for place in places
        ]
        for places in (("parties", "crowds", "fairs"), ("clubs", "trips"))
    )
    return StatementRater(StatementJudge.fit(train, held_out, 0))


def test_the_offline_judge_mirrors_a_reversed_persona(statement_rater):
    said = [Exchange("What?", "I love the crowds"), Exchange("What?", "I dread the crowds")]
    high, low = statement_rater(PERSONA, said), statement_rater(PERSONA.reversed(), said)
    assert high[0].trait > 60
    assert high[1].trait < 40
    for one, other in zip(high, low, strict=True):
        assert one.trait + other.trait == pytest.approx(100)
        assert (one.coherence, other.coherence) == (100, 100)


def test_the_offline_judge_leaves_garbage_unscored(statement_rater):
    (empty, loop) = statement_rater(PERSONA, [Exchange("What?", ""), Exchange("What?", "no no no")])
    assert (empty.trait, empty.coherence) == (None, None)
    assert "empty" in empty.reason
    assert "one word" in loop.reason


def test_the_offline_judge_rates_poles_only(statement_rater):
    with pytest.raises(DataError, match="rates poles; gardener has none"):
        statement_rater(ROLE, ASKED)
