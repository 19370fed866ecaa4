"""One rounding, to nearest or unbiased; and how much of the change survives it."""

import pytest
import torch

from personality_vector import Output, merge
from personality_vector.errors import NonFiniteError, RecipeError
from personality_vector.merging.rounding import Realised, round_to
from personality_vector.rng import key_for

KEY = key_for(0, "rounding")
STEP = 2.0**-7  # of bfloat16 between 1 and 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_nearest_is_that_of_torch(dtype):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(round_to(values, dtype, "nearest", KEY), values.to(dtype))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_stochastic_rounds_up_with_the_share_of_a_step(share, sign):
    values = torch.full((100_000,), sign * (1.0 + share * STEP))
    rounded = round_to(values, torch.bfloat16, "stochastic", KEY)
    assert set(rounded.float().unique().tolist()) <= {sign, sign * (1.0 + STEP)}
    away = (rounded.float() != sign).double().mean()
    assert abs(away - share) <= 4 * (share * (1 - share) / 100_000) ** 0.5 + 2.0**-16


def test_stochastic_leaves_what_is_a_bfloat16_already():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    edges = torch.tensor([0.0, -0.0, 1e-40, 3.38e38]).bfloat16()
    for exact in (values, edges):
        rounded = round_to(exact.float(), torch.bfloat16, "stochastic", KEY)
        assert torch.equal(rounded.view(torch.int16), exact.view(torch.int16))


def test_stochastic_depends_on_the_key_alone():
    values = torch.full((1000,), 1.0 + STEP / 2)
    one, two, other = (round_to(values, torch.bfloat16, "stochastic", k) for k in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_stochastic_to_another_dtype_is_refused(dtype):
    with pytest.raises(RecipeError, match="stochastic is for bfloat16"):
        round_to(torch.ones(2), dtype, "stochastic", KEY)


@pytest.mark.parametrize(
    ("value", "dtype", "rounding", "remedy"),
    [
        (65_520.0, torch.float16, "nearest", "output.dtype: float32"),
        (-1e6, torch.float16, "nearest", "output.dtype: float32"),
        (3.4e38, torch.bfloat16, "nearest", "output.dtype: float32"),
        (float("inf"), torch.float32, "nearest", "lower alpha"),
        (float("nan"), torch.float32, "nearest", "lower alpha"),
        (float("inf"), torch.bfloat16, "stochastic", "lower alpha"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(value, dtype, rounding, remedy):
    with pytest.raises(NonFiniteError, match=f"does not fit {dtype}; .*{remedy}"):
        round_to(torch.tensor([1.0, value]), dtype, rounding, KEY)


def test_empty_tensors_are_rounded():
    for rounding in ("nearest", "stochastic"):
        assert round_to(torch.zeros(0, 3), torch.bfloat16, rounding, KEY).shape == (0, 3)


def test_realised_is_the_projection():
    realised = Realised()
    assert realised.share is None
    assert realised.add(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0])) == pytest.approx(3 / 5)
    assert realised.add(torch.zeros(2), torch.zeros(2)) is None
    assert realised.add(torch.tensor([3.0]), torch.tensor([4.0])) == pytest.approx(12 / 9)
    assert realised.share == pytest.approx(15 / 14)


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
