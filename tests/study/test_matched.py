"""Matched effect on curves that are known in closed form."""

import math

import pytest

from personality_vector.study.curves import (
    DosePoint,
    beside,
    interpolated_strength,
    matched_strength,
    nearest_strength,
    reach,
    rising,
    targets_of,
)


def saturating(strength):
    return 1.0 - math.exp(-strength)


def turning(strength):
    return strength * (2.0 - strength)  # rises to 1 at strength 1, then turns back


def linear(strength):
    return 0.5 * strength


CURVES = {
    "linear": (linear, lambda target: 2.0 * target),
    "saturating": (saturating, lambda target: -math.log1p(-target)),
    "turning back": (turning, lambda target: 1.0 - math.sqrt(1.0 - target)),
    "falling": (lambda strength: -linear(strength), lambda target: -2.0 * target),
}


def measured(shift, strengths):
    return [DosePoint(strength, shift(strength)) for strength in strengths]


@pytest.mark.parametrize(("shift", "inverse"), CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("target", [0.05, 0.2, 0.45])
def test_the_matched_strength_is_where_the_curve_has_the_target(shift, inverse, target):
    grid = [-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0]
    # Exact inverses lie within a hundredth of the bracket, which is half a unit wide.
    found = matched_strength(measured(shift, grid), target, shift)
    assert found == pytest.approx(inverse(target), abs=0.5 * 0.01)


def test_a_target_that_was_measured_costs_no_further_measurement():
    def refuse(strength):
        pytest.fail(f"measured again at {strength}")

    curve = measured(linear, [1.0, 2.0])
    assert matched_strength(curve, 0.5, refuse) == 1.0
    assert matched_strength(curve, 1.0, refuse) == 2.0


def test_measurements_are_few_and_within_the_bracket():
    asked = []

    def shift(strength):
        asked.append(strength)
        return saturating(strength)

    matched_strength(measured(saturating, [0.5, 1.0, 3.0]), 0.8, shift)
    assert all(1.0 < strength < 3.0 for strength in asked)
    assert len(asked) <= 8


@pytest.mark.parametrize("shift", [saturating, turning, linear], ids=lambda f: f.__name__)
def test_what_no_strength_reaches_is_none(shift):
    curve = measured(shift, [0.5, 1.0, 1.5])
    assert matched_strength(curve, 1.01 * reach(curve), shift) is None


def test_an_intervention_without_effect_reaches_nothing():
    flat = [DosePoint(strength, 0.0) for strength in (-1.0, 1.0, 2.0)]
    assert reach(flat) == reach([]) == 0.0
    assert matched_strength(flat, 0.1, lambda _: 0.0) is None
    assert nearest_strength(flat, 0.1) is None


def test_only_the_part_before_the_turn_counts():
    curve = [*measured(turning, [0.5, 1.0, 1.5]), DosePoint(5.0, 9.0)]
    assert rising(curve) == [DosePoint(0.0, 0.0), DosePoint(0.5, 0.75), DosePoint(1.0, 1.0)]
    assert reach(curve) == 1.0


def test_the_side_that_reaches_further_is_taken_in_any_order():
    curve = [DosePoint(1.0, 0.2), DosePoint(-1.0, 0.3), DosePoint(2.0, 0.1), DosePoint(-0.5, 0.1)]
    expected = [DosePoint(0.0, 0.0), DosePoint(-0.5, 0.1), DosePoint(-1.0, 0.3)]
    assert rising(curve) == rising(curve[::-1]) == expected


@pytest.mark.parametrize(
    ("target", "expected"), [(0.1, 1.0), (0.25, 1.0), (0.3, 2.0), (0.55, 3.0), (1.1, 3.0)]
)
def test_the_nearest_step_is_taken_below_twice_the_target(target, expected):
    steps = [DosePoint(1.0, 0.19), DosePoint(2.0, 0.4), DosePoint(3.0, 0.6)]
    assert nearest_strength(steps, target) == expected


def test_no_step_is_near_a_target_beyond_twice_the_reach():
    assert nearest_strength([DosePoint(1.0, 0.4)], 0.81) is None


def test_no_step_is_near_a_target_below_half_of_the_first():
    assert nearest_strength([DosePoint(1.0, 0.4)], 0.2) is None


def test_what_is_jumped_over_is_none():
    """As by neurons, of which any strength silences those of the opposite pole."""

    def jump(strength):
        return 0.0 if strength == 0 else 0.5 + 0.1 * strength

    curve = measured(jump, [0.5, 1.0])
    assert matched_strength(curve, 0.2, jump) is None
    assert matched_strength(curve, 0.57, jump) == pytest.approx(0.7, abs=0.01)


def quadratic(strength):
    return 0.7 * strength**2


def beyond(strength):
    return 0.7 * strength**2 + 0.5 * strength**4  # a divergence at large strengths


@pytest.mark.parametrize("target", [0.01, 0.3, 2.0])
def test_steps_of_the_square_root_find_the_strength_of_a_quadratic_cost_at_once(target):
    asked = []

    def cost(strength):
        asked.append(strength)
        return quadratic(strength)

    found = interpolated_strength(measured(quadratic, [2.0, 4.0]), target, cost, power=2)
    assert quadratic(found) == pytest.approx(target)
    assert asked == [found]


@pytest.mark.parametrize("shift", [saturating, linear, beyond], ids=lambda f: f.__name__)
@pytest.mark.parametrize("target", [0.05, 0.2, 0.7])
def test_a_number_that_is_dear_is_near_its_target_after_four_measurements(shift, target):
    asked = []

    def counted(strength):
        asked.append(strength)
        return shift(strength)

    power = 2 if shift is beyond else 1
    found = interpolated_strength(measured(shift, [0.5, 1.5, 3.0]), target, counted, power)
    assert shift(found) == pytest.approx(target, rel=0.1)
    assert len(asked) <= 4
    assert found in asked


def test_a_dear_number_that_jumps_over_its_target_is_none():
    def jump(strength):
        return 0.0 if strength < 0.7 else 1.0

    assert interpolated_strength(measured(jump, [1.0]), 0.4, jump) is None
    assert interpolated_strength(measured(jump, [1.0]), 1.0, jump) == 1.0
    assert interpolated_strength(measured(jump, [1.0]), 1.5, jump) is None


def test_a_number_that_cannot_be_said_matches_nothing():
    assert interpolated_strength(measured(linear, [1.0]), 0.2, lambda _: None) is None


def test_a_cost_is_read_on_the_side_that_moves_the_effect():
    effect = [DosePoint(-2.0, 0.9), DosePoint(-1.0, 0.3), DosePoint(1.0, -0.4)]
    cost = [DosePoint(1.0, 7.0), DosePoint(-1.0, 0.0), DosePoint(-2.0, 2.0)]
    assert beside(effect, cost) == [DosePoint(-2.0, 2.0)]  # nothing is spent before


def test_what_is_on_top_of_another_begins_at_its_effect():
    def hybrid(strength):
        return 0.3 + linear(strength)

    curve = measured(hybrid, [0.0, 1.0, 2.0])
    assert reach(curve) == 1.3
    assert matched_strength(curve, 0.6, hybrid) == pytest.approx(0.6, abs=0.01)
    assert matched_strength(curve, 0.2, hybrid) is None  # that is less than the other does alone
    assert nearest_strength(curve, 0.25) == 0.0
    assert beside(curve, curve) == curve


def test_targets_of_a_divergence_are_equal_steps_of_its_square_root():
    roots = [math.sqrt(target) for target in targets_of([measured(quadratic, [2.0])], 4, power=2)]
    assert roots == pytest.approx([math.sqrt(2.8) * step / 4 for step in (1, 2, 3, 4)])
