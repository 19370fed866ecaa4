"""A delta is a vector: it adds, scales and has an angle, whatever it is stored as."""

import math

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta, open_delta
from personality_vector.delta.sources import whole
from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    NonFiniteError,
    TensorMismatchError,
)
from personality_vector.traits import Pole


@pytest.fixture
def dense():
    """Return a delta as one flat float64 vector, unrounded."""

    def flatten(delta):
        source = delta.source
        return torch.cat([source.part(name, whole(source, name)) for name in delta.names])

    return flatten


def test_it_is_tuned_minus_base(pico, pico_tuned):
    base, tuned = Checkpoint.open(pico("phi")), Checkpoint.open(pico_tuned("phi"))
    delta = Delta.between(base, tuned)
    assert delta.names == base.names
    for name in delta.names:
        assert delta[name].dtype == torch.float32
        assert delta.shape(name) == base.entries[name].shape
        assert torch.equal(delta[name], tuned[name].float() - base[name].float())


def test_labels_and_poles(pico, pico_tuned):
    base, tuned = pico("llama"), pico_tuned("llama")
    assert Delta.between(base, tuned).label == tuned.name
    named = Delta.between(base, tuned, pole="openness:low")
    assert (named.label, named.pole) == ("openness:low", Pole("openness", "low"))
    assert Delta.between(base, tuned, pole="openness:low", label="x").label == "x"


def test_identity_is_of_the_content_and_not_of_the_path(pico, pico_tuned, tmp_path):
    from shutil import copytree

    base, tuned = pico("llama"), pico_tuned("llama")
    delta = Delta.between(base, tuned, label="x")
    moved = Delta.between(copytree(base, tmp_path / "b"), copytree(tuned, tmp_path / "t"))
    assert (moved.identity, moved.base) == (delta.identity, delta.base)
    assert Delta.between(base, pico_tuned("llama", seed=1)).identity != delta.identity
    assert Delta.between(tuned, base).identity != delta.identity


def test_sums_commute_and_differences_are_sums_with_the_negative(pair, dense):
    one, two = pair
    assert torch.equal(dense(one + two), dense(two + one))
    assert torch.equal(dense(one - two), dense(one + -two))
    assert torch.equal(dense(one - two), dense(one) - dense(two))


@pytest.mark.parametrize("factor", [2.0, -0.5, 0.0, 1.0, 0.3])
def test_scaling_is_linear(pair, dense, factor):
    one, two = pair
    assert torch.equal(dense(factor * one), dense(one * factor))
    assert torch.equal(dense(one * factor), factor * dense(one))
    left, right = dense(factor * (one + two)), dense(factor * one + factor * two)
    torch.testing.assert_close(left, right, rtol=1e-15, atol=1e-16)


def test_a_sum_is_weighted(pair, dense):
    one, two = pair
    expected = 0.3 * dense(one) - 2.0 * dense(two)
    torch.testing.assert_close(dense(0.3 * one + -2.0 * two), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("divisor", [4.0, -0.3])
def test_division_is_multiplication_by_the_inverse(pair, dense, divisor):
    torch.testing.assert_close(
        dense(pair[0] / divisor), dense(pair[0]) / divisor, rtol=1e-15, atol=0
    )


def test_minus_minus_is_the_delta(pair, dense):
    negative = -pair[0]
    assert torch.equal(dense(negative), -dense(pair[0]))
    assert torch.equal(dense(-negative), dense(pair[0]))


def test_a_delta_minus_itself_is_zero(pair):
    assert (pair[0] - pair[0]).norm() == 0.0


@pytest.mark.parametrize(
    "how",
    [{}, {"storage": "bfloat16"}, {"storage": "low-rank", "rank": 3}, {"storage": "reference"}],
    ids=lambda how: how.get("storage", "float32"),
)
def test_what_is_added_can_be_taken_away_whatever_it_is_stored_as(pair, dense, tmp_path, how):
    one, two = (
        Delta.load(delta.save(tmp_path / str(index), **how)) for index, delta in enumerate(pair)
    )
    ulp = torch.finfo(torch.float64).eps * (dense(one).abs() + dense(two).abs())
    for there_and_back in ((one + two) - two, (two + one) - two, -(two - (one + two))):
        assert bool(((dense(there_and_back) - dense(one)).abs() <= ulp).all())
    scaled = 0.5 * (one - 2.0 * two)
    torch.testing.assert_close(dense(scaled), 0.5 * dense(one) - dense(two), rtol=0, atol=1e-15)


def test_a_sum_of_sums_is_one_sum(pair):
    one, two = pair
    terms = (2.0 * ((one + two) - 0.5 * one)).source.terms
    assert [(factor, source) for factor, source in terms] == [
        (2.0, one.source),
        (2.0, two.source),
        (-1.0, one.source),
    ]


def test_only_what_was_loaded_can_be_verified(pair, tmp_path):
    loaded = Delta.load(pair[0].save(tmp_path / "saved"))
    assert loaded.verify() == len(loaded.names)
    for unsaved in (pair[0], 2.0 * loaded, loaded + loaded, -loaded):
        with pytest.raises(CheckpointError, match="was never saved"):
            unsaved.verify()


def test_it_knows_its_tensors(pair):
    assert all(name in pair[0] for name in pair[0].names)
    assert "absent" not in pair[0]
    assert 3 not in pair[0]


def test_a_positive_multiple_keeps_its_pole_and_nothing_else_does(pair):
    one, two = pair
    assert (0.5 * one).pole == one.pole == Pole("openness", "high")
    assert {d.pole for d in (-one, 0.0 * one, one * -2.0, one + two, one - two)} == {None}


@pytest.mark.parametrize("factor", [math.nan, math.inf, -math.inf])
def test_a_factor_that_is_no_number_is_refused(pair, factor):
    with pytest.raises(NonFiniteError, match="openness:high"):
        pair[0] * factor


def test_division_by_zero_is_refused(pair):
    with pytest.raises(NonFiniteError, match="divided by 0"):
        pair[0] / 0.0


def test_norm_dot_and_cosine_are_those_of_the_flat_vectors(pair, dense):
    one, two = pair
    a, b = dense(one), dense(two)
    assert one.norm() == pytest.approx(float(a.norm()), rel=1e-12)
    assert one.dot(two) == pytest.approx(float(a @ b), rel=1e-12)
    assert one.cosine(two) == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-12)
    assert one.cosine(one) == pytest.approx(1.0, rel=1e-12)
    assert one.cosine(-one) == pytest.approx(-1.0, rel=1e-12)


def test_a_zero_delta_has_no_cosine(pair):
    with pytest.raises(NonFiniteError, match="zero delta"):
        pair[0].cosine(0.0 * pair[1])


@pytest.mark.parametrize(
    "operation",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a.dot(b),
        lambda a, b: a.cosine(b),
    ],
    ids=["+", "-", "dot", "cosine"],
)
def test_deltas_of_other_bases_do_not_mix(pair, pico, pico_tuned, operation):
    other = Delta.between(pico_tuned("llama", seed=1), pico("llama"), label="other")
    with pytest.raises(BaseMismatchError, match=r"openness:high.* is of base .*other.* of base"):
        operation(pair[0], other)


def test_an_unknown_tensor_is_named_with_the_delta(pair):
    with pytest.raises(TensorMismatchError, match="openness:high: has no tensor absent"):
        pair[0]["absent"]


def test_opening_for_another_base_of_the_same_shapes_is_refused(pair, pico_tuned, tmp_path):
    saved = pair[0].save(tmp_path / "saved")
    other = Checkpoint.open(pico_tuned("llama", seed=1))
    for where in (pair[0], saved):
        with pytest.raises(BaseMismatchError, match="use the base it was taken from"):
            open_delta(where, other)


def test_opening_finds_out_what_lies_there(pair, pico, pico_tuned, tmp_path, adapter):
    base = Checkpoint.open(pico("llama"))
    saved = pair[0].save(tmp_path / "saved")
    by_reference = open_delta(pico_tuned("llama"), base, label="named")
    assert by_reference.identity == open_delta(saved, base).identity == pair[0].identity
    assert by_reference.label == "named"
    assert open_delta(adapter(), base).base == base.fingerprint
