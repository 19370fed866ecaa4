"""Originality by infrequency: exact on made-up pools."""

import json
from dataclasses import replace

import pytest

from personality_vector.data.ideas import CRITERIA
from personality_vector.errors import DataError
from personality_vector.judges.infrequency import Infrequency, InfrequencyJudge
from personality_vector.subject.protocols import Answer, Place, rated
from personality_vector.subject.thoughts import Said

ORIGINALITY = CRITERIA["originality"]
TRAITS = ("originality", "elaboration")
COMMON, MIDDLING, RARE = "a door stop", "a paper weight", "the moon of a puppet theatre"


def answers(*replies, item="uses-01", **where):
    place = Place("creativity", "base", 0.0, 0)._replace(**where)
    return [
        Answer(item, sample, "Uses?", reply, TRAITS, place=place)
        for sample, reply in enumerate(replies)
    ]


def scores(judge, asked):
    return [one.value for one in rated(judge, ORIGINALITY, asked)]


def shown(*asked):
    return Infrequency().among([(one, TRAITS) for one in asked])


def test_rare_ideas_rank_above_common_ones_exactly():
    """Of ten answers seven say one thing, two another and one a third: 1 - 6/9, 1 - 1/9, 1."""
    asked = answers(*[COMMON] * 7, *[MIDDLING] * 2, RARE)
    found = scores(shown(*asked), asked)
    assert found == [pytest.approx(value) for value in [3 / 9] * 7 + [8 / 9] * 2 + [1.0]]


def test_an_answer_is_the_mean_of_its_ideas_in_any_order_and_each_once():
    one = answers(f"1. {COMMON}\n2. {RARE}", COMMON, f"- {COMMON}s\n- {MIDDLING}", RARE)
    again = answers(f"* {RARE}\n* {COMMON}\n* {COMMON.upper()}!", COMMON, MIDDLING, RARE)
    assert scores(shown(*one), one)[0] == pytest.approx(1 - (2 / 3 + 1 / 3) / 2)
    assert scores(shown(*again), again)[0] == pytest.approx(1 - (1 / 3 + 1 / 3) / 2)


def test_an_answer_is_not_compared_with_itself_nor_with_those_to_other_items():
    asked = [*answers(COMMON, RARE), *answers(RARE, RARE, item="uses-02")]
    assert scores(shown(*asked), asked) == [1.0, 1.0, 0.0, 0.0]
    alone = answers(RARE)
    [score] = rated(shown(*alone), ORIGINALITY, alone)
    assert (score.value, score.reason) == (None, "there is no other answer to uses-01")


def test_the_base_counts_once_however_many_arms_begin_with_it():
    asked = [*answers(COMMON), *answers(COMMON, strength=1.0, intervention="w"), *answers(RARE)]
    asked = [replace(one, sample=n) for n, one in enumerate(asked)]
    twice = [*asked, replace(asked[0], place=Place("creativity", "w", 0.0, 0))]
    assert shown(*asked).pool == shown(*twice).pool
    assert shown(*asked).identity() == shown(*twice).identity() != shown(*asked[1:]).identity()
    assert scores(shown(*twice), asked) == [0.5, 0.5, 1.0]


def test_ideas_are_the_same_from_the_overlap_on():
    asked = answers("cork door stop", "cork door wedge")  # two words of four
    for overlap, expected in ((0.5, 0.0), (0.51, 1.0)):
        judge = replace(Infrequency(overlap), pool=shown(*asked).pool)
        assert scores(judge, asked) == [expected, expected]


def test_what_has_no_idea_is_unscored_and_in_no_pool():
    asked = answers(COMMON, "", "1.\n2.", MIDDLING, Said("", "Hm", is_finished=False).text)
    found = rated(shown(*asked), ORIGINALITY, asked)
    assert [score.value for score in found] == [1.0, None, None, 1.0, None]
    assert found[1].reason == "it holds no idea"


@pytest.fixture
def pool(tmp_path):
    """Return ``pool(*rows)``: the judge of a file with these rows."""

    def write(*rows):
        file = tmp_path / "pool.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return InfrequencyJudge(pool=file).open()

    return write


def test_a_pool_of_others_counts_whole_and_needs_no_run(pool):
    judge = pool(*({"item": "uses-01", "text": text} for text in [COMMON] * 3 + [MIDDLING]))
    asked = [*answers(COMMON, MIDDLING, RARE), *answers(RARE, item="uses-09")]
    assert not judge.compares_all
    assert judge.among([(one, TRAITS) for one in asked]) is judge
    assert scores(judge, asked) == [0.25, 0.75, 1.0, None]
    other = pool({"item": "uses-01", "text": COMMON})
    assert other.identity() != judge.identity()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"item": "uses-01"}], r"pool\.jsonl.* an answer of a pool has item and text"),
        ([{"item": 3, "text": "x"}], "an answer of a pool has item and text"),
        ([], "has no answers; a row is {item, text}|no rows|empty"),
    ],
)
def test_a_wrong_pool_is_refused(pool, rows, says):
    with pytest.raises(DataError, match=says):
        pool(*rows)


def test_it_rates_originality_alone_and_only_what_it_was_shown():
    with pytest.raises(DataError, match="rates answers for originality, and not for elaboration"):
        rated(Infrequency(), CRITERIA["elaboration"], [])
    assert rated(Infrequency(), ORIGINALITY, []) == []
    with pytest.raises(DataError, match="show it the answers of a run, or give it a pool"):
        rated(Infrequency(), ORIGINALITY, answers(COMMON))
