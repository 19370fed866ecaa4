"""What judges' scores say: shifts, paired by answer, and the agreement of judges."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from personality_vector.numeric.statistics import of_share
from personality_vector.study.scores import (
    agreement,
    by_turn,
    choices,
    flatness,
    shifts_of_scores,
)

ITEMS, SEEDS = 12, 3


@pytest.fixture
def answers():
    """Two judges; the edit moves every score by 1 and item 0 by -2; one answer is unscored."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(SEEDS):
        for item in range(ITEMS):
            usual = rng.normal(3, 0.3)
            for label, strength in (("base", 0.0), ("weights", 1.0)):
                moved = 0.0 if label == "base" else (-2.0 if item == 0 else 1.0)
                score = usual + moved
                place = (label, strength, seed, "interview", f"q{item}", 0, "extraversion")
                rows.append((*place, "one", score))
                rows.append((*place, "other", 50 + 20 * (score - 3)))
    columns = [*("intervention", "strength", "seed", "measure", "item", "sample", "trait")]
    frame = pd.DataFrame(rows, columns=[*columns, "judge", "score"])
    is_silent = (frame["judge"] == "one") & (frame["item"] == "q1") & (frame["seed"] == 0)
    frame.loc[is_silent, "score"] = np.nan
    return frame.assign(reason="")


SCALES = {"one": [1.0, 5.0], "other": [10.0, 90.0]}


def test_a_shift_is_the_mean_of_paired_differences(answers):
    (row,) = shifts_of_scores(answers).query("judge == 'one'").to_dict("records")
    assert row["n"] == ITEMS * SEEDS - 1
    expected = (ITEMS * SEEDS - SEEDS - 1 - 2 * SEEDS) / row["n"]
    assert row["shift"] == pytest.approx(expected)
    assert row["low"] < row["shift"] < row["high"]
    assert row["wrong_way"] == pytest.approx(1 / ITEMS)


def test_noise_that_an_edit_does_not_touch_widens_no_interval(answers):
    even = answers[answers["item"] != "q0"]
    (row,) = shifts_of_scores(even).query("judge == 'other'").to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((20, 20))


def test_a_shift_is_read_at_every_turn(answers):
    """At turn 2 the edit does half; what is no conversation is left out."""
    later = answers.assign(item=answers["item"] + " at turn 2")
    is_edited = later["intervention"] != "base"
    later.loc[is_edited, "score"] = (later["score"] + 3) / 2
    alone = answers.assign(measure="alone")
    found = by_turn(pd.concat([answers, later, alone])).query("judge == 'other'")
    first, second = shifts_of_scores(answers), shifts_of_scores(later)
    assert found["turn"].tolist() == [1, 2]
    for turn, whole in ((1, first), (2, second)):
        (row,) = found[found["turn"] == turn].to_dict("records")
        (expected,) = whole.query("judge == 'other'").to_dict("records")
        assert row == expected | {"turn": turn}
    assert by_turn(answers).empty


def test_judges_that_differ_by_scale_alone_agree(answers):
    (row,) = agreement(answers, SCALES).to_dict("records")
    assert (row["trait"], row["judge"], row["other"]) == ("extraversion", "one", "other")
    assert row["n"] == 2 * ITEMS * SEEDS - 2
    assert (row["spearman"], row["pearson"], row["alpha"]) == pytest.approx((1, 1, 1))


def test_agreement_is_over_what_both_scored(answers):
    rng = np.random.default_rng(3)
    noisy = answers.assign(score=answers["score"] + rng.normal(0, 1, len(answers)))
    (row,) = agreement(noisy, SCALES).to_dict("records")
    keys = ["intervention", "seed", "item"]
    one, other = (noisy[noisy["judge"] == who].set_index(keys)["score"] for who in ("one", "other"))
    both = one.notna()
    expected = stats.spearmanr(one[both], other.reindex(one.index)[both])
    assert row["spearman"] == pytest.approx(expected.statistic)
    assert row["ci_low"] < row["pearson"] < row["ci_high"]


JUDGES = {name: {"scale": scale} for name, scale in SCALES.items()}


def test_a_judge_prefers_the_reply_that_it_gives_more(answers):
    """Item 0 lost at every seed, and one answer is unscored; item 2 is made a tie."""
    keys = ["seed", "item", "judge"]
    of_base = answers[answers["intervention"] == "base"].set_index(keys)["score"]
    same = answers.assign(
        score=[
            of_base[tuple(row[keys])] if row["item"] == "q2" else row["score"]
            for _, row in answers.iterrows()
        ]
    )
    one, other = choices(same, JUDGES).to_dict("records")
    assert (one["judge"], other["judge"]) == ("one", "other")
    assert (one["n"], one["tied"], one["unscored"]) == (ITEMS * SEEDS - SEEDS - 1, SEEDS, 1)
    assert (other["n"], other["tied"], other["unscored"]) == (ITEMS * SEEDS - SEEDS, SEEDS, 0)
    for row in (one, other):
        assert row["prefers"] == pytest.approx((row["n"] - SEEDS) / row["n"])
        assert (row["low"], row["high"]) == of_share(row["prefers"], row["n"])
        assert np.isnan(row["position_bias"])


def test_the_sign_of_a_comparison_is_the_choice_and_a_base_without_one_is_no_loss(answers):
    """People give no comparison of the base with itself."""
    own = answers[(answers["intervention"] != "base") & (answers["judge"] == "other")]
    said = "+0.8500 as the first, +0.1500 as the second"
    scores = np.where(own["item"] == "q0", -1.0, 0.5)
    compared = own.assign(judge="pairs", score=scores, reason=said)
    (row,) = choices(compared, {"pairs": {"scale": [-1.0, 1.0]}}).to_dict("records")
    assert (row["n"], row["prefers"]) == (ITEMS * SEEDS, pytest.approx(1 - 1 / ITEMS))
    assert (row["tied"], row["unscored"], row["position_bias"]) == (0, 0, pytest.approx(0.7))


def test_a_judge_that_always_says_seven_is_flat(answers):
    own = answers[answers["judge"] == "one"].assign(judge="digits")
    sevens = own.assign(score=np.where(own["item"] == "q1", 200 / 9, 700 / 9))
    judges = {"digits": {"scale": [0.0, 100.0], "quality": []}}
    (row,) = flatness(sevens, judges).to_dict("records")
    assert row["n"] == 2 * ITEMS * SEEDS
    assert row["fullest_tenth"] == pytest.approx(1 - 1 / ITEMS)
    assert row["mode"] == pytest.approx(75)
    assert row["sd"] == pytest.approx(sevens["score"].std(ddof=0))
    (silent,) = flatness(own, {"digits": {"scale": [1.0, 5.0], "quality": []}}).to_dict("records")
    assert silent["n"] == 2 * ITEMS * SEEDS - 2


def test_a_base_that_nobody_compares_makes_no_judge_flat(answers):
    own = answers[answers["judge"] == "one"].assign(judge="pairs")
    own["score"] = np.where(own["intervention"] == "base", 0.0, own["score"] / 10)
    (row,) = flatness(own, {"pairs": {"scale": [-1.0, 1.0]}}).to_dict("records")
    assert row["n"] == ITEMS * SEEDS - 1
