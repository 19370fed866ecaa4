"""Task arithmetic against float64 of numpy, rounded once: every element of every tensor, exactly.

Where sums are exact in float64 the reference is the true sum, in whatever order it is added up.
"""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from personality_vector import Delta, Output, merge

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = {"layers.0.q_proj.weight": (300, 250), "layers.1.q_proj.weight": (130, 7), "norm": (33,)}
"""The first is larger than what a merge computes at once: 65,536 entries."""
EXACT = [0.5, -0.25, 0.75, 1.5, -1.0]
DECIMAL = [0.7, -0.3, 0.1, 1.3, -0.9]


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    return path


@pytest.fixture
def bench(tmp_path, weights):
    """Return ``draw(name, dtype, around=None)``: a checkpoint of values that sums keep exact.

    They are multiples of 2**-18 below 32, as far as the dtype has them.
    """

    def draw(name, dtype, around=None):
        generator = torch.Generator().manual_seed(hash_of(name))
        start = None if around is None else weights(around)
        tensors = {}
        for key, shape in SHAPES.items():
            steps = 0.05 if start else 1.0
            values = torch.randn(shape, generator=generator, dtype=torch.float64) * steps
            if start:
                values += start[key].double()
            tensors[key] = ((values * 2**18).round() / 2**18).to(dtype)
        return write(tmp_path / name, tensors)

    return draw


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big") % 2**31


@pytest.fixture
def reference(weights, rounded_once):
    """Return ``base + sum of alpha * delta`` in float64, in the order given, rounded once."""

    def run(base, terms, dtype=None):
        result = {}
        for name, tensor in weights(base).items():
            origin = tensor.double().numpy()
            change = np.zeros_like(origin)
            for delta_of, alpha in terms:
                change += alpha * delta_of(name, origin)
            result[name] = rounded_once(origin + change, dtype or tensor.dtype)
        return result

    return run


@pytest.fixture
def tuned(weights):
    """Return ``tuned(path)``: the delta of a fine-tuned model, as a function of the tensor."""

    def read(path):
        end = weights(path)
        return lambda name, origin: end[name].double().numpy() - origin

    return read


def nearest(value: Fraction, digits: int, lowest: int) -> Fraction:
    """Round a rational to ``digits`` binary digits, ties to even, in whole numbers."""
    exponent = lowest
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    step = Fraction(2) ** (exponent - digits + 1)
    return round(value / step) * step  # round() of a Fraction is to even


def test_the_rounding_of_the_oracle_is_right_and_that_of_torch(rounded_once):
    drawn = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ties = 1 + torch.arange(1, 200, 2).double() * 2.0**-8
    close = torch.cat([ties, ties + 2.0**-40, ties - 2.0**-40, ties + 2.0**-20, ties - 2.0**-20])
    tiny = torch.cat([drawn[:50] * 2.0**-126, drawn[50:90] * 2.0**-140, drawn[90:120] * 2.0**-15])
    values = torch.cat([drawn, close, -close, tiny, torch.zeros(1).double()])
    for dtype, digits, lowest in ((BF16, 8, -126), (F16, 11, -14), (F32, 24, -126)):
        found = rounded_once(values.numpy(), dtype)
        halfway = [nearest(Fraction(value), 24, -126) for value in values.tolist()]
        exact = [float(nearest(value, digits, lowest)) for value in halfway]
        assert found.double().tolist() == exact
        assert torch.equal(found, values.to(dtype))


@pytest.mark.parametrize("base_dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("mixed", [False, True], ids=["one dtype", "mixed"])
def test_every_element_is_the_true_sum_rounded_once(
    bench, reference, tuned, tmp_path, weights, require_same_bytes, base_dtype, count, mixed
):
    base = bench("base", base_dtype)
    dtypes = [F32, BF16, F16, F32, BF16] if mixed else [base_dtype] * 5
    ends = [bench(f"tuned-{i}", dtypes[i], base) for i in range(count)]
    terms = list(zip(ends, EXACT[:count], strict=True))
    for name, dtype in (("same", base_dtype), ("bfloat16", BF16), ("float32", F32)):
        path = merge(base, terms, out=tmp_path / name, output=Output(dtype=name)).path
        expected = reference(base, [(tuned(end), alpha) for end, alpha in terms], dtype)
        require_same_bytes(weights(path), expected)


@pytest.mark.parametrize(
    ("dtype", "count"),
    [*((dtype, n) for dtype in (BF16, F16) for n in range(1, 6)), (F32, 1), (F32, 2)],
    ids=str,
)
def test_decimal_alphas_too_are_float64_rounded_once(
    bench, reference, tuned, tmp_path, weights, require_same_bytes, dtype, count
):
    """In whatever order: decimals make ties between two numbers, and a tie is one in float32.

    In float32 the order of three terms and more counts, by a unit in the last place of float64; and
    so it does where a sum of decimals should be 0 and is some 1e-17 instead.
    """
    base = bench("base", dtype)
    ends = [bench(f"tuned-{i}", dtype, base) for i in range(count)]
    terms = list(zip(ends, DECIMAL[:count], strict=True))
    found = weights(merge(base, terms, out=tmp_path / "out").path)
    expected = reference(base, [(tuned(end), alpha) for end, alpha in terms])
    nothing = {name: (abs(found[name]) + abs(expected[name])) < 1e-15 for name in found}
    assert sum(int(mask.sum()) for mask in nothing.values()) < 20
    for table in (found, expected):
        for name, mask in nothing.items():
            table[name] = table[name].masked_fill(mask, 0.0)
    require_same_bytes(found, expected)


@pytest.mark.parametrize("dtype", [F32], ids=str)
def test_the_order_of_many_sums_moves_no_more_than_a_tie(
    bench, tuned, tmp_path, weights, rounded_once, dtype
):
    """With three terms and more the order counts, by a few units of float64 and no more."""
    base = bench("base", dtype)
    ends = [bench(f"tuned-{i}", dtype, base) for i in range(5)]
    terms = list(zip(ends, DECIMAL, strict=True))
    found = weights(merge(base, terms, out=tmp_path / "out").path)
    for name, tensor in weights(base).items():
        origin = tensor.double().numpy()
        changes = [alpha * tuned(end)(name, origin) for end, alpha in terms]
        total = origin + sum(changes)
        slack = 8 * 2.0**-53 * (abs(origin) + sum(map(abs, changes)))
        low, high = (rounded_once(total + side * slack, dtype) for side in (-1, 1))
        assert bool(((low <= found[name]) & (found[name] <= high)).all()), name
        assert bool((low == high).float().mean() > 0.75), name  # decimals make many ties


def test_the_sum_is_not_rounded_to_float32_on_the_way(tmp_path, weights):
    """Four terms, each too small for float32 beside 1 + 2**-8, together tip it over the middle."""
    ones = torch.ones(70_000)
    base = write(tmp_path / "base", {"w": ones})
    terms = [(write(tmp_path / "one", {"w": ones + 2.0**-8}), 1.0)]
    for number in range(4):
        small = write(tmp_path / f"small-{number}", {"w": ones + 2.0**-15 * (number + 4)})
        terms.append((small, 2.0**-10 / (number + 4)))
    path = merge(base, terms, out=tmp_path / "out", output=Output(dtype="bfloat16")).path
    assert weights(path)["w"].unique().tolist() == [1 + 2.0**-7]


@pytest.fixture
def adapter(tmp_path):
    """Return a LoRA adapter of rank 3 with factors that multiply exactly, and its delta."""
    generator = torch.Generator().manual_seed(5)
    factors, product = {}, {}
    for name, shape in SHAPES.items():
        if len(shape) == 2:
            up = torch.randint(-15, 16, (shape[0], 3), generator=generator) / 2**7
            down = torch.randint(-15, 16, (3, shape[1]), generator=generator) / 2**7
            module = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{module}.lora_B.weight"], factors[f"{module}.lora_A.weight"] = up, down
            product[name] = 2.0 * up.double().numpy() @ down.double().numpy()
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, lambda name, origin: product.get(name, np.zeros_like(origin))


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_lora_factors_are_multiplied_in_float64(
    bench, reference, adapter, tmp_path, weights, require_same_bytes, dtype
):
    base, (where, delta) = bench("base", dtype), adapter
    path = merge(base, [(where, -0.75)], out=tmp_path / "out").path
    require_same_bytes(weights(path), reference(base, [(delta, -0.75)]))


@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_a_saved_delta_is_what_was_stored(
    bench, reference, tuned, tmp_path, weights, rounded_once, require_same_bytes, dtype, stored
):
    base = bench("base", dtype)
    end = bench("tuned", dtype, base)
    where = Delta.between(base, end).save(tmp_path / "saved", storage=stored)

    def delta(name, origin):
        exact = tuned(end)(name, origin)
        return rounded_once(exact, getattr(torch, stored)).double().numpy()

    path = merge(base, [(where, 0.75)], out=tmp_path / "out").path
    require_same_bytes(weights(path), reference(base, [(delta, 0.75)]))


def test_terms_of_every_kind_add_up(
    bench, reference, tuned, adapter, tmp_path, weights, require_same_bytes
):
    base = bench("base", BF16)
    one, two = bench("one", F32, base), bench("two", BF16, base)
    saved = Delta.between(base, two).save(tmp_path / "saved")
    terms = [(one, 0.5), (adapter[0], -1.5), (saved, 0.25), (Delta.between(base, two), 0.25)]
    path = merge(base, terms, out=tmp_path / "out").path
    deltas = [tuned(one), adapter[1], tuned(two), tuned(two)]
    alphas = [alpha for _, alpha in terms]
    require_same_bytes(weights(path), reference(base, list(zip(deltas, alphas, strict=True))))
