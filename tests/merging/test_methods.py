"""Methods are pure functions of slices; their parameters are the options of a recipe."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from personality_vector.errors import RecipeError
from personality_vector.merging.methods import (
    METHODS,
    agree,
    drop_and_rescale,
    elect_sign,
    find_method,
)
from personality_vector.merging.select import magnitude_threshold


@dataclass
class Part:
    alpha: float
    delta: Tensor
    key: int = 0

    def threshold(self, density: float, scope: str) -> float:
        assert scope in ("global", "per_tensor")
        return magnitude_threshold(lambda: [self.delta], density)


def combined(name: str, parts: list[Part], **options) -> list[float]:
    return find_method(name).bind(options)[0](parts).tolist()


ONE = Part(1.0, torch.tensor([4.0, -3.0, 2.0, 0.0, 1.0]))
TWO = Part(0.5, torch.tensor([2.0, 6.0, -8.0, 0.0, -2.0]))


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("task_arithmetic", {}, [5.0, 0.0, -2.0, 0.0, 0.0]),
        ("task_arithmetic", {"lambda": 2.0}, [10.0, 0.0, -4.0, 0.0, 0.0]),
        ("ties", {"density": 1.0}, [2.5, 0.0, -4.0, 0.0, 0.0]),
        ("ties", {"density": 1.0, "consensus": "sum"}, [5.0, 0.0, -4.0, 0.0, 0.0]),
        ("ties", {"density": 0.4}, [4.0, 0.0, -4.0, 0.0, 0.0]),
        ("ties", {"density": 0.4, "trim": "per_tensor", "lambda": 0.5}, [2.0, 0.0, -2.0, 0.0, 0.0]),
        ("dare", {"drop_rate": 0.0}, [5.0, 0.0, -2.0, 0.0, 0.0]),
        ("dare_ties", {"drop_rate": 0.0}, [2.5, 0.0, -4.0, 0.0, 0.0]),
        ("dare_ties", {"drop_rate": 0.0, "consensus": "sum"}, [5.0, 0.0, -4.0, 0.0, 0.0]),
    ],
)
def test_worked_examples(method, options, expected):
    kept = [part.delta.clone() for part in (ONE, TWO)]
    assert combined(method, [ONE, TWO], **options) == expected
    assert all(torch.equal(a, p.delta) for a, p in zip(kept, (ONE, TWO), strict=True))


def test_the_elected_sign_is_that_of_the_mass_and_a_tie_elects_none():
    weighted = [torch.tensor([3.0, 1.0, 0.0]), torch.tensor([-1.0, -1.0, 0.0])]
    assert elect_sign([*weighted, torch.tensor([-1.0, 0.0, 0.0])]).tolist() == [1.0, 0.0, 0.0]


def test_zeros_neither_vote_nor_count():
    weighted = [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor([4.0, -1.0])]
    assert agree(weighted, elect_sign(weighted), "mean").tolist() == [3.0, -1.0]


@pytest.mark.parametrize("drop_rate", [-0.1, 1.0, 2.0, float("nan")])
def test_an_impossible_drop_rate_is_refused(drop_rate):
    with pytest.raises(ValueError, match=r"drop_rate must be in \[0, 1\)"):
        drop_and_rescale(torch.ones(2), drop_rate, 0)


def test_higher_drop_rates_keep_a_subset():
    ones = torch.ones(1000)
    kept = [drop_and_rescale(ones, rate, 7) != 0 for rate in (0.0, 0.2, 0.5, 0.9)]
    for more, fewer in pairwise(kept):
        assert bool((more | ~fewer).all())


def test_the_registry_cites_each_method_and_shows_every_default():
    assert set(METHODS) == {"task_arithmetic", "ties", "dare", "dare_ties"}
    assert all("arXiv:" in method.source for method in METHODS.values())
    assert METHODS["ties"].bind({})[1] == {
        "density": 0.2,
        "trim": "global",
        "consensus": "mean",
        "lambda": 1.0,
    }


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("ties", {"densty": 0.2}, "ties takes density, trim, consensus, lambda; got densty"),
        ("ties", {"drop_rate": 0.5}, "got drop_rate (density = 1 - drop_rate)"),
        ("dare", {"density": 0.5}, "got density (drop_rate = 1 - density)"),
        ("task_arithmetic", {"density": 0.5}, "task_arithmetic takes lambda; got density"),
        ("ties", {"density": 2}, "density must be in (0, 1], got 2"),
        ("ties", {"density": 0.0}, "density must be in (0, 1], got 0.0"),
        ("ties", {"density": float("nan")}, "density must be in (0, 1], got nan"),
        ("ties", {"density": "0.2"}, "density must be in (0, 1], got '0.2'"),
        ("ties", {"density": True}, "density must be in (0, 1], got True"),
        ("ties", {"trim": "layer"}, "trim must be global or per_tensor, got 'layer'"),
        ("dare", {"drop_rate": 1.0}, "drop_rate must be in [0, 1), got 1.0"),
        ("dare", {"lambda": float("inf")}, "lambda must be a finite number, got inf"),
    ],
)
def test_options_are_refused_with_what_would_be_right(method, options, said):
    with pytest.raises(RecipeError) as caught:
        find_method(method).bind(options)
    assert said in str(caught.value)


def test_an_unknown_method_lists_the_known():
    with pytest.raises(
        RecipeError, match="'tie'; known are task_arithmetic, ties, dare, dare_ties"
    ):
        find_method("tie")
