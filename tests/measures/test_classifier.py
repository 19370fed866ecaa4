import itertools
import random

import pytest

from personality_vector.data.instruments import Item
from personality_vector.data.statements import Statement
from personality_vector.errors import DataError
from personality_vector.judges.classifier import StatementJudge
from personality_vector.judges.scores import summarise
from personality_vector.measures.administer import Response

PLACES = ["parties", "crowds", "dinners", "meetings", "fairs", "concerts", "clubs", "trips"]
WORDS = {"high": ["love", "enjoy", "seek"], "low": ["avoid", "dread", "flee"]}


def statements(places, trait="extraversion", turned=False):
    levels = {"high": "low", "low": "high"} if turned else {"high": "high", "low": "low"}
    return [
        Statement(trait, levels[level], f"I {verb} the {place}")
        for level, verbs in WORDS.items()
        for verb, place in itertools.product(verbs, places)
    ]


TRAIN, HELD_OUT = statements(PLACES[:5]), statements(PLACES[5:])


@pytest.fixture(scope="module")
def judge():
    return StatementJudge.fit(TRAIN, HELD_OUT, 0)


def response(text):
    item = Item(id="who", text="Who are you?")
    return Response(item, 0, [{"role": "user", "content": item.text}], text)


def test_the_poles_lie_on_their_sides_of_the_scale(judge):
    high = judge(response("I love and enjoy it"), "extraversion").value
    low = judge(response("I dread and avoid it"), "extraversion").value
    assert 1 <= low < 2.5 < 3.5 < high <= 5


def test_the_report_is_of_the_held_out_part(judge):
    (report,) = judge.report()
    assert (report.trait, report.n_train, report.n_held_out) == ("extraversion", 30, 18)
    assert (report.accuracy, report.auc) == (1.0, 1.0)
    wrong = StatementJudge.fit(TRAIN, statements(PLACES[5:], turned=True), 0).report()[0]
    assert (wrong.accuracy, wrong.auc) == (0.0, 0.0)


def test_swapping_the_labels_mirrors_every_score(judge):
    turned = StatementJudge.fit(
        statements(PLACES[:5], turned=True), statements(PLACES[5:], turned=True), 0
    )
    for text in ("I love it", "I dread the crowds", "the"):
        mirrored = 6 - judge.score(text, "extraversion").value
        assert turned.score(text, "extraversion").value == pytest.approx(mirrored, abs=1e-3)


def test_what_says_nothing_is_neutral_although_one_pole_has_more_statements():
    uninformative = [Statement("openness", "high", s.text) for s in TRAIN] * 3
    uninformative += [Statement("openness", "low", s.text) for s in TRAIN]
    held_out = statements(PLACES[5:], "openness")
    value = StatementJudge.fit(uninformative, held_out, 0).score("I seek it", "openness").value
    assert value == pytest.approx(3.0, abs=0.02)  # by counting statements it would be 4


def two_traits(places):
    """Extraversion and openness whose poles share ``new`` and ``old``, as real statements do."""
    own = [
        Statement(s.trait, s.level, f"{s.text} that {'new' if s.level == 'high' else 'old'} is")
        for s in statements(places)
    ]
    other = [
        Statement("openness", level, f"{verb} books of {place} that {age} is")
        for level, age in (("high", "new"), ("low", "old"))
        for verb, place in itertools.product(("read", "print", "write"), places)
    ]
    return own, other


def test_an_answer_about_another_trait_is_neutral():
    (own, other), (own_held_out, other_held_out) = two_traits(PLACES[:5]), two_traits(PLACES[5:])
    alone = StatementJudge.fit(own, own_held_out, 0)
    both = StatementJudge.fit(own + other, own_held_out + other_held_out, 0)
    text = next(s.text for s in other_held_out if s.level == "high")
    assert alone.score(text, "extraversion").value > 3.8
    assert both.score(text, "extraversion").value == pytest.approx(3, abs=0.4)
    report = both.report()[0]
    assert (report.trait, report.accuracy) == ("extraversion", 1.0)
    assert report.off_topic < 0.4
    assert alone.report()[0].off_topic is None


def test_the_order_of_statements_does_not_matter(judge):
    shuffled = random.Random(1).sample(TRAIN, len(TRAIN))
    again = StatementJudge.fit(shuffled, HELD_OUT[::-1], 0)
    assert again.report() == judge.report()
    text = "I seek the unknown crowds"
    assert again.score(text, "extraversion") == judge.score(text, "extraversion")


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("?! ...", "no words"),
        ("love love love love", "one word repeated: 'love'"),
        ("Love, love.", "one word repeated"),
        ("I love it. I love it. I love it. I love it.", "repeats itself"),
        ("qwx zzyx 12", "no word of the answer is known"),
    ],
)
def test_garbage_is_unscored_with_the_reason(judge, garbage, reason):
    score = judge(response(garbage), "extraversion")
    assert score.value is None
    assert score.raw == garbage
    assert reason in score.reason


def test_an_ordinary_long_answer_is_not_taken_for_a_loop(judge):
    text = (
        "I love the parties and I enjoy the crowds, but I avoid the dinners and I flee the fairs."
    )
    assert judge.score(text, "extraversion").value is not None


def test_the_unscored_do_not_move_the_mean(judge):
    good = [judge.score("I love it", "extraversion"), judge.score("I flee it", "extraversion")]
    bad = [judge.score("", "extraversion")] * 3
    assert summarise([*good, *bad]).mean == summarise(good).mean
    assert summarise([*good, *bad]).unscored == 3


def test_length_alone_is_reported():
    short = [Statement("openness", "low", f"I {word}") for word in PLACES]
    long = [Statement("openness", "high", f"I {word} and so on at length") for word in PLACES]
    found = StatementJudge.fit(short[:5] + long[:5], short[5:] + long[5:], 0).report()[0]
    assert found.accuracy_length_only == 1.0
    same = StatementJudge.fit(TRAIN, HELD_OUT, 0).report()[0]
    assert same.accuracy_length_only < 0.8


def test_a_statement_in_both_parts_is_refused():
    leak = Statement("extraversion", "high", TRAIN[0].text.upper() + " ")
    with pytest.raises(DataError, match="both learned from and measured on"):
        StatementJudge.fit(TRAIN, [*HELD_OUT, leak], 0)


@pytest.mark.parametrize(
    ("train", "held_out", "complaint"),
    [
        (TRAIN[:15], HELD_OUT, "train statements of both poles"),
        (TRAIN, HELD_OUT[:9], "held-out statements of both poles"),
        (TRAIN, statements(PLACES[5:], "openness"), "held-out statements of both poles"),
        ([], HELD_OUT, "needs labelled statements"),
    ],
)
def test_a_missing_pole_is_refused(train, held_out, complaint):
    with pytest.raises(DataError, match=complaint):
        StatementJudge.fit(train, held_out, 0)


def test_an_unknown_trait_is_refused(judge):
    with pytest.raises(DataError, match="extraversion, not 'openness'"):
        judge(response("I love it"), "openness")
