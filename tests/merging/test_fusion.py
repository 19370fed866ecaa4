"""Fusion is the mean of BILLY, and the methods of a merge, restated without the code of a merge."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    NonFiniteError,
    RecipeError,
    TensorMismatchError,
)
from personality_vector.merging.fusion import Fused, fuse
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.traits import Pole

SCALES = ("raw", "unit", "equal")
RANDOM = ("dare", "dare_ties")


def vector(name: str, layers: Any = (3, 10), width: int = 40, size: float = 1.0) -> SteeringVector:
    directions = {
        layer: size * torch.randn(width, generator=generator_for(layer, name)) for layer in layers
    }
    return SteeringVector(directions, "abc", None, name, "response_mean", (5, 4))


A, B, C = vector("a"), vector("b", size=3.0), vector("c", size=0.4)


def numbers(one: SteeringVector, layer: int) -> np.ndarray:
    return one[layer].double().numpy()


def same_bits(one: SteeringVector, other: SteeringVector) -> bool:
    return all(torch.equal(one[layer], other[layer]) for layer in one.layers)


# The Llama vectors of BILLY at layer 20: norms, cosines between them, and what their mean is.
BILLY = ("creative", "environmentalist", "futurist")
NORMS = (3.01, 7.09, 1.85)
COSINES = np.array([[1.0, 0.105, 0.270], [0.105, 1.0, 0.462], [0.270, 0.462, 1.0]])
MERGED = {"raw": (2.59, (0.458, 0.878, 0.750)), "unit": (None, (0.544, 0.671, 0.904))}


@pytest.fixture(scope="module")
def personas() -> list[SteeringVector]:
    """Three vectors with those norms and cosines, in a random orientation."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(64, 3)))[0]
    rows = np.array(NORMS)[:, None] * np.linalg.cholesky(COSINES) @ basis.T
    return [
        SteeringVector({20: torch.tensor(row).float()}, "m", None, name, "response_mean", (1, 1))
        for name, row in zip(BILLY, rows, strict=True)
    ]


@pytest.mark.parametrize("scale", MERGED)
def test_fusion_reproduces_the_norm_and_the_cosines_of_billy(personas, scale):
    norm, cosines = MERGED[scale]
    fused = fuse(personas, [1.0, 1.0, 2.0], scale=scale)
    found = [fused.vector.cosine(persona, 20) for persona in personas]
    assert found == pytest.approx(cosines, abs=2e-3)  # of inputs that are known to three digits
    assert [share.cosine for share in fused.overall] == pytest.approx(found, abs=1e-6)
    if norm is not None:
        assert fused.vector.norm(20) == pytest.approx(norm, abs=0.01)


def test_the_longest_vector_dominates_a_raw_mean_and_not_one_of_unit_vectors(personas):
    raw, unit = (
        {share.label: share.share for share in fuse(personas, [1.0, 1.0, 2.0], scale=scale).overall}
        for scale in ("raw", "unit")
    )
    # <w v, f> / <f, f> from the published norms and cosines alone.
    gram = np.outer(NORMS, NORMS) * COSINES
    weights = np.array([1.0, 1.0, 2.0])
    expected = weights * (gram @ weights) / (weights @ gram @ weights)
    assert list(raw.values()) == pytest.approx(expected, abs=1e-6)
    assert max(raw, key=raw.__getitem__) == "environmentalist"
    assert raw["environmentalist"] > 0.5
    assert max(unit, key=unit.__getitem__) == "futurist"


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, -0.5, 2.0), (0.3, 0.0, 4.0)])
def test_the_mean_is_its_formula(scale, weights):
    fused = fuse([A, B, C], weights, scale=scale).vector
    for layer in (3, 10):
        rows = [numbers(one, layer) for one in (A, B, C)]
        lengths = [np.linalg.norm(row) for row in rows]
        mean = np.average(lengths, weights=np.abs(weights))
        factor = {"raw": lengths, "unit": [1.0] * 3, "equal": [mean] * 3}[scale]
        scaled = [row * f / n for row, f, n in zip(rows, factor, lengths, strict=True)]
        expected = sum(w * row for w, row in zip(weights, scaled, strict=True)) / sum(weights)
        np.testing.assert_allclose(numbers(fused, layer), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_a_vector_given_twice_has_weight_two(scale):
    twice, weighted = (
        fuse([A, B, B], scale=scale).vector,
        fuse([A, B], [1.0, 2.0], scale=scale).vector,
    )
    for layer in A.layers:
        torch.testing.assert_close(twice[layer], weighted[layer], rtol=0, atol=1e-6)


def test_one_vector_is_itself_and_unit_directions_have_norm_one():
    assert same_bits(fuse([A]).vector, A)
    assert same_bits(fuse([A], [-3.0]).vector, A)
    assert fuse([B], scale="unit").vector.norm(10) == pytest.approx(1.0, abs=1e-6)
    assert fuse([B], scale="equal").vector.norm(10) == pytest.approx(B.norm(10), rel=1e-6)


def ties_restated(vectors: Any, weights: Any, density: float, trim: str) -> dict[int, np.ndarray]:
    """Sort, cut, vote, average: one whole vector of all layers at a time, or one layer."""
    groups = [(3, 10)] if trim == "global" else [(3,), (10,)]
    result = {}
    for group in groups:
        rows = np.array([np.concatenate([numbers(v, layer) for layer in group]) for v in vectors])
        keep = max(1, int(density * rows.shape[1]))
        cut = np.sort(np.abs(rows), axis=1)[:, -keep][:, None]
        kept = np.where(np.abs(rows) >= cut, rows, 0.0) * np.array(weights)[:, None]
        agree = (np.sign(kept) == np.sign(kept.sum(0))) & (kept != 0)
        mean = (kept * agree).sum(0) / np.maximum(agree.sum(0), 1)
        result.update(zip(group, np.split(mean, len(group)), strict=True))
    return result


@pytest.mark.parametrize("trim", ["global", "per_tensor"])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, -2.0, 0.5)])
def test_ties_is_its_formula_over_all_layers_or_each(trim, weights):
    options = {"density": 0.3, "trim": trim}
    fused = fuse([A, B, C], weights, method="ties", options=options).vector
    expected = ties_restated((A, B, C), weights, 0.3, trim)
    for layer in (3, 10):
        np.testing.assert_allclose(numbers(fused, layer), expected[layer], rtol=0, atol=1e-6)
        assert 0 < (expected[layer] == 0).sum() < 40


def test_the_global_rule_is_not_the_rule_per_layer():
    uneven = [replace(v, directions={3: v[3], 10: 2 * v[10]}) for v in (A, B)]
    one, other = (
        fuse(uneven, method="ties", options={"density": 0.3, "trim": trim}).vector
        for trim in ("global", "per_tensor")
    )
    assert not same_bits(one, other)


def test_dare_drops_rescales_and_adds():
    fused = fuse([A, B], [1.0, 2.0], method="dare", options={"drop_rate": 0.25}).vector
    for layer in A.layers:
        # 0: dropped in both; else v / 0.75 of the first, of the second twice, or of both.
        a, b = numbers(A, layer) / 0.75, 2 * numbers(B, layer) / 0.75
        distance = [np.abs(numbers(fused, layer) - part) for part in (0 * a, a, b, a + b)]
        assert np.min(distance, axis=0).max() < 1e-6
        counts = np.bincount(np.argmin(distance, axis=0), minlength=4)
        assert counts[3] > counts[1]
        assert counts[:3].sum() > 0


def test_dare_is_unbiased():
    draws = [
        fuse([A, B], method="dare", options={"drop_rate": 0.5}, seed=seed).vector[3]
        for seed in range(400)
    ]
    plain = fuse([A, B], method="task_arithmetic").vector[3]
    error = (torch.stack(draws).mean(0) - plain).norm() / plain.norm()
    assert error < 3 * 400**-0.5


@pytest.mark.parametrize("method", RANDOM)
def test_a_mask_depends_on_seed_and_vector_alone(method):
    options = {"drop_rate": 0.5}
    one, again, other = (fuse([A, B], method=method, options=options, seed=s) for s in (0, 0, 1))
    assert same_bits(one.vector, again.vector)
    assert not same_bits(one.vector, other.vector)
    renamed = fuse([replace(A, label="z"), B], method=method, options=options)
    assert same_bits(one.vector, renamed.vector)
    # A vector that is given twice is masked twice, so that the two masks average out.
    pair = fuse([A, A], method="dare", options=options).vector
    assert not same_bits(pair, fuse([A], [2.0], method="dare", options=options).vector)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", ["mean", "task_arithmetic", "ties", *RANDOM])
def test_the_order_of_the_vectors_does_not_change_a_bit(method, scale):
    weighted = [(A, 0.1), (B, -0.4), (C, 0.7), (A, 0.1)]
    found = [
        fuse(*zip(*order, strict=True), method=method, scale=scale)
        for order in permutations(weighted)
    ]
    assert all(same_bits(found[0].vector, one.vector) for one in found[1:])
    shares = [{(s.label, s.layer): s.share for s in one.shares} for one in found]
    assert all(one == pytest.approx(shares[0]) for one in shares)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("method", ["mean", "ties", *RANDOM])
def test_a_vector_of_weight_zero_changes_nothing(method, scale):
    with_it = fuse([A, B, C], [1.0, 0.0, 2.0], method=method, scale=scale)
    without = fuse([A, C], [1.0, 2.0], method=method, scale=scale)
    for layer in A.layers:
        torch.testing.assert_close(with_it.vector[layer], without.vector[layer])
    assert [s.share for s in with_it.overall if s.label == "b"] == [0.0]


@pytest.mark.parametrize("method", ["mean", "task_arithmetic", "ties", *RANDOM])
@pytest.mark.parametrize("scale", SCALES)
def test_shares_sum_to_one_for_each_layer_and_overall(method, scale):
    fused = fuse([A, B, C], [1.0, -0.5, 2.0], method=method, scale=scale)
    for layer in (3, 10, None):
        of_layer = [share for share in fused.shares if share.layer == layer]
        assert [share.label for share in of_layer] == ["a", "b", "c"]
        assert sum(share.share for share in of_layer) == pytest.approx(1.0)


def test_a_share_is_the_projection_on_the_mean():
    fused = fuse([A, B], [1.0, 3.0])
    for layer in A.layers:
        mean = (numbers(A, layer) + 3 * numbers(B, layer)) / 4
        expected = {
            "a": numbers(A, layer) / 4 @ mean / (mean @ mean),
            "b": 3 * numbers(B, layer) / 4 @ mean / (mean @ mean),
        }
        found = {s.label: s for s in fused.shares if s.layer == layer}
        assert {label: s.share for label, s in found.items()} == pytest.approx(expected)
        assert found["a"].norm == pytest.approx(A.norm(layer))
        cosine = numbers(A, layer) @ mean / np.linalg.norm(numbers(A, layer)) / np.linalg.norm(mean)
        assert found["a"].cosine == pytest.approx(cosine)


def test_the_fused_vector_says_what_it_is():
    fused = fuse([A, replace(B, pooling="prompt_last")], [1.0, 2.0], scale="unit").vector
    assert fused.label == "mean(a, 2 * b; scale unit)"
    assert (fused.model, fused.pole, fused.counts) == ("abc", None, (10, 8))
    assert fused.pooling == "response_mean + prompt_last"
    assert fuse([A, B], label="mine").vector.label == "mine"
    ties = fuse([A, B], method="ties", options={"density": 0.3}, seed=4).vector
    assert ties.label == "ties(a, b; density 0.3, seed 4)"
    settings = "density 0.3, trim global, election mass, consensus mean, lambda 1.0, seed 4"
    assert ties.estimator == f"ties(a, b; scale raw, {settings}) of mean_difference"
    high = replace(A, pole=Pole("openness", "high"))
    assert fuse([high, B]).vector.pole is None


def test_a_fused_vector_is_saved_and_loaded(tmp_path):
    fused: Fused = fuse([A, B], scale="equal")
    assert same_bits(SteeringVector.load(fused.vector.save(tmp_path / "f")), fused.vector)


@pytest.mark.parametrize(
    ("vectors", "given", "error", "message"),
    [
        ([], {}, DataError, "at least one"),
        ([A, replace(B, model="def")], {}, BaseMismatchError, "a is of model abc and b of"),
        ([A, vector("b", width=8)], {}, TensorMismatchError, "a is 40 wide and b is 8"),
        ([A, vector("b", layers=(3,))], {}, TensorMismatchError, "b: has no .* layer 10"),
        ([vector("a", layers=(3,)), B], {}, TensorMismatchError, "a: has no .* layer 10"),
        ([A, B], {"weights": [1.0]}, DataError, "1 weights for 2 vectors"),
        ([A, B], {"weights": [1.0, -1.0]}, DataError, "sum to 0.*task_arithmetic"),
        ([A, B, C], {"weights": [0.1, 0.2, -0.3]}, DataError, "sum to 0"),
        ([A, B], {"weights": [0.0, 0.0], "method": "ties"}, DataError, "all weights are 0"),
        ([A, B], {"weights": [1.0, float("nan")]}, NonFiniteError, "weights must be finite"),
        ([A, -A], {}, DataError, "layer 3: the fused direction is zero"),
        ([A, B], {"method": "average"}, RecipeError, "unknown method 'average'; known are mean"),
        ([A, B], {"options": {"density": 0.2}}, RecipeError, "mean takes no options; got density"),
        ([A, B], {"method": "ties", "options": {"drop_rate": 0.2}}, RecipeError, "density = 1 -"),
        ([A, B], {"method": "dare", "options": {"drop_rate": 1.0}}, RecipeError, "drop_rate must"),
    ],
)
def test_what_cannot_be_fused_is_refused(vectors, given, error, message):
    with pytest.raises(error, match=message):
        fuse(vectors, **given)


def test_weights_that_sum_to_zero_make_a_difference_under_task_arithmetic():
    fused = fuse([A, B], [1.0, -1.0], method="task_arithmetic").vector
    assert all(torch.equal(fused[layer], (A - B)[layer]) for layer in A.layers)
