"""People's ratings of stored answers, from the table that they filled in."""

import hashlib

import pytest

from personality_vector.errors import DataError, RecipeError
from personality_vector.judges.humans import HumansJudge
from personality_vector.subject.protocols import Answer, Judge, Place

AT = {"base": Place("interview", "base", 0.0, 0), "up": Place("interview", "up", 1.5, 0)}
ANSWERS = [
    Answer(item, 0, f"{item}?", f"{name} {item}, well.", place=place)
    for name, place in AT.items()
    for item in ("q1", "q2")
]
TRAITS = ("extraversion",)
KNOWN = [(answer, TRAITS) for answer in ANSWERS]


@pytest.fixture
def ratings(tmp_path):
    """Return ``ratings(text, **options)``: the judge of a table."""

    def make(text, **options):
        file = tmp_path / "ratings.csv"
        file.write_text(text, encoding="utf-8-sig")
        return HumansJudge(ratings=file, **options).open()

    return make


def test_ratings_are_matched_and_averaged_over_raters(ratings, high):
    judge = ratings(
        "item,sample,trait,score,intervention,strength,rater\n"
        "q1,0,extraversion,2,base,0,ann\n"
        "q1,0,extraversion,2,base,0,ann\n"
        "q1,0,extraversion,5,base,0,bob\n"
        'q1,0,extraversion,"4,5",up,1.50,ann\n'
        "q2,0,extraversion,,up,1.5,ann\n"
    )
    assert isinstance(judge, Judge)
    assert (judge.name, judge.scale) == ("humans", (1, 5))
    judge.among(KNOWN)
    scores = judge(high, ANSWERS)
    assert [score.value for score in scores] == [3.5, None, 4.5, None]
    assert scores[1].reason == "no human rated it"


def test_a_reply_says_which_answer_it_is(ratings, high):
    replies = [ANSWERS[0].reply, hashlib.sha256(ANSWERS[3].reply.encode()).hexdigest()]
    judge = ratings(f'reply,trait,score\n"{replies[0]} \r\n",extraversion,1\n{replies[1]},,5\n')
    judge.among(KNOWN)
    assert [score.value for score in judge(high, ANSWERS)] == [1, None, None, 5]


def test_the_base_is_the_base_under_any_label(ratings, high):
    judge = ratings("item,sample,trait,score,intervention,strength\nq1,0,extraversion,2,up,0\n")
    judge.among(KNOWN)
    assert judge(high, ANSWERS)[0].value == 2


def test_a_formula_of_a_spreadsheet_and_thoughts_are_the_same_reply(ratings, high):
    spoken = Answer("q1", 0, "q1?", "=1+1 is 2", place=AT["base"])
    raw = Answer("q1", 0, "q1?", "<think>\nhm\n</think>\n\n=1+1 is 2", place=AT["base"])
    judge = ratings("item,reply,trait,score\nq1,'=1+1 is 2,extraversion,4\n")
    judge.among([(raw, TRAITS)])
    assert judge(high, [spoken])[0].value == 4


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("q9,0,extraversion,2,base,0,", "there is no answer with item q9; known are q1, q2"),
        ("q1,3,extraversion,2,base,0,", "there is no answer with sample 3; known are 0"),
        ("q1,0,openness,2,base,0,", "no answer with trait openness; known are extraversion"),
        ("q1,0,extraversion,2,down,1,", "no answer with intervention down; known are base, up"),
        ("q1,0,extraversion,2,up,2,", "there is no answer with strength 2; known are 1.5"),
        ("q1,0,extraversion,2,up,1.5,Other", "'Other' is not that of this answer, which is 'up q1"),
        ("q1,0,extraversion,2,,,", "could be the rating of 2 answers; add intervention or streng"),
    ],
)
def test_a_rating_of_an_unknown_answer_is_refused_by_row(ratings, row, says):
    head = "item,sample,trait,score,intervention,strength,reply\n"
    judge = ratings(f"{head}q1,0,extraversion,2,base,0,\n{row}\n")
    with pytest.raises(DataError, match=says) as caught:
        judge.among(KNOWN)
    assert "ratings.csv line 3: " in str(caught.value)


def test_a_trait_may_be_left_out_where_there_is_one(ratings):
    judge = ratings("item,sample,score,strength\nq1,0,2,0\n")
    judge.among(KNOWN)
    with pytest.raises(DataError, match="trait is missing; write one of extraversion, openness"):
        judge.among([(answer, (*TRAITS, "openness")) for answer in ANSWERS])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("item,score\nq1,7\n", r"line 2: score 7 lies outside of the scale from 1 to 5; correct"),
        ("item,score\nq1,high\n", "line 2: score should be a number, not 'high'"),
        ("item,score\nq1,nan\n", "line 2: score should be a number"),
        ("item,sample,score\nq1,one,2\n", "line 2: sample should be a number, not 'one'"),
        ("item,mark\nq1,2\n", r"line 2: has no column score for the rating; this row has the keys"),
        ("item,score\nq1,\n", "holds no rating; write a number from 1 to 5 into the column score"),
        ("item;score\nq1;2\n", "its columns are separated by ';'"),
        (
            "item,judge,score\nq1,classifier,2\n",
            "this is the score of classifier; write those of people into a column rating",
        ),
    ],
)
def test_a_table_that_is_none_of_ratings_is_refused(ratings, text, says):
    with pytest.raises(DataError, match=says):
        ratings(text)


def test_a_column_of_ones_own_stands_beside_the_scores_of_judges(ratings, high):
    judge = ratings(
        "item,sample,strength,judge,trait,score,rating\n"
        "q1,0,0.0,classifier,extraversion,3.2,4\n"
        "q1,0,1.5,classifier,extraversion,3.2,\n"
    )
    judge.among(KNOWN)
    assert [score.value for score in judge(high, ANSWERS)] == [4, None, None, None]


def test_its_identity_is_the_file_and_the_scale(ratings):
    first = ratings("item,score\nq1,2\n").identity()
    assert ratings("item,score\nq1,2\n", name="us").identity() == first
    assert ratings("item,score\nq1,2\n", scale=(0.0, 9.0)).identity() != first
    assert ratings("item,score\nq1,3\n").identity() != first
    with pytest.raises((RecipeError, ValueError), match="give its lower end first"):
        ratings("item,score\nq1,3\n", scale=(5.0, 1.0))
