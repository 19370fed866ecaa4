"""Each kernel against a statement of what it computes, and its two forms against each other."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector.numeric.kernels import (
    agreement,
    count_magnitudes,
    difference,
    is_finite,
    projection,
    rounded,
    trimmed,
)
from personality_vector.numeric.random import generator_for

BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
FLOATS = (BF16, F16, F32, F64)
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PATTERNS = 2**16
DIGITS = {BF16: 8, F16: 11, F32: 24}
LOWEST = {BF16: -126, F16: -14, F32: -126}
"""Binary digits of a significand, and exponent of the smallest normal number."""


class Elsewhere(torch.Tensor):
    """A tensor that says it is not on the CPU, so that a kernel takes its other form."""

    is_cpu = False


def elsewhere(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Elsewhere)


def here(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(torch.Tensor)


def require_same_bits(found: Tensor, expected: Tensor) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    integer = INTEGERS[expected.element_size()]
    assert torch.equal(here(found).view(integer), here(expected).view(integer))


def drawn(name: str, count: int = 4_000) -> Tensor:
    return torch.randn(count, generator=generator_for(0, name), dtype=F64)


def all_bfloat16() -> Tensor:
    """Return every finite bfloat16: both zeros, every denormal, the largest."""
    every = torch.arange(PATTERNS, dtype=torch.int32).to(torch.int16).view(BF16)
    return every[torch.isfinite(every)]


def between_bfloat16() -> Tensor:
    """Return float64 on, half-way between and just beside the half-way points of bfloat16.

    The largest of the steps aside is below half a step of float32, which would swallow it.
    """
    every = all_bfloat16()
    some = every[torch.randperm(every.numel(), generator=generator_for(0, "some"))[:1_500]]
    edges = torch.tensor([0.0, -0.0, 2.0**-133, 2.0**-126, 1.0, 3.3895313892515355e38]).to(BF16)
    low = torch.cat([edges, -edges, some])
    bits = low.view(torch.int16)
    middle = (low.double() + (bits + 1).view(BF16).double()) / 2
    middle = torch.where(torch.isfinite(middle), middle, low.double() * (1 + 2.0**-9))
    asides = [0.0, 2.0**-52, -(2.0**-52), 2.0**-26, -(2.0**-26), 2.0**-10, -(2.0**-10)]
    tiny = torch.tensor([5e-324, -5e-324, 1e-300, -1e-45, 2.0**-134, -(2.0**-134), 2.0**-150])
    return torch.cat([low.double(), *(middle * (1 + aside) for aside in asides), tiny.double()])


def nearest(value: float, dtype: torch.dtype) -> float:
    """Return the nearest of a format, ties to even, in exact arithmetic."""
    if value == 0.0:
        return value
    exponent = max(math.frexp(value)[1] - 1, LOWEST[dtype])
    step = Fraction(2) ** (exponent - DIGITS[dtype] + 1)
    found = round(Fraction(value) / step) * step
    if abs(found) > Fraction(torch.finfo(dtype).max):
        return math.copysign(math.inf, value)
    return math.copysign(float(found), value)


def of_exact_arithmetic(values: Tensor, dtype: torch.dtype) -> Tensor:
    found = [nearest(nearest(value, F32), dtype) for value in values.tolist()]
    return torch.tensor(found, dtype=F64).to(dtype)


# --- rounding ---


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("place", [here, elsewhere])
@pytest.mark.parametrize(
    "values",
    [between_bfloat16(), drawn("r"), drawn("r") * 1e-5],
    ids=["about half-way", "normal", "small"],
)
def test_rounded_is_the_nearest_ties_to_even(dtype, place, values):
    require_same_bits(rounded(place(values), dtype), of_exact_arithmetic(values, dtype))


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("place", [here, elsewhere])
def test_what_is_a_tie_in_float32_is_one(dtype, place):
    """So that the last bits of float64, which depend on the order of a sum, decide nothing."""
    step = 2.0 ** (1 - DIGITS[dtype])
    values = torch.tensor(
        [1.0 + step / 2 + aside for aside in (0, 2.0**-50, -(2.0**-50))], dtype=F64
    )
    values = torch.cat([values, torch.tensor([1.0 + step / 2 + 2.0**-23], dtype=F64)])
    assert rounded(place(values), dtype).tolist() == [1.0, 1.0, 1.0, 1.0 + step]
    assert torch.equal(rounded(place(values), dtype), values.to(dtype))


@pytest.mark.parametrize("place", [here, elsewhere])
@pytest.mark.parametrize("dtype", [BF16, F16, F32, F64])
def test_what_the_dtype_has_stays_and_what_is_too_large_is_infinite(place, dtype):
    largest = torch.finfo(dtype).max
    values = torch.tensor([largest, -largest, math.inf, -math.inf], dtype=F64)
    require_same_bits(rounded(place(values), dtype), values.to(dtype))
    assert bool(rounded(place(torch.tensor([math.nan], dtype=F64)), dtype).isnan())
    if dtype != F64:
        beyond = torch.tensor([2.0 * largest, -1e300], dtype=F64)
        assert rounded(place(beyond), dtype).tolist() == [math.inf, -math.inf]


def test_every_bfloat16_rounds_to_itself():
    every = all_bfloat16()
    assert every.numel() == PATTERNS - 2 * 128
    require_same_bits(rounded(every.double(), BF16), every)


# --- difference ---


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_a_difference_is_exact(dtype):
    base = drawn("base").to(dtype)
    tuned = torch.where(drawn("far") > 1, drawn("tuned"), base * (1 + 1e-3 * drawn("near")))
    tuned[:4], base[:4] = torch.tensor([0.0, -0.0, 1.0, 2.0**-14]), 0.0
    pairs = zip(tuned.to(dtype).tolist(), base.tolist(), strict=True)
    expected = torch.tensor([float(Fraction(t) - Fraction(b)) for t, b in pairs], dtype=F64)
    found = difference(tuned.to(dtype), base)
    assert all(
        Fraction(value) == Fraction(t) - Fraction(b)
        for value, t, b in zip(found.tolist(), tuned.to(dtype).tolist(), base.tolist(), strict=True)
    )
    assert torch.equal(found, expected)


def test_the_difference_of_every_bfloat16_is_that_of_torch():
    every = all_bfloat16()
    for by in (1, 777, 30_000):
        other = every.roll(by)
        found = difference(every, other)
        require_same_bits(found, difference(elsewhere(every), elsewhere(other)))
        require_same_bits(found, every.double() - other.double())


# --- is_finite ---


@pytest.mark.parametrize("place", [here, elsewhere])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_entry_that_is_not_finite_is_found_anywhere(place, dtype):
    most = torch.finfo(dtype)
    sound = torch.tensor([most.max, most.min, most.tiny, most.tiny / 2, 0.0, -0.0], dtype=dtype)
    assert is_finite(place(sound.repeat(500)))
    assert is_finite(place(sound[:0]))
    for value in (math.nan, -math.nan, math.inf, -math.inf):
        for at in (0, 1, 1_234, 2_999):
            spoilt = sound.repeat(500)
            spoilt[at] = value
            assert not is_finite(place(spoilt)), (value, at)
            assert not is_finite(place(spoilt[at : at + 1]))


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_is_finite_of_every_pattern(dtype):
    every = torch.arange(PATTERNS, dtype=torch.int32).to(torch.int16).view(dtype)
    found = [is_finite(one) for one in every.split(1)]
    assert found == torch.isfinite(every).tolist()


# --- trimmed ---

THRESHOLDS = [0.0, 2.0**-149, 2.0**-126, 0.5, 1.0, 1.0 + 2.0**-23, 2.0**127, math.inf]


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_entries_below_the_threshold_in_float32_are_zero(threshold):
    """``1 - 2**-30`` is below 1, but not as a float32: the threshold was found among those."""
    about = torch.tensor([min(threshold, 1e39)], dtype=F64)
    asides = torch.tensor([1.0, 1 - 2.0**-30, 1 + 2.0**-30, 1 - 2.0**-20, 1 - 2.0**-52], dtype=F64)
    delta = torch.cat([about * asides, -about * asides, drawn("trim"), torch.tensor([0.0, -0.0])])
    delta = torch.cat([delta, torch.tensor([1e300, 1e-300, -1e39], dtype=F64)])
    before = delta.clone()
    found = trimmed(delta, threshold)
    kept = [x if float(torch.tensor(abs(x))) >= threshold else 0.0 for x in delta.tolist()]
    require_same_bits(found, torch.tensor(kept, dtype=F64))
    require_same_bits(trimmed(elsewhere(delta), threshold), found)
    require_same_bits(delta, before)


# --- agreement ---


def test_agreement_adds_and_counts_the_terms_of_the_elected_sign():
    terms = [[2.0, -1.0, 0.0, 3.0, -0.0], [1.0, 4.0, -5.0, -3.0, 0.0], [-4.0, 1.0, -1.0, 0.0, 0.0]]
    elected = torch.tensor([-1.0, 4.0, -6.0, 0.0, 1.0], dtype=F64)
    total, count = agreement([torch.tensor(term, dtype=F64) for term in terms], elected)
    assert total.tolist() == [-4.0, 5.0, -6.0, 0.0, 0.0]
    assert count.tolist() == [1.0, 2.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("size", [1.0, 1e-170, 1e-320, 1e155])
def test_both_forms_of_agreement_are_the_same(number, size):
    terms = [size * drawn(f"term {i}").mul(2).round() for i in range(number)]
    elected = torch.stack(terms).sum(0)
    elected[:3] = torch.tensor([0.0, -0.0, 1e-300])
    found = agreement(terms, elected)
    others = agreement([elsewhere(term) for term in terms], elsewhere(elected))
    for one, other in zip(found, others, strict=True):
        require_same_bits(one, other)


# --- count_magnitudes ---


def dense(delta: Tensor, low: int, shift: int, bins: int) -> tuple[Tensor, int]:
    """Return the histogram and how many lie above it, with nothing left out on the way."""
    place = (delta.abs().float().view(torch.int32).long() - low) >> shift
    inside = (place >= 0) & (place < bins)
    return torch.bincount(place[inside], minlength=bins), int((place >= bins).sum())


@pytest.mark.parametrize("count", [0, 1, 1_023, 1_024, 1_025, 4_000])
@pytest.mark.parametrize("of_bfloat16", [False, True])
def test_magnitudes_are_counted_by_their_bits(count, of_bfloat16):
    tuned, base = drawn("tuned").to(BF16), drawn("base").to(BF16)
    tuned[:6] = torch.tensor([0.0, -0.0, 3e38, -3e38, 1e-40, 1.0])  # the third overflows float32
    base[:6] = torch.tensor([0.0, 0.0, -3e38, 3e38, 0.0, 1.0])
    tuned, base = tuned[:count], base[:count]
    delta = difference(tuned, base)
    delta = delta if of_bfloat16 else delta * 1.1
    pair: Any = (tuned, base) if of_bfloat16 else (delta, None)
    one = 0x3F800000
    for low, shift, bins in [
        (0, 16, 2**16),
        (one, 0, 2**17),
        (one - 9, 0, 50),
        (1, 3, 7),
        (0, 16, 9),
    ]:
        counts = torch.full((bins,), 2)
        above, odd = count_magnitudes(*pair, low, shift, counts)
        expected, beyond = dense(delta, low, shift, bins)
        assert torch.equal(counts - 2, expected), (low, shift, bins)
        assert above == beyond
        assert odd == int(delta.float().isinf().sum())


# --- projection ---


@pytest.mark.parametrize("place", [here, elsewhere])
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("count", [0, 1, 17, 4_000])
def test_inner_products_are_those_of_exact_sums(place, dtype, count):
    base, change = drawn("base")[:count], 1e-2 * drawn("change")[:count]
    written = (base + change).to(dtype)
    made = written.double() - base
    pairs = [(base, base), (change, change), (made, change)]
    found = projection(base, change, place(written))
    for value, (one, other) in zip(found, pairs, strict=True):
        products = one * other
        exact, size = math.fsum(products.tolist()), math.fsum(products.abs().tolist())
        assert abs(value - exact) <= 1e-14 * size
