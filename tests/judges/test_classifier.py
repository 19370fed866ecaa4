import itertools
import pickle
import random

import pytest

from personality_vector.data.personas import COHERENCE, rubric_of
from personality_vector.data.statements import Statement, normalised, read_statements
from personality_vector.data.texts import read_texts
from personality_vector.errors import DataError
from personality_vector.judges.classifier import ClassifierJudge, StatementJudge
from personality_vector.lab import NEUTRAL_TEXTS, builtin
from personality_vector.subject.protocols import Answer, Judge, Rubric
from personality_vector.traits import BIG_FIVE, Pole

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


EXTRAVERSION = Rubric("extraversion", pole=Pole("extraversion", "high"))


@pytest.fixture(scope="module")
def judge():
    return StatementJudge(TRAIN, HELD_OUT)


def score(judge, text, rubric=EXTRAVERSION):
    (found,) = judge(rubric, [Answer("who", 0, "Who are you?", text)])
    return found


def quality(judge, trait="extraversion"):
    return {found.name: found.value for found in judge.quality() if found.trait == trait}


def test_the_poles_lie_on_their_sides_of_the_scale(judge):
    high = score(judge, "I love and enjoy it").value
    low = score(judge, "I dread and avoid it").value
    assert 1 <= low < 2.5 < 3.5 < high <= 5
    assert isinstance(judge, Judge)
    assert judge.scale == (1, 5)


def test_its_quality_is_that_on_the_held_out_part(judge):
    assert {(found.trait, found.n) for found in judge.quality()} == {("extraversion", 18)}
    right = quality(judge)
    assert (right["judge_accuracy"], right["judge_auc"]) == (1.0, 1.0)
    wrong = quality(StatementJudge(TRAIN, statements(PLACES[5:], turned=True)))
    assert (wrong["judge_accuracy"], wrong["judge_auc"]) == (0.0, 0.0)


def test_a_low_pole_is_the_mirror_of_the_high_one(judge):
    low = Rubric("silence", pole=Pole("extraversion", "low"))
    for text in ("I love the crowds", "I dread the crowds", "the"):
        mirrored = 6 - score(judge, text).value
        assert score(judge, text, low).value == pytest.approx(mirrored)
        assert score(judge, text, low).reason == score(judge, text).reason


def test_coherence_is_whatever_can_be_read(judge):
    said = ["I dread it", "", "no no no", "qwx zzyx", "I love it"]
    found = [score(judge, text, COHERENCE) for text in said]
    assert [one.value for one in found] == [5, None, None, None, 5]
    unscored = [score(judge, text).reason for text in said[1:4]]
    assert [one.reason for one in found[1:4]] == unscored


def test_answers_are_rated_in_order_and_alone(judge):
    said = ["I love it", "", "I flee it"]
    found = judge(EXTRAVERSION, [Answer("who", i, "?", text) for i, text in enumerate(said)])
    assert found == [score(judge, text) for text in said]


@pytest.mark.parametrize(
    ("rubric", "complaint"),
    [
        (Rubric("gardener", "Speaks of plants."), "rates poles, and gardener has none"),
        (Rubric("openness", pole=Pole("openness", "low")), "extraversion, not 'openness'"),
    ],
)
def test_what_it_has_not_learned_is_refused_even_without_answers(judge, rubric, complaint):
    for answers in ([], [Answer("who", 0, "Who are you?", "I love it")]):
        with pytest.raises(DataError, match=complaint):
            judge(rubric, answers)


def test_its_identity_is_what_it_learned_and_is_measured_on(judge):
    assert StatementJudge(list(TRAIN), HELD_OUT).identity() == judge.identity()
    assert StatementJudge(TRAIN[:-1], HELD_OUT).identity() != judge.identity()
    assert StatementJudge(TRAIN, HELD_OUT[:-1]).identity() != judge.identity()
    score(judge, "I love it")
    assert pickle.loads(pickle.dumps(judge)) == judge.prepare(None) == judge  # noqa: S301
    assert judge.identity() == StatementJudge(TRAIN, HELD_OUT).identity()


def test_the_shipped_statements_are_its_default():
    judge = ClassifierJudge().open()
    assert judge.traits == tuple(sorted(BIG_FIVE))
    assert (len(judge.train), len(judge.held_out)) == (3060, 240)
    assert (len(judge.neutral), len(judge.unseen)) == (999, 360)


def test_swapping_the_labels_mirrors_every_score(judge):
    turned = StatementJudge(
        statements(PLACES[:5], turned=True), statements(PLACES[5:], turned=True)
    )
    for text in ("I love it", "I dread the crowds", "the"):
        mirrored = 6 - score(judge, text).value
        assert score(turned, text).value == pytest.approx(mirrored, abs=1e-3)


def test_what_says_nothing_is_neutral_although_one_pole_has_more_statements():
    uninformative = [Statement("openness", "high", s.text) for s in TRAIN] * 3
    uninformative += [Statement("openness", "low", s.text) for s in TRAIN]
    held_out = statements(PLACES[5:], "openness")
    judge = StatementJudge(uninformative, held_out)
    value = score(judge, "I seek it", rubric_of("openness")).value
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
    alone = StatementJudge(own, own_held_out)
    both = StatementJudge(own + other, own_held_out + other_held_out)
    text = next(s.text for s in other_held_out if s.level == "high")
    assert score(alone, text).value > 3.8
    assert score(both, text).value == pytest.approx(3, abs=0.4)
    assert quality(both)["judge_accuracy"] == 1.0
    assert "judge_off_topic" not in quality(both)  # without neutral texts, everything is scored


def test_the_order_of_statements_does_not_matter(judge):
    shuffled = random.Random(1).sample(TRAIN, len(TRAIN))
    again = StatementJudge(shuffled, HELD_OUT[::-1])
    assert again.quality() == judge.quality()
    text = "I seek the unknown crowds"
    assert score(again, text).value == pytest.approx(score(judge, text).value)


def test_its_quality_is_measured_once_and_again_if_what_is_kept_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("PVEC_CACHE", str(tmp_path))
    measured = StatementJudge(TRAIN, HELD_OUT).quality()
    (kept,) = (tmp_path / "judges").iterdir()
    for damaged in (b"", b"{}", b'{"quality": [[1]]}'):
        monkeypatch.setattr(StatementJudge, "_measured", lambda *_: pytest.fail("measured again"))
        assert StatementJudge(TRAIN, HELD_OUT).quality() == measured
        kept.write_bytes(damaged)
        monkeypatch.undo()
        monkeypatch.setenv("PVEC_CACHE", str(tmp_path))
        assert StatementJudge(TRAIN, HELD_OUT).quality() == measured


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
    found = score(judge, garbage)
    assert found.value is None
    assert reason in found.reason


def test_an_ordinary_long_answer_is_not_taken_for_a_loop(judge):
    text = (
        "I love the parties and I enjoy the crowds, but I avoid the dinners and I flee the fairs."
    )
    assert score(judge, text).value is not None


def test_length_alone_is_reported():
    short = [Statement("openness", "low", f"I {word}") for word in PLACES]
    long = [Statement("openness", "high", f"I {word} and so on at length") for word in PLACES]
    found = quality(StatementJudge(short[:5] + long[:5], short[5:] + long[5:]), "openness")
    assert found["judge_accuracy_length_only"] == 1.0
    assert quality(StatementJudge(TRAIN, HELD_OUT))["judge_accuracy_length_only"] < 0.8


def test_a_statement_in_both_parts_is_refused():
    leak = Statement("extraversion", "high", TRAIN[0].text.upper() + " ")
    with pytest.raises(DataError, match="both learned from and measured on"):
        StatementJudge(TRAIN, [*HELD_OUT, leak])


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
        StatementJudge(train, held_out)


# --- abstention ---

NEUTRAL = [
    f"The {thing} {verb} at {hour}"
    for thing in ("train", "shop", "office", "bank", "post", "library")
    for verb in ("opens", "closes", "leaves", "arrives")
    for hour in ("six", "noon")
]


@pytest.fixture(scope="module")
def cautious():
    # By place: what is left out together must not be all that is said with one verb.
    train = sorted(TRAIN, key=lambda one: one.text.split()[-1])
    return StatementJudge(train, HELD_OUT, neutral=NEUTRAL[:36], unseen=NEUTRAL[36:])


def test_text_without_personality_is_unscored_and_the_rest_is_scored(cautious, judge):
    for text in NEUTRAL[36:]:
        assert score(judge, text).value is None or 2 < score(judge, text).value < 4
        found = score(cautious, text)
        assert found.value is None
        assert "too little of the trait" in found.reason or "knows" in found.reason
    high, low = (score(cautious, f"I {verb} the crowds").value for verb in ("love", "dread"))
    assert low < 2 < 4 < high
    found = quality(cautious)
    assert (found["judge_coverage"], found["judge_false_alarms"]) == (1.0, 0.0)


def test_the_low_pole_mirrors_the_high_one_and_abstains_where_it_does(cautious):
    low = Rubric("silence", pole=Pole("extraversion", "low"))
    for text in ("I love the crowds", "I dread the crowds", "The bank opens at noon"):
        one, other = score(cautious, text), score(cautious, text, low)
        assert (one.value is None) == (other.value is None)
        assert one.value is None or other.value == pytest.approx(6 - one.value)


def test_neutral_texts_are_part_of_the_identity(cautious, judge):
    fewer = StatementJudge(TRAIN, HELD_OUT, neutral=NEUTRAL[:35], unseen=NEUTRAL[36:])
    assert len({one.identity() for one in (cautious, judge, fewer)}) == 3


@pytest.fixture(scope="module")
def shipped():
    return ClassifierJudge().open()


@pytest.mark.parametrize("trait", BIG_FIVE)
def test_the_shipped_judge_abstains_on_text_that_it_never_saw(shipped, trait):
    found = quality(shipped, trait)
    assert found["judge_false_alarms"] <= 0.05
    assert found["judge_off_topic"] <= 0.15
    assert found["judge_accuracy"] >= 0.75
    assert found["judge_coverage"] >= 0.25  # of characters, who hint more than they say


@pytest.mark.parametrize("trait", BIG_FIVE)
def test_the_shipped_judge_reads_statements_of_others(shipped, shared, trait):
    from sklearn.metrics import roc_auc_score

    rows = read_statements(shared / "data" / "big5_statements" / f"{trait}.jsonl")
    found = shipped(rubric_of(trait), [Answer("s", i, "", s.text) for i, s in enumerate(rows)])
    scored = [one.value is not None for one in found]
    assert sum(scored) / len(scored) >= 0.6
    values = [3.0 if one.value is None else one.value for one in found]
    assert roc_auc_score([s.level == "high" for s in rows], values) >= 0.8


def test_nothing_that_was_learned_is_measured_on():
    texts = {
        part: {normalised(text) for text in read_texts(builtin(NEUTRAL_TEXTS), part)}
        for part in ("train", "held_out")
    }
    assert not texts["train"] & texts["held_out"]
