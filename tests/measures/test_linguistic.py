"""The linguistic measure: what it counts of replies, and which replies it cannot count."""

from pathlib import Path
from statistics import fmean

import pytest

from personality_vector.errors import DataError
from personality_vector.measures.linguistic import LinguisticSpec
from personality_vector.study.recipe import EvalRecipe
from personality_vector.subject import Reading
from personality_vector.traits import BIG_FIVE

OUTGOING = "We love our friends, and we met wonderful people at the party together."
ALONE = "Maybe the lamp is not in a drawer. Perhaps nobody has seen it, and possibly it broke."
GERMAN = "Der Bus kommt heute zehn Minuten zu spät, und ich warte auf dich."
INSTRUMENT = "builtin:eval/instruments/self_description.yaml"


def found(parrot, *texts, **options):
    spec = LinguisticSpec.parse(options, origin="r.yaml", folder=Path())
    return spec.open().collect(parrot(*texts), 0)


def by_name(findings):
    return {(one.measure, one.trait): one for one in findings.readings}


def test_its_numbers_are_those_of_the_words(parrot):
    readings = by_name(found(parrot, "I like tea. Do I? I do not know why, honestly!"))
    assert readings["linguistic.words", ""].value == 11
    assert readings["linguistic.words_per_sentence", ""].value == (3 + 6) / 2
    assert readings["linguistic.i", ""].value == pytest.approx(100 * 3 / 11)
    assert readings["linguistic.negations", ""].value == pytest.approx(100 / 11)
    assert readings["linguistic.long_words", ""].value == pytest.approx(100 / 11)
    too_short = Reading("linguistic.type_token", None, n=0, unscored=1, unit="ratio")
    assert readings["linguistic.type_token", ""] == too_short
    assert {trait for name, trait in readings if name == "linguistic"} == set(BIG_FIVE)
    assert readings["linguistic", "openness"].unit == "sd"


def test_an_index_points_to_the_pole(parrot):
    high, low = (by_name(found(parrot, text)) for text in (OUTGOING, ALONE))
    assert high["linguistic", "extraversion"].value > 0.5
    assert low["linguistic", "extraversion"].value < -0.5


def test_the_type_token_ratio_does_not_depend_on_length(parrot):
    cycle = [f"word{n % 25}" for n in range(400)]
    short, long = (by_name(found(parrot, " ".join(cycle[:end]))) for end in (60, 400))
    name = ("linguistic.type_token", "")
    assert short[name].value == pytest.approx(long[name].value) == 0.5
    assert short["linguistic.words", ""].value < long["linguistic.words", ""].value


def test_what_cannot_be_read_is_unscored_and_changes_no_number(parrot):
    said = (OUTGOING, "", "<think>We love", GERMAN, "...", ALONE, ALONE, "")
    readings = by_name(found(parrot, *said, instrument=INSTRUMENT))
    alone = [by_name(found(parrot, text))["linguistic.we", ""].value for text in (OUTGOING, ALONE)]
    we = readings["linguistic.we", ""]
    assert (we.n, we.unscored) == (3, 5)
    assert we.value == pytest.approx((alone[0] + 2 * alone[1]) / 3)
    assert we.low < we.value < we.high


def test_numbers_are_means_over_questions_and_the_observations_are_theirs(parrot):
    options = {"generation": {"samples": 2}, "instrument": INSTRUMENT}
    findings = found(parrot, OUTGOING, ALONE, GERMAN, **options)
    reading = by_name(findings)["linguistic", "extraversion"]
    seen = [one.value for one in findings.observations if one[:2] == ("linguistic", "extraversion")]
    assert (len(seen), reading.n + reading.unscored) == (6, 16)
    assert reading.value == pytest.approx(fmean(seen))


def test_replies_to_a_single_question_give_the_interval(parrot):
    one = by_name(found(parrot, OUTGOING))["linguistic.words", ""]
    assert (one.low, one.high) == (None, None)
    many = found(parrot, OUTGOING, generation={"samples": 4})
    words = by_name(many)["linguistic.words", ""]
    assert words.low == words.value == words.high == 13


@pytest.mark.parametrize(
    ("dic", "traits", "says"),
    [
        ("%\n1 words\n%\nhappy 1\n", None, "a category cannot be called words; rename it"),
        (
            "%\n1 posemo\n%\nhappy 1\n",
            ["openness"],
            "no index of openness; known are agreeableness",
        ),
        ("%\n1 mine\n%\nhappy 1\n", ["openness"], "no index of openness; it has none"),
        (None, ["humour"], "linguistic: there is no index of humour; known are"),
    ],
)
def test_a_dictionary_that_does_not_fit_is_refused(tmp_path, dic, traits, says):
    options = {} if traits is None else {"traits": traits}
    if dic is not None:
        (tmp_path / "mine.dic").write_text(dic)
        options["dictionary"] = "mine.dic"
    with pytest.raises(DataError, match=says):
        LinguisticSpec.parse(options, origin="r.yaml", folder=tmp_path).open()


def test_a_dictionary_without_an_index_still_counts(tmp_path, parrot):
    (tmp_path / "mine.dic").write_text("%\n1 mine\n%\nlove 1\n")
    options = {"dictionary": str(tmp_path / "mine.dic")}
    readings = by_name(found(parrot, GERMAN + " love", **options))
    assert readings["linguistic.mine", ""].value == pytest.approx(100 / 14)
    assert not [trait for _, trait in readings if trait]


def test_it_keeps_its_own_question_beside_an_interview():
    interview = {"interview": {"traits": ["openness"], "question": "Who?"}}
    data = {"model": "builtin:demo", "measures": [interview, "linguistic", "guards"]}
    _, linguistic, guards = EvalRecipe.parse(data, origin="r.yaml", folder=Path()).measures
    assert guards.question == "Who?"
    assert linguistic.question == LinguisticSpec().question
