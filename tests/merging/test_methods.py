"""Methods are pure functions of slices; their parameters are the options of a recipe."""

import math
from itertools import pairwise

import pytest
import torch

from personality_vector.errors import RecipeError
from personality_vector.merging.formula import drop_and_rescale
from personality_vector.merging.methods import METHODS, drop_rates, find_method
from personality_vector.numeric.random import generator_for

F64 = torch.float64
EVERY = pytest.mark.parametrize("method", METHODS)
RANDOM = [
    ("dare", {"drop_rate": 0.3}),
    ("dare", {"drop_rate": 0.8}),
    ("dare_ties", {"drop_rate": 0.6}),
    ("della", {"drop_rate": 0.5, "epsilon": 0.4}),
    ("della", {"drop_rate": 0.7, "epsilon": 0.1}),
]


def combined(name, parts, **options):
    return find_method(name).bind(options)(parts)


def numbers(*entries):
    return torch.tensor(entries, dtype=F64)


def drawn(name, *shape):
    return torch.randn(shape, generator=generator_for(0, name), dtype=F64)


# --- examples worked by hand ---


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("task_arithmetic", {}, [5.0, 0.0, -2.0, 0.0, 0.0]),
        ("task_arithmetic", {"lambda": 2.0}, [10.0, 0.0, -4.0, 0.0, 0.0]),
        ("task_arithmetic", {"lambda": -1.0}, [-5.0, 0.0, 2.0, 0.0, 0.0]),
        ("ties", {"density": 1.0}, [2.5, 0.0, -4.0, 0.0, 0.0]),
        ("ties", {"density": 1.0, "consensus": "sum"}, [5.0, 0.0, -4.0, 0.0, 0.0]),
        ("ties", {"density": 1.0, "election": "count"}, [2.5, 0.0, 0.0, 0.0, 0.0]),
        ("ties", {"density": 0.4}, [4.0, 0.0, -4.0, 0.0, 0.0]),
        ("ties", {"density": 0.4, "trim": "per_tensor", "lambda": 0.5}, [2.0, 0.0, -2.0, 0.0, 0.0]),
        ("ties", {}, [4.0, 0.0, -4.0, 0.0, 0.0]),  # of five entries the largest
        ("dare", {"drop_rate": 0.0}, [5.0, 0.0, -2.0, 0.0, 0.0]),
        ("dare_ties", {"drop_rate": 0.0}, [2.5, 0.0, -4.0, 0.0, 0.0]),
        ("dare_ties", {"drop_rate": 0.0, "consensus": "sum"}, [5.0, 0.0, -4.0, 0.0, 0.0]),
        ("dare_ties", {"drop_rate": 0.0, "election": "count"}, [2.5, 0.0, 0.0, 0.0, 0.0]),
        ("della", {"drop_rate": 0.0, "epsilon": 0.0}, [2.5, 0.0, -4.0, 0.0, 0.0]),
        (
            "della",
            {"drop_rate": 0.0, "epsilon": 0.0, "consensus": "sum", "lambda": 3.0},
            [15.0, 0.0, -12.0, 0.0, 0.0],
        ),
        ("breadcrumbs", {"beta": 0.0, "gamma": 0.0}, [5.0, 0.0, -2.0, 0.0, 0.0]),
        # Of the first [-3, 2] are left, of the second half of [2, 6, -2].
        ("breadcrumbs", {"beta": 0.4, "gamma": 0.2}, [1.0, 0.0, 2.0, 0.0, -1.0]),
    ],
)
def test_worked_examples(part, method, options, expected):
    one, two = part(1.0, [4, -3, 2, 0, 1]), part(0.5, [2, 6, -8, 0, -2])
    kept = [p.delta.clone() for p in (one, two)]
    assert combined(method, [one, two], **options).tolist() == expected
    assert all(torch.equal(a, p.delta) for a, p in zip(kept, (one, two), strict=True))


@pytest.mark.parametrize(
    ("election", "consensus", "expected"),
    [
        ("mass", "mean", [5.0, -2.5]),
        ("mass", "sum", [5.0, -5.0]),
        ("count", "mean", [-1.5, 0.0]),
        ("count", "sum", [-3.0, 0.0]),
    ],
)
@pytest.mark.parametrize("method", ["ties", "dare_ties", "della"])
def test_mass_elects_another_sign_than_count(part, method, election, consensus, expected):
    """First 5 against -1 and -2, where two are more than one; then 2 and 1 against -2 and -3."""
    parts = [part(1.0, [5, 2]), part(-1.0, [1, -1]), part(2.0, [-1, -1]), part(1.0, [0, -3])]
    whole = {
        "ties": {"density": 1.0},
        "dare_ties": {"drop_rate": 0.0},
        "della": {"drop_rate": 0.0, "epsilon": 0.0},
    }[method]
    found = combined(method, parts, election=election, consensus=consensus, **whole)
    assert found.tolist() == expected


def test_zeros_neither_vote_nor_count(part):
    parts = [part(1.0, [2, 0, 3]), part(1.0, [0, 0, -3]), part(1.0, [4, -1, 0])]
    assert combined("ties", parts, density=1.0).tolist() == [3.0, -1.0, 0.0]
    by_count = combined("ties", parts, density=1.0, election="count", consensus="sum")
    assert by_count.tolist() == [6.0, -1.0, 0.0]


# --- trimming ---


@pytest.mark.parametrize("scope", ["global", "per_tensor"])
def test_ties_trims_by_the_scope_that_it_is_given_and_breadcrumbs_by_tensor(part, scope):
    one = part(1.0, [1, 2, 3])
    combined("ties", [one], trim=scope)
    assert one.scopes == [scope]
    combined("breadcrumbs", [other := part(1.0, [1, 2, 3])])
    assert set(other.scopes) == {"per_tensor"}


@pytest.mark.parametrize(
    ("beta", "gamma", "left"),
    [
        (0.3, 0.2, range(4, 9)),
        (0.3, 0.0, range(4, 11)),
        (0.0, 0.2, range(1, 9)),
        (0.0, 0.0, range(1, 11)),
        (0.5, 0.4, range(6, 7)),
        (0.85, 0.01, ()),  # the one entry of the largest 15 % is the outlier
    ],
)
def test_breadcrumbs_leaves_out_both_ends(part, beta, gamma, left):
    signed = [(-1) ** n * n for n in (7, 3, 10, 1, 5, 2, 9, 4, 8, 6)]
    found = combined("breadcrumbs", [part(2.0, signed)], beta=beta, gamma=gamma)
    assert found.tolist() == [2.0 * x if abs(x) in left else 0.0 for x in signed]


def test_equal_magnitudes_at_a_threshold_stay_together(part):
    assert combined("ties", [part(1.0, [3, -2, 2, 1, 2])], density=0.4).tolist() == [3, -2, 2, 0, 2]
    outliers = part(1.0, [3, -3, 2, 1, 0.5])
    assert combined("breadcrumbs", [outliers], beta=0.2, gamma=0.2).tolist() == [0, 0, 2, 1, 0]


# --- chance ---


def test_entries_are_dropped_below_the_rate_and_the_others_rescaled():
    delta, drawn_at = numbers(1, -2, 3, 4), torch.tensor([0.1, 0.6, 0.5, 0.49])
    assert drop_and_rescale(delta, 0.5, drawn_at).tolist() == [0.0, -4.0, 6.0, 0.0]
    rates = numbers(0.0, 0.5, 0.75, 0.0)
    assert drop_and_rescale(delta, rates, drawn_at).tolist() == [1.0, -4.0, 0.0, 4.0]
    assert delta.tolist() == [1.0, -2.0, 3.0, 4.0]


def test_higher_drop_rates_keep_a_subset(part):
    ones = part(1.0, torch.ones(1000), key=7)
    kept = [combined("dare", [ones], drop_rate=rate) != 0 for rate in (0.0, 0.2, 0.5, 0.9)]
    for more, fewer in pairwise(kept):
        assert bool((more | ~fewer).all())
        assert int(fewer.sum()) < int(more.sum())


@pytest.mark.parametrize(("method", "options"), RANDOM)
def test_the_mean_over_masks_is_alpha_delta(part, method, options):
    """Within five standard errors for each entry; its variance is ``p / (1 - p) delta**2``."""
    delta, masks, alpha = drawn("mean", 12, 25), 2_000, -0.6
    parts = [part(alpha, delta, columns=25, key=key) for key in range(1, masks + 1)]
    found = torch.stack([combined(method, [p], **options) for p in parts])
    rate = torch.tensor(options["drop_rate"], dtype=F64).expand(300)
    if method == "della":
        rate = drop_rates(delta.reshape(-1), 25, **options)
    ideal = alpha * delta.reshape(-1)
    error = ideal.abs() * (rate / (1 - rate) / masks).sqrt()
    assert bool(((found.mean(0) - ideal).abs() <= 5 * error).all())
    dropped = (found == 0).double().mean(0)
    assert bool(((dropped - rate).abs() <= 5 * (rate * (1 - rate) / masks).sqrt()).all())
    assert torch.equal(found[0] != 0, parts[0].uniform() >= rate)


def test_terms_draw_masks_of_their_own(part):
    parts = [part(1.0, torch.ones(400), key=key) for key in (1, 2)]
    one, two = (combined("dare", [p]) for p in parts)
    assert not torch.equal(one, two)
    assert torch.equal(combined("dare", parts), one + two)


@pytest.mark.parametrize(("method", "options"), RANDOM)
def test_rows_are_merged_alone_as_in_the_whole(part, method, options):
    delta = drawn("rows", 9, 31)
    whole = combined(method, [part(0.5, delta, columns=31, key=3)], **options)
    parts = [
        combined(method, [part(0.5, delta[a:b], columns=31, key=3, start=31 * a)], **options)
        for a, b in pairwise((0, 1, 5, 9))
    ]
    assert torch.equal(torch.cat(parts), whole)


# --- the ranks of DELLA ---


def test_drop_rates_by_hand():
    rates = drop_rates(numbers(3, -1, 2, 0, 5, -5), 3, 0.5, 0.2)
    assert rates.tolist() == pytest.approx([0.4, 0.6, 0.5, 0.6, 0.4, 0.5])
    assert drop_rates(numbers(3, -1), 1, 0.3, 0.2).tolist() == [0.3, 0.3]
    assert drop_rates(numbers(3, -1), 2, 0.3, 0.0).tolist() == [0.3, 0.3]
    assert drop_rates(numbers(), 3, 0.3, 0.2).tolist() == []


@pytest.mark.parametrize("columns", [2, 7, 64])
def test_larger_entries_are_dropped_less_and_the_mean_is_the_drop_rate(columns):
    delta = drawn("ranks", 6, columns)
    rates = drop_rates(delta.reshape(-1), columns, 0.4, 0.3).reshape(6, columns)
    order = delta.abs().argsort(dim=1, descending=True)
    ranked = rates.gather(1, order)
    assert bool((ranked.diff(dim=1) > 0).all())
    assert ranked[:, 0].tolist() == pytest.approx([0.25] * 6)
    assert ranked[:, -1].tolist() == pytest.approx([0.55] * 6)
    assert rates.mean(1).tolist() == pytest.approx([0.4] * 6)


# --- options ---


def test_the_registry_cites_each_method_and_shows_every_default():
    assert all("arXiv:" in method.source for method in METHODS.values())
    assert METHODS["ties"].bind({}).options == {
        "density": 0.2,
        "trim": "global",
        "election": "mass",
        "consensus": "mean",
        "lambda": 1.0,
    }
    assert METHODS["breadcrumbs"].bind({"gamma": 0.0}).options == {
        "beta": 0.85,
        "gamma": 0.0,
        "lambda": 1.0,
    }


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        (
            "ties",
            {"densty": 0.2},
            "ties takes density, trim, election, consensus, lambda; got densty",
        ),
        ("ties", {"drop_rate": 0.5}, "got drop_rate (density = 1 - drop_rate)"),
        ("ties", {"lambda_": 0.5}, "got lambda_"),
        ("dare", {"density": 0.5}, "got density (drop_rate = 1 - density)"),
        ("della", {"density": 0.5}, "got density (drop_rate = 1 - density)"),
        ("breadcrumbs", {"density": 0.5}, "breadcrumbs takes beta, gamma, lambda; got density"),
        ("task_arithmetic", {"density": 0.5}, "task_arithmetic takes lambda; got density"),
        ("ties", {"density": 2}, "density must be in (0, 1], got 2"),
        ("ties", {"density": 0.0}, "density must be in (0, 1], got 0.0"),
        ("ties", {"density": float("nan")}, "density must be in (0, 1], got nan"),
        ("ties", {"density": "0.2"}, "density must be in (0, 1], got '0.2'"),
        ("ties", {"density": True}, "density must be in (0, 1], got True"),
        ("ties", {"trim": "layer"}, "trim must be global or per_tensor, got 'layer'"),
        ("ties", {"election": "vote"}, "election must be mass or count, got 'vote'"),
        ("dare_ties", {"consensus": 1}, "consensus must be mean or sum, got 1"),
        ("dare", {"drop_rate": 1.0}, "drop_rate must be in [0, 1), got 1.0"),
        ("dare", {"drop_rate": -0.1}, "drop_rate must be in [0, 1), got -0.1"),
        ("dare", {"lambda": float("inf")}, "lambda must be a finite number, got inf"),
        ("dare", {"lambda": "1"}, "lambda must be a finite number, got '1'"),
        ("della", {"epsilon": 1.0}, "epsilon must be in [0, 1), got 1.0"),
        ("breadcrumbs", {"beta": 1.0}, "beta must be in [0, 1), got 1.0"),
        ("breadcrumbs", {"gamma": -0.01}, "gamma must be in [0, 1), got -0.01"),
    ],
)
def test_options_are_refused_with_what_would_be_right(method, options, said):
    with pytest.raises(RecipeError) as caught:
        find_method(method).bind(options)
    assert str(caught.value).startswith(f"{method}")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("della", {"drop_rate": 0.05, "epsilon": 0.2}, "here it is -0.05 to 0.15"),
        ("della", {"drop_rate": 0.95, "epsilon": 0.1}, "here it is 0.9 to 1"),
        ("breadcrumbs", {"beta": 0.9, "gamma": 0.2}, "below 1, got 0.9 + 0.2"),
        ("breadcrumbs", {"beta": 0.75, "gamma": 0.25}, "below 1, got 0.75 + 0.25"),
    ],
)
def test_options_that_contradict_each_other_are_refused(method, options, said):
    with pytest.raises(RecipeError) as caught:
        find_method(method).bind(options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("della", {"drop_rate": 0.1, "epsilon": 0.2}),
        ("breadcrumbs", {"beta": 0.75, "gamma": 0.125}),
    ],
)
def test_options_at_the_edge_of_what_is_possible_are_taken(part, method, options):
    assert combined(method, [part(1.0, drawn("edge", 4, 30), columns=30)], **options).any()


def test_an_unknown_method_lists_the_known():
    with pytest.raises(RecipeError) as caught:
        find_method("tie")
    assert str(caught.value) == f"unknown merge method 'tie'; known are {', '.join(METHODS)}"


@EVERY
def test_lambda_scales_every_method(part, method):
    parts = [part(0.5, drawn("a", 40), columns=8, key=1), part(-1.0, drawn("b", 40), columns=8)]
    once = combined(method, parts)
    assert torch.equal(combined(method, parts, **{"lambda": -0.25}), -0.25 * once)
    assert not math.isclose(float(once.abs().sum()), 0.0)
