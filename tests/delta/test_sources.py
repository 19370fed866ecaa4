"""What has no difference is refused: other tensors, other shapes, other integers, NaN."""

import pytest
import torch

from personality_vector.delta import Delta
from personality_vector.delta.sources import whole
from personality_vector.errors import NonFiniteError, TensorMismatchError

A = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("tuned", "said"),
    [
        ({"a": A}, "lacks b"),
        ({"a": A, "b": A, "c": A}, "adds c"),
        ({"a": A, "c": A}, "lacks b and adds c"),
        ({"a": A, "b": A.T}, r"b has shape \[3, 2\], in the base .* it is \[2, 3\]"),
        ({"a": A, "b": A[:1]}, r"b has shape \[1, 3\]"),
        ({"a": A, "b": A[None]}, r"b has shape \[1, 2, 3\]"),
        ({"a": A, "b": A.long()}, r"b is torch.int64, not torch.float32"),
    ],
    ids=["missing", "extra", "both", "transposed", "broadcastable", "one more axis", "integers"],
)
def test_other_tensors_are_refused_and_the_odd_model_is_named(toy, tuned, said):
    base = toy("base", a=A, b=A)
    with pytest.raises(TensorMismatchError, match=f"odd: .*{said}"):
        Delta.between(base, toy("odd", **tuned))


def test_integer_tensors_must_be_equal_and_have_no_delta(toy):
    count = torch.tensor([3, 4])
    base = toy("base", a=A, count=count)
    assert Delta.between(base, toy("tuned", a=A + 1, count=count)).names == ("a",)
    with pytest.raises(TensorMismatchError, match="odd: the integer tensor count differs"):
        Delta.between(base, toy("odd", a=A, count=count + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("end", ["base", "tuned"])
def test_nan_and_infinity_are_counted_and_their_file_named(toy, dtype, bad, end):
    damaged = A.to(dtype, copy=True)
    damaged[0, 1:] = bad
    paths = {
        name: toy(name, a=damaged if name == end else A.to(dtype)) for name in ("base", "tuned")
    }
    delta = Delta.between(paths["base"], paths["tuned"], label="x")
    file = paths[end] / "model.safetensors"
    with pytest.raises(NonFiniteError) as caught:
        delta["a"]
    assert str(caught.value).startswith(f"{file}: a: 2 of 6 values")
    assert caught.value.__notes__ == ["while at delta x, tensor a"]


def test_dtypes_may_differ_between_base_and_tuned(toy):
    delta = Delta.between(toy("base", a=A.bfloat16()), toy("tuned", a=A + 0.001))
    assert torch.equal(delta["a"], A + 0.001 - A)


def test_scalars_and_empty_tensors_have_deltas(toy):
    base = toy("base", s=torch.tensor(1.0), e=torch.zeros(0, 3))
    delta = Delta.between(base, toy("tuned", s=torch.tensor(3.0), e=torch.zeros(0, 3)))
    assert float(delta["s"]) == 2.0
    assert delta["e"].shape == (0, 3)
    assert delta.norm() == 2.0


def test_a_tensor_that_one_term_lacks_counts_as_zero(pico, pico_tuned, adapter):
    full = Delta.between(pico("llama"), pico_tuned("llama"))
    part = Delta.from_lora(adapter(), pico("llama"))
    total = full - 2.0 * part
    assert total.names == full.names
    product = 0.0
    for name in full.names:
        every = whole(full.source, name)
        expected = full.source.part(name, every)
        if name in part:
            there = part.source.part(name, every)
            product += float(expected @ there)
            expected = expected - 2.0 * there
        assert torch.equal(total.source.part(name, every), expected)
    assert full.dot(part) == part.dot(full) == pytest.approx(product, rel=1e-12)


@pytest.mark.parametrize("kind", ["difference", "float32", "bfloat16", "low-rank", "lora", "sum"])
def test_a_tensor_is_the_same_in_any_parts(pico, pico_tuned, adapter, tmp_path, kind):
    """The merge engine reads in chunks of its own; a part must not depend on its neighbours."""
    whole_delta = Delta.between(pico("llama"), pico_tuned("llama"))
    factored = Delta.from_lora(adapter(), pico("llama"))
    ready = {"difference": whole_delta, "sum": 0.3 * whole_delta - factored}
    if kind not in ready:
        delta = factored if kind == "lora" else whole_delta
        rank = 3 if kind == "low-rank" else None
        ready[kind] = Delta.load(delta.save(tmp_path / "saved", storage=kind, rank=rank))
    source = ready[kind].source
    for name in source.names:
        every = whole(source, name)
        parts = [slice(at, min(at + 1001, every.stop)) for at in range(0, every.stop, 1001)]
        joined = torch.cat([source.part(name, part) for part in parts])
        torch.testing.assert_close(joined, source.part(name, every), rtol=1e-14, atol=1e-17)
