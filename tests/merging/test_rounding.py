"""One rounding, to nearest or unbiased; and how much of the change survives it."""

import pytest
import torch
from torch import Tensor

from personality_vector import Output, merge
from personality_vector.errors import NonFiniteError, RecipeError
from personality_vector.merging.loop import Cast, Squares, require_stochastic
from personality_vector.numeric.random import generator_for, key_for

BF16, F64 = torch.bfloat16, torch.float64
KEY = key_for(0, "rounding")
STEP = 2.0**-7  # of bfloat16 between 1 and 2


def drawn(count: int) -> Tensor:
    return torch.randn(count, generator=generator_for(0, "rounding"), dtype=F64)


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32, F64])
def test_nearest_rounds_once(dtype, rounded_once):
    values = drawn(10_000)
    expected = values if dtype == F64 else rounded_once(values.numpy(), dtype)
    assert torch.equal(Cast(dtype).rounded(values), expected)
    assert torch.equal(Cast(dtype, "nearest", KEY).rounded(values, 5), expected)


# --- stochastic ---


@pytest.mark.parametrize("share", [0.0, 2.0**-40, 0.1, 0.5, 0.9, 1 - 2.0**-40])
@pytest.mark.parametrize("low", [1.0, -1.0, 2.0**-133, -(2.0**-20), 3.0e38])
def test_stochastic_goes_away_from_zero_with_the_share_of_a_step(share, low):
    """Within four standard errors, and the 2**-16 of a step that 16 random bits tell apart."""
    near = torch.tensor([low], dtype=F64).to(BF16)
    far = (near.view(torch.int16) + 1).view(BF16)
    values = (near.double() + share * (far.double() - near.double())).repeat(100_000)
    rounded = Cast(BF16, "stochastic", KEY).rounded(values)
    assert set(rounded.tolist()) <= {near.item(), far.item()}
    went = (rounded == far).double().mean()
    spread = max(share * (1 - share), 2.0**-16)
    assert abs(went - share) <= 4 * (spread / 100_000) ** 0.5 + 2.0**-16


def test_the_mean_of_stochastic_roundings_is_the_value():
    values, count = drawn(50), 4_000
    found = torch.stack([Cast(BF16, "stochastic", key).rounded(values) for key in range(count)])
    step = 2.0 ** (values.abs().log2().floor() - 7)
    assert bool(((found.double().mean(0) - values).abs() <= 5 * step / 2 / count**0.5).all())


def test_stochastic_leaves_what_is_a_bfloat16_already():
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(BF16)
    every = every[torch.isfinite(every)]
    rounded = Cast(BF16, "stochastic", KEY).rounded(every.double())
    assert torch.equal(rounded.view(torch.int16), every.view(torch.int16))


def test_stochastic_depends_on_the_key_and_the_place_alone():
    values = torch.full((1000,), 1.0 + STEP / 2, dtype=F64)
    one, two, other = (Cast(BF16, "stochastic", k).rounded(values) for k in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    parts = [Cast(BF16, "stochastic", 1).rounded(values[a:b], a) for a, b in ((0, 1), (1, 1000))]
    assert torch.equal(torch.cat(parts), one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, F64])
def test_stochastic_to_another_dtype_is_refused(dtype):
    with pytest.raises(RecipeError, match=f"stochastic is for bfloat16 outputs, .*{dtype}"):
        Cast(dtype, "stochastic", KEY).rounded(drawn(2))
    with pytest.raises(RecipeError, match="stochastic"):
        require_stochastic(dtype)
    require_stochastic(BF16)


# --- what does not fit ---


@pytest.mark.parametrize(
    ("value", "dtype", "rounding", "remedy"),
    [
        (65_520.0, torch.float16, "nearest", "output.dtype: float32"),
        (-1e6, torch.float16, "nearest", "output.dtype: float32"),
        (3.4e38, BF16, "nearest", "output.dtype: float32"),
        (1e39, torch.float32, "nearest", "lower alpha"),
        (-1e39, BF16, "nearest", "lower alpha"),
        (float("inf"), torch.float32, "nearest", "lower alpha"),
        (float("nan"), torch.float32, "nearest", "lower alpha"),
        (float("nan"), BF16, "nearest", "lower alpha"),
        (float("inf"), F64, "nearest", "lower alpha"),
        (float("inf"), BF16, "stochastic", "lower alpha"),
        (float("nan"), BF16, "stochastic", "lower alpha"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(value, dtype, rounding, remedy):
    with pytest.raises(NonFiniteError, match=f"does not fit {dtype}; .*{remedy}"):
        Cast(dtype, rounding, KEY).rounded(torch.tensor([1.0, value], dtype=F64))


@pytest.mark.parametrize("value", [65_519.0, -65_519.99])
def test_what_rounds_down_to_the_largest_fits(value):
    found = Cast(torch.float16).rounded(torch.tensor([value], dtype=F64))
    assert found.abs().tolist() == [torch.finfo(torch.float16).max]


def test_no_entries_are_rounded_to_none():
    for rounding in ("nearest", "stochastic"):
        assert Cast(BF16, rounding, KEY).rounded(drawn(0)).shape == (0,)


# --- what survives ---


def test_realised_is_the_projection():
    parts = [Squares(1.0, 5.0, 3.0), Squares(), Squares(2.0, 9.0, 12.0)]
    assert [part.share for part in parts] == [3 / 5, None, 12 / 9]
    assert parts[0].plus(parts[1]).plus(parts[2]).share == 15 / 14
    assert Squares.total(parts) == (3.0, 14.0, 15.0)
    assert Squares.total([]) == Squares()


@pytest.fixture
def small_edit(toy):
    """A bfloat16 base of ones, and a fine-tune whose edits at alpha 0.1 are below half a step.

    Half of the entries move by 0.4 steps at alpha 0.1 and half by 0.8: nearest rounds the former
    to nothing and the latter to a whole step.
    """
    edits = torch.tensor([4.0, 8.0]).repeat(20_000) * STEP
    return toy("base", w=torch.ones(40_000).bfloat16()), toy("tuned", w=(1.0 + edits).bfloat16())


def test_nearest_realises_less_than_alpha_of_small_edits(small_edit, tmp_path):
    base, tuned = small_edit
    report = merge(base, [(tuned, 0.1)], out=tmp_path / "out")
    assert report.realised == pytest.approx((0.8 * 1.0) / (0.4**2 + 0.8**2), rel=1e-5)
    lost = merge(base, [(tuned, 0.05)], out=tmp_path / "lost")
    assert lost.realised == 0.0
    assert lost.manifest["realised"] == lost.manifest["tensors"]["w"]["realised"] == 0.0


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1, -0.1])
def test_stochastic_realises_alpha(small_edit, tmp_path, alpha):
    base, tuned = small_edit
    output = Output(rounding="stochastic")
    report = merge(base, [(tuned, alpha)], out=tmp_path / "out", output=output)
    # Below 1, where steps are half as large, as above.
    assert report.realised == pytest.approx(1.0, abs=0.02 if abs(alpha) > 0.04 else 0.06)
    again = merge(base, [(tuned, alpha)], out=tmp_path / "again", output=output)
    other = merge(base, [(tuned, alpha)], out=tmp_path / "other", output=output, seed=1)
    files = [r.path / "model.safetensors" for r in (report, again, other)]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
