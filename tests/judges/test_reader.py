"""A judge that reads: what an unedited model expects the speaker to add."""

import math
import statistics

import pytest

from personality_vector.data.statements import Statement
from personality_vector.errors import DataError
from personality_vector.judges.reader import ASKED, Reader, ReaderJudge
from personality_vector.subject import answered, question
from personality_vector.subject.protocols import Answer, Judge, Rubric
from personality_vector.subject.subject import Subject
from personality_vector.traits import BIG_FIVE, Pole

STATEMENTS = [
    Statement("extraversion", "high", "I love parties."),
    Statement("extraversion", "high", "Crowds give me energy."),
    Statement("extraversion", "low", "I stay at home."),
    Statement("extraversion", "low", "Crowds drain me."),
]
OTHERS = [
    Statement("openness", "high", "I paint at night."),
    Statement("openness", "low", "I keep to what I know."),
]
NEUTRAL = ["It is six.", "The bus is late.", "Two and two is four.", "Paris is in France."]
HIGH, LOW = (Rubric("extraversion", pole=Pole("extraversion", level)) for level in ("high", "low"))


@pytest.fixture(scope="module")
def subject(pico):
    return Subject.load(pico("llama"))


@pytest.fixture
def reader(subject):
    return Reader([*STATEMENTS, *OTHERS], NEUTRAL, band=0.0).prepare(subject)


def said(text, asked=""):
    return Answer("who", 0, asked, text)


def preference(subject, text, asked=ASKED):
    """Return what the reader prefers, by reading every statement whole."""
    chats = [answered(question(asked), f"{text} {s.text}") for s in STATEMENTS]
    before = len(next(subject.predictions([answered(question(asked), text)]))[0])
    found = [
        float(log_probs[before:].gather(1, tokens[before:, None]).mean())
        for tokens, log_probs in subject.predictions(chats)
    ]
    return statistics.fmean(found[:2]) - statistics.fmean(found[2:])


def test_the_score_is_its_formula(reader, subject):
    usual = [preference(subject, text) for text in [*(s.text for s in OTHERS), *NEUTRAL]]
    centre = statistics.fmean(usual[:2])
    deviation = math.sqrt(statistics.fmean((one - centre) ** 2 for one in usual))
    for asked in ("", "What now?"):
        found = reader(HIGH, [said("I went dancing.", asked)])[0].value
        z = (preference(subject, "I went dancing.", asked or ASKED) - centre) / deviation
        assert found == pytest.approx(3 + 2 * math.tanh(z / 10), abs=1e-3)
        assert reader(LOW, [said("I went dancing.", asked)])[0].value == pytest.approx(6 - found)
    assert isinstance(reader, Judge)


def test_without_other_traits_neutral_texts_are_the_centre(subject):
    usual = [preference(subject, text) for text in NEUTRAL]
    found = Reader(STATEMENTS, NEUTRAL).prepare(subject).band_of("extraversion")
    assert found == pytest.approx((statistics.fmean(usual), statistics.pstdev(usual)), abs=1e-4)


def test_only_statements_of_the_trait_are_read_and_an_answer_once(reader, monkeypatch):
    from personality_vector.subject import continuations

    usual, read = continuations.continuation_likelihoods, []

    def counted(model, tokenizer, chat, begun, texts):
        read.append((begun, tuple(texts)))
        return usual(model, tokenizer, chat, begun, texts)

    monkeypatch.setattr(continuations, "continuation_likelihoods", counted)
    for rubric in (HIGH, LOW, HIGH):
        reader(rubric, [said("I went dancing.")])
    own = tuple(statement.text for statement in STATEMENTS)
    texts = ["I went dancing.", *(s.text for s in OTHERS), *NEUTRAL]
    assert sorted(read) == sorted((text, own) for text in texts)


def test_what_lies_in_the_band_is_unscored(subject):
    wide = Reader(STATEMENTS, NEUTRAL, band=1e9).prepare(subject)
    found = wide(HIGH, [said("I went dancing."), said(" "), said("I " * 5000)])
    assert [one.value for one in found] == [None, None, None]
    assert "shows too little of the trait" in found[0].reason
    assert found[1].reason == "the answer is empty"
    assert found[2].reason == "the answer is longer than the model reads"


@pytest.mark.parametrize(
    "rubric", [Rubric("gardener"), Rubric("neuroticism", pole=Pole("neuroticism", "high"))]
)
def test_what_it_has_no_statements_of_is_refused_even_without_answers(reader, rubric):
    with pytest.raises(DataError, match="has statements of extraversion, openness, and none of"):
        reader(rubric, [])


def test_without_a_model_it_does_not_rate():
    with pytest.raises(DataError, match="needs a model that reads"):
        Reader(STATEMENTS, NEUTRAL)(HIGH, [said("I went dancing.")])


def test_its_identity_is_its_texts_and_its_band(subject):
    one = Reader(STATEMENTS, NEUTRAL)
    assert one.identity() == one.prepare(subject).identity()
    others = [Reader(STATEMENTS, NEUTRAL, 3.0), Reader(STATEMENTS, NEUTRAL[1:])]
    assert len({each.identity() for each in (one, *others)}) == 3


def test_the_shipped_one_has_short_statements_of_every_pole():
    reader = ReaderJudge(per_pole=5, limit=20).open()
    assert (set(reader.traits), len(reader.statements), len(reader.neutral)) == (
        set(BIG_FIVE),
        50,
        20,
    )
    assert max(len(one.text.split()) for one in reader.statements) <= 17
    with pytest.raises(DataError, match="has 999 texts; the band needs 2000"):
        ReaderJudge(limit=2000).open()
