"""Each estimator equals its formula, computed another way, and finds a planted direction."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from personality_vector.errors import DataError, TensorMismatchError
from personality_vector.numeric.random import generator_for
from personality_vector.steering.activations import Reader
from personality_vector.steering.estimators import (
    ESTIMATORS,
    contrast,
    logistic,
    mean_difference,
    pca,
    shift,
)
from personality_vector.subject.chat import answered, question
from personality_vector.subject.models import load_model, load_tokenizer

EVERY = pytest.mark.parametrize("name", list(ESTIMATORS))


def noise(name: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator_for(0, name), dtype=torch.float64)


def planted(pairs: int = 40, hidden: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs that differ by 2 along a unit direction, amid much that a pair has in common."""
    direction = torch.nn.functional.normalize(noise("direction", hidden), dim=0)
    common = 5 * noise("common", pairs, hidden)
    sides = [
        common + sign * direction + 0.1 * noise(f"own {sign}", pairs, hidden) for sign in (1, -1)
    ]
    return sides[0], sides[1], direction


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def rotation(hidden: int) -> Tensor:
    return torch.linalg.qr(noise("rotation", hidden, hidden)).Q


def mean_removing_pca(positive: Tensor, negative: Tensor) -> Tensor:
    """PCA of the differences as a library does it: it takes the mean of each column away first."""
    differences = positive - negative
    return torch.linalg.svd(differences - differences.mean(0)).Vh[0]


def test_pca_finds_what_the_mean_removing_kind_loses():
    positive, negative, direction = planted()
    assert cosine(pca(positive, negative), direction) > 0.99
    assert abs(cosine(mean_removing_pca(positive, negative), direction)) < 0.3


@EVERY
def test_a_planted_direction_is_found_with_its_sign(name):
    positive, negative, direction = planted()
    expected = 0.5 if name == "logistic" else 0.95  # it has no use for what pairs have in common
    assert cosine(ESTIMATORS[name](positive, negative), direction) > expected


@pytest.mark.parametrize("shape", [(7, 20), (20, 7), (1, 5)])
def test_pca_is_the_singular_vector_of_the_halved_pairs(shape):
    positive, negative = noise("p", *shape), noise("n", *shape)
    halves = (positive - negative).numpy() / 2
    stacked = np.concatenate([halves, -halves])
    assert np.allclose(stacked.mean(0), 0)
    axis = torch.from_numpy(np.linalg.svd(stacked)[2][0])
    expected = ((positive - negative).mean(0) @ axis) * axis
    torch.testing.assert_close(pca(positive, negative), expected)


def test_pca_of_equal_differences_is_that_difference():
    negative, step = noise("n", 6, 9), noise("step", 9)
    torch.testing.assert_close(pca(negative + step, negative), step)


def test_pca_needs_pairs():
    with pytest.raises(DataError, match="there are 3 positive and 4 negative"):
        pca(noise("p", 3, 5), noise("n", 4, 5))


def test_logistic_is_the_minimum_of_its_loss():
    positive, negative = noise("p", 12, 4) + 0.7, noise("n", 8, 4)
    rows = torch.cat([positive, negative])
    centred = rows - rows.mean(0)
    scaled = (centred / centred.square().mean().sqrt()).numpy()
    signs = np.array([1.0] * 12 + [-1.0] * 8)

    def loss(parameters: Any) -> float:
        weight, bias = parameters[:4], parameters[4]
        return float(
            weight @ weight / 2 + np.log1p(np.exp(-signs * (scaled @ weight + bias))).sum()
        )

    weight = torch.from_numpy(minimize(loss, np.zeros(5), tol=1e-12).x[:4])
    axis = weight / weight.norm()
    expected = (axis @ (positive.mean(0) - negative.mean(0))) * axis
    torch.testing.assert_close(logistic(positive, negative), expected, rtol=0, atol=1e-4)


def test_logistic_looks_away_from_what_does_not_tell_the_sides_apart():
    """A nuisance of large variance moves the mean difference, but not the probe."""
    signal, nuisance = noise("signal", 6), noise("nuisance", 6)
    nuisance = nuisance - (nuisance @ signal) / (signal @ signal) * signal
    amount = 20 * noise("amount", 60, 1)
    rows = amount * nuisance + 0.05 * noise("rest", 60, 6)
    positive, negative = rows[:30] + signal, rows[30:] - signal
    assert abs(cosine(mean_difference(positive, negative), signal)) < 0.7
    assert cosine(logistic(positive, negative), signal) > 0.99


def test_logistic_refuses_what_cannot_be_told_apart():
    same = torch.ones(3, 4, dtype=torch.float64)
    with pytest.raises(DataError, match="all activations are equal"):
        logistic(same, same)


@EVERY
def test_the_unit_is_that_of_the_mean_difference_along_the_direction(name):
    positive, negative = noise("p", 10, 6) + 1, noise("n", 10, 6)
    found = ESTIMATORS[name](positive, negative)
    along = found @ (positive.mean(0) - negative.mean(0)) / found.norm()
    torch.testing.assert_close(along, found.norm())


@EVERY
def test_swapping_the_sides_negates(name):
    positive, negative = noise("p", 10, 6) + 1, noise("n", 10, 6)
    one, other = (
        ESTIMATORS[name](*sides) for sides in ((positive, negative), (negative, positive))
    )
    torch.testing.assert_close(one, -other, rtol=0, atol=1e-5)


@EVERY
def test_units_origin_and_basis_of_the_activations_do_not_matter(name):
    positive, negative = noise("p", 10, 6) + 1, noise("n", 10, 6)
    turn, origin = rotation(6), 100 * noise("origin", 6)
    moved = [3 * side @ turn + origin for side in (positive, negative)]
    expected = 3 * ESTIMATORS[name](positive, negative) @ turn
    torch.testing.assert_close(ESTIMATORS[name](*moved), expected, rtol=0, atol=1e-4)


@EVERY
def test_a_contrast_is_the_estimate_from_pooled_activations(pico, name):
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    positive, negative = (
        [answered(question("What?"), f"I {word} people {n} times.") for n in (1, 2, 3)]
        for word in ("love", "avoid")
    )
    reader = Reader(model, tokenizer, [0, 2], batch_size=2)
    found = contrast(reader, positive, negative, name)
    plus, minus = reader.pooled(positive), reader.pooled(negative)
    assert sorted(found) == [0, 2]
    for layer, direction in found.items():
        expected = ESTIMATORS[name](plus[layer].double(), minus[layer].double())
        torch.testing.assert_close(direction, expected.float(), rtol=0, atol=1e-5)


def test_a_shift_needs_the_same_layers_and_width():
    rows = torch.ones(3)
    assert torch.equal(shift({0: 3 * rows}, {0: rows})[0], torch.full((3,), 2.0))
    with pytest.raises(TensorMismatchError, match=r"has the layers \[1\]"):
        shift({0: rows, 1: rows}, {0: rows})
    with pytest.raises(TensorMismatchError, match=r"layer 0: .*\[3\] and \[4\]"):
        shift({0: rows}, {0: torch.ones(4)})
