"""Laws of the filter: pairs by id, thresholds, counts that add up, and what it says when empty."""

import random
import statistics
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from personality_vector.elicitation.filtering import RULES, Cut, filtered, require_kept
from personality_vector.elicitation.recipe import ThresholdSpec
from personality_vector.elicitation.rollouts import Pair, Rollout, paired
from personality_vector.errors import DataError

FIXED, ADAPTIVE = ThresholdSpec(), ThresholdSpec(adaptive=True)
ALONE = ThresholdSpec(paired=False)
RATINGS = st.none() | st.integers(0, 100).map(float)
SIDES = st.tuples(RATINGS, RATINGS, st.sampled_from(["I talk.", ""]))
PAIRS = st.lists(st.tuples(SIDES, SIDES), max_size=12)


def rollout(number, side, trait=None, coherence=None, reply="I talk."):
    return Rollout(
        id=f"pair{number}",
        side=side,
        system=f"You are {side}.",
        question="Who are you?",
        reply=reply,
        trait=trait,
        coherence=coherence,
    )


def rollouts(pairs):
    return [
        rollout(number, side, *ratings)
        for number, pair in enumerate(pairs)
        for side, ratings in zip(("positive", "negative"), pair, strict=True)
    ]


def kept(rows):
    return {row.id for row in rows if row.kept}


def clear(count, positive=90.0, negative=10.0):
    return rollouts([((positive, 80.0, "a"), (negative, 80.0, "b"))] * count)


def test_a_reply_that_ends_inside_a_thought_is_dropped_by_that_name():
    both = (90.0, 80.0), (10.0, 80.0)
    said = [("<think>\nhm\n</think>\n\nI talk.", "I rest."), ("I talk.", "<think>\nhm")]
    rows = rollouts(
        [[(*rated, text) for rated, text in zip(both, texts, strict=True)] for texts in said]
    )
    rows, report = filtered(rows, FIXED)
    assert kept(rows) == {"pair0"}
    assert report.dropped["unfinished_thought"] == 1
    assert rows[0].chat[-1]["content"] == "I talk."


@settings(max_examples=50)
@given(PAIRS)
def test_a_pair_is_kept_iff_the_paper_keeps_it(pairs):
    rows, report = filtered(rollouts(pairs), FIXED)
    expected = {
        f"pair{number}"
        for number, ((up, one, said), (down, other, replied)) in enumerate(pairs)
        if said
        and replied
        and None not in (up, one, down, other)
        and up >= 50
        and down < 50
        and one >= 50
        and other >= 50
    }
    assert kept(rows) == expected
    assert report.kept == len(expected)


@given(PAIRS, st.sampled_from([FIXED, ADAPTIVE]), st.booleans())
def test_the_counts_add_up_and_every_row_says_its_rule(pairs, thresholds, judged):
    rows, report = filtered(rollouts(pairs), thresholds, judged=judged)
    assert report.total == len(pairs) == report.kept + sum(report.dropped.values())
    assert tuple(report.dropped) == RULES
    assert len(rows) == 2 * len(pairs)
    for rule, count in report.dropped.items():
        assert sum(row.rule == rule for row in rows) == 2 * count
    assert all(row.kept == (row.rule == "") for row in rows)


@given(PAIRS)
def test_replies_alone_are_kept_where_both_of_a_pair_would_be(pairs):
    together, report = filtered(rollouts(pairs), FIXED)
    alone, counted = filtered(rollouts(pairs), ALONE)
    by_id = Counter(row.id for row in alone if row.kept)
    assert kept(together) == {name for name, count in by_id.items() if count == 2}
    assert counted.total == 2 * report.total == counted.kept + sum(counted.dropped.values())
    assert counted.kept == sum(by_id.values())


@given(PAIRS)
def test_what_the_judge_cannot_rate_is_kept_if_asked(pairs):
    for paired_ in (True, False):
        strict, lenient = (
            filtered(rollouts(pairs), ThresholdSpec(paired=paired_, unscored=what))
            for what in ("drop", "keep")
        )
        assert kept(strict[0]) <= kept(lenient[0])
        assert lenient[1].dropped["unscored"] == 0


@given(PAIRS, st.integers(0, 100), st.integers(0, 100))
def test_a_higher_bar_for_coherence_keeps_no_more(pairs, one, other):
    low, high = sorted((float(one), float(other)))
    loose, strict = (
        kept(filtered(rollouts(pairs), ThresholdSpec(coherence=bar))[0]) for bar in (low, high)
    )
    assert strict <= loose


@given(PAIRS, st.integers(0, 50), st.integers(50, 100))
def test_a_wider_gap_between_the_sides_keeps_no_more(pairs, down, up):
    narrow, wide = Cut(50.0, 50.0, 50.0), Cut(float(up), float(down), 50.0)
    for row in rollouts(pairs):
        assert wide.rule_against(row) or not narrow.rule_against(row)


@given(PAIRS, st.integers(0, 5))
def test_the_order_of_rows_does_not_matter(pairs, seed):
    rows = rollouts(pairs)
    shuffled = random.Random(seed).sample(rows, len(rows))
    (one, first), (other, second) = filtered(rows, ADAPTIVE), filtered(shuffled, ADAPTIVE)
    assert first == second
    assert sorted(one, key=repr) == sorted(other, key=repr)


@settings(max_examples=50)
@given(PAIRS)
def test_nobody_judging_drops_only_what_is_empty(pairs):
    rows, report = filtered(rollouts(pairs), FIXED, judged=False)
    assert kept(rows) == {f"pair{i}" for i, (up, down) in enumerate(pairs) if up[2] and down[2]}
    assert report.cut is None
    assert {rule for rule, count in report.dropped.items() if count} <= {"empty"}


@pytest.mark.parametrize(
    ("positive", "negative", "rule"),
    [
        ((50.0, 50.0), (49.9, 50.0), ""),
        ((49.9, 50.0), (49.9, 50.0), "positive_trait"),
        ((50.0, 50.0), (50.0, 50.0), "negative_trait"),
        ((50.0, 49.9), (49.9, 50.0), "coherence"),
        ((50.0, 50.0), (49.9, 49.9), "coherence"),
        ((None, 50.0), (49.9, 50.0), "unscored"),
        ((50.0, 50.0), (49.9, None), "unscored"),
        ((None, 50.0), (99.0, 0.0), "unscored"),
        ((10.0, 10.0), (90.0, 10.0), "positive_trait"),
    ],
)
def test_the_edges_of_the_fixed_thresholds(positive, negative, rule):
    pair = [rollout(0, "positive", *positive), rollout(0, "negative", *negative)]
    assert {row.rule for row in filtered(pair, FIXED)[0]} == {rule}


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=15))
def test_adaptive_thresholds_are_those_of_billy(values):
    """Restated from the released code: two branches on the median of the negatives."""
    rows = rollouts([((float(up), 60.0, "a"), (float(down), 60.0, "b")) for up, down in values])
    upper = statistics.median([up for up, _ in values])
    lower = statistics.median([down for _, down in values])
    if lower > 70:
        expected = [up >= max(upper, 80) and down <= lower for up, down in values]
    else:
        expected = [up >= max(upper, 50) and down <= min(lower, 50) for up, down in values]
    found = kept(filtered(rows, ADAPTIVE)[0])
    assert found == {f"pair{number}" for number, keep in enumerate(expected) if keep}


def test_an_unscored_reply_moves_no_median():
    unscored = Pair(rollout(9, "positive"), rollout(9, "negative"))
    pairs = [*paired(clear(3, positive=90.0, negative=75.0)), unscored]
    assert Cut.of(ADAPTIVE, pairs) == Cut.of(ADAPTIVE, pairs[:3]) == Cut(90.0, 75.0, 50.0, True)
    assert Cut.of(ADAPTIVE, pairs[3:]) == Cut.of(FIXED, [])


def test_replies_that_do_not_pair_up_are_refused():
    with pytest.raises(DataError, match="only one side has the replies pair0; a pair needs both"):
        filtered([rollout(0, "positive")], FIXED)
    with pytest.raises(DataError, match="two positive replies have the id pair0"):
        filtered([*clear(1), rollout(0, "positive")], FIXED)


def test_what_filters_to_nothing_says_how_many_each_rule_dropped():
    rows = rollouts(
        [((90.0, 80.0, "a"), (60.0, 80.0, "b"))] * 3
        + [((40.0, 80.0, "a"), (20.0, 80.0, "b"))] * 2
        + [((90.0, 80.0, ""), (20.0, 80.0, "b")), ((None, 80.0, "a"), (20.0, 80.0, "b"))]
    )
    rows, report = filtered(rows, FIXED)
    with pytest.raises(DataError) as caught:
        require_kept(report, rows, "extraversion:high")
    said = str(caught.value)
    assert "extraversion:high: no pair is left" in said
    for part in ("0 of 7", "3 by negative_trait", "2 by positive_trait", "1 by empty"):
        assert part in said
    assert "1 by unscored" in said
    assert "negative trait below 50" in said
    assert said.endswith("make the negative instructions clearer, or raise thresholds.trait")
    rows, report = filtered(clear(1), FIXED)
    require_kept(report, rows, "x")


def test_a_side_of_which_nothing_is_left_is_named():
    rows, report = filtered(clear(2, positive=10.0), ALONE)
    with pytest.raises(DataError, match=r"no positive reply is left .*2 of 4 replies kept.*lower"):
        require_kept(report, rows, "stoic")


def test_a_reply_that_was_cut_off_ends_with_its_last_whole_sentence():
    cut = rollout(0, "positive", reply='I talk. "Do you?" And then I wa').model_copy(
        update={"is_whole": False}
    )
    assert cut.sentences == 'I talk. "Do you?"'
    assert cut.model_copy(update={"is_whole": True}).sentences == cut.reply
    rows = [cut.model_copy(update={"reply": "And then I wa"}), rollout(0, "negative")]
    assert {row.rule for row in filtered(rows, FIXED, judged=False, by_sentence=True)[0]} == {
        "no_whole_sentence"
    }
    assert {row.rule for row in filtered(rows, FIXED, judged=False)[0]} == {""}
