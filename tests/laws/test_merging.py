"""What merging promises: the ends of alpha, one rounding, symmetry, and the same bytes always."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector import Delta, Output, merge

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi")
DTYPES = ("float32", "bfloat16")
EVERY = pytest.mark.parametrize("dtype", DTYPES)
METHODS = pytest.mark.parametrize(
    ("method", "options"),
    [
        ("task_arithmetic", {}),
        ("ties", {"density": 0.3}),
        ("ties", {"density": 0.3, "trim": "per_tensor", "consensus": "sum", "lambda": 1.5}),
        ("dare", {"drop_rate": 0.5}),
        ("dare_ties", {"drop_rate": 0.3}),
        ("dare_ties", {"drop_rate": 0.3, "consensus": "sum"}),
    ],
)
WHOLE = pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ties", {"density": 1.0}),
        ("ties", {"density": 1.0, "trim": "per_tensor", "consensus": "sum"}),
        ("dare", {"drop_rate": 0.0}),
        ("dare_ties", {"drop_rate": 0.0}),
    ],
)


def weights(path: Path) -> dict[str, torch.Tensor]:
    files = sorted(path.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def require_same_bytes(found: dict, expected: dict) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.fixture
def merged(tmp_path):
    """Return ``merged(base, terms, ...)``: the tensors that a merge wrote."""
    numbers = itertools.count()

    def run(base, terms, **given):
        out = tmp_path / f"merged-{next(numbers)}"
        return weights(merge(base, terms, out=out, **given).path)

    return run


def in_shards(source: Path, out: Path) -> Path:
    """Return a copy of a checkpoint with every third tensor in a shard of its own."""
    out.mkdir()
    shutil.copy(source / "config.json", out)
    found, weight_map = weights(source), {}
    for part in range(3):
        names = sorted(found)[part::3]
        file = f"model-{part + 1:05}-of-00003.safetensors"
        save_file({name: found[name] for name in names}, out / file)
        weight_map |= dict.fromkeys(names, file)
    index = out / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return out


def rounded(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Round float32 to nearest, ties to even, by arithmetic on the bits."""
    if dtype == torch.float32:
        return torch.from_numpy(values)
    bits = values.view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return torch.from_numpy(upper.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


def restated(base: Path, terms: list[tuple[Path, float]]) -> dict[str, torch.Tensor]:
    """``base + sum of alpha * (tuned - base)`` in numpy float32, rounded once."""
    start, ends = weights(base), [(weights(tuned), np.float32(alpha)) for tuned, alpha in terms]
    result = {}
    for name, tensor in start.items():
        origin = tensor.float().numpy()
        change = sum(alpha * (end[name].float().numpy() - origin) for end, alpha in ends)
        result[name] = rounded(origin + change, tensor.dtype)
    return result


@pytest.mark.parametrize("family", FAMILIES)
@EVERY
@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "shards"])
def test_the_ends_of_alpha_are_the_base_and_the_fine_tuned_byte_for_byte(
    pico, pico_tuned, merged, tmp_path, family, dtype, sharded
):
    base, tuned = pico(family, dtype), pico_tuned(family, dtype)
    if sharded:
        base, tuned = in_shards(base, tmp_path / "b"), in_shards(tuned, tmp_path / "t")
    delta = Delta.between(base, tuned)
    where = delta.save(tmp_path / "saved") if sharded else delta
    output = Output(shard_size="30KB" if sharded else "5GB")
    require_same_bytes(merged(base, [(where, 0.0)], output=output), weights(base))
    require_same_bytes(merged(base, [(where, 1.0)], output=output), weights(tuned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saved", [False, True], ids=["by reference", "saved"])
def test_alpha_1_restores_what_addition_cannot(merged, tmp_path, dtype, saved):
    """Values of every size, so that ``base + (tuned - base)`` is not ``tuned`` in float32."""
    drawn = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    sizes = 10.0 ** torch.arange(-20_000, 0).div(4_000).flip(0)
    ends = [drawn[0].to(dtype), (drawn[1] * sizes).to(dtype)]
    ends[1][:2] = torch.tensor([-0.0, 1e-10])
    for name, tensor in zip(("base", "tuned"), ends, strict=True):
        (tmp_path / name).mkdir()
        save_file({"w": tensor}, tmp_path / name / "model.safetensors")
    base, where = tmp_path / "base", tmp_path / "tuned"
    if saved:
        where = Delta.between(base, where).save(tmp_path / "saved")
    require_same_bytes(merged(base, [(where, 1.0)]), {"w": ends[1]})


@METHODS
def test_alpha_0_is_the_base_for_every_method(pico, pico_tuned, merged, method, options):
    base, tuned = pico("phi", "bfloat16"), pico_tuned("phi", "bfloat16")
    found = merged(base, [(tuned, 0.0), (tuned, -0.0)], method=method, options=options)
    require_same_bytes(found, weights(base))


@WHOLE
@EVERY
def test_alpha_1_of_a_whole_delta_is_the_fine_tuned_for_every_method(
    pico, pico_tuned, merged, dtype, method, options
):
    base, tuned = pico("phi", dtype), pico_tuned("phi", dtype)
    found = merged(base, [(tuned, 1.0)], method=method, options=options)
    require_same_bytes(found, weights(tuned))


@pytest.mark.parametrize("family", FAMILIES)
@EVERY
def test_arithmetic_is_float32_with_one_rounding(pico, pico_tuned, merged, family, dtype):
    base = pico(family, dtype)
    terms = [(pico_tuned(family, dtype), 0.7), (pico_tuned(family, dtype, 1), -0.3)]
    require_same_bytes(merged(base, terms), restated(base, terms))


@METHODS
def test_alpha_and_minus_alpha_average_to_the_base(pico, pico_tuned, merged, method, options):
    base, tuned = pico("qwen2"), pico_tuned("qwen2")
    plus, minus = (
        merged(base, [(tuned, alpha)], method=method, options=options) for alpha in (0.8, -0.8)
    )
    for name, tensor in weights(base).items():
        middle = (plus[name].double() + minus[name].double()) / 2
        ulp = np.spacing(torch.maximum(plus[name].abs(), minus[name].abs()).numpy())
        assert bool(((middle - tensor).abs().numpy() <= ulp).all()), name
        assert not torch.equal(plus[name], minus[name]), name


@WHOLE
@pytest.mark.parametrize("alpha", [0.7, -0.7])
def test_every_method_of_one_whole_delta_is_alpha_delta(
    pico, pico_tuned, merged, method, options, alpha
):
    base, terms = pico("phi", "bfloat16"), [(pico_tuned("phi", "bfloat16"), alpha)]
    found = merged(base, terms, method=method, options=options)
    require_same_bytes(found, restated(base, terms))


@METHODS
def test_a_term_with_alpha_0_changes_nothing(pico, pico_tuned, merged, method, options):
    base, tuned, other = pico("phi"), pico_tuned("phi"), pico_tuned("phi", seed=1)
    given = {"method": method, "options": options}
    alone = merged(base, [(tuned, 0.5)], **given)
    terms = [(other, 0.0), (tuned, -0.0), (tuned, 0.5), (other, -0.0)]
    require_same_bytes(merged(base, terms, **given), alone)


@METHODS
def test_the_order_of_terms_does_not_matter(pico, pico_tuned, merged, method, options):
    base = pico("phi")
    terms = [(pico_tuned("phi", seed=seed), 0.3 + 0.1 * seed) for seed in range(3)]
    terms.append((pico_tuned("phi"), -0.2))
    orders = [terms, [terms[i] for i in (3, 1, 0, 2)]]
    found = [merged(base, order, method=method, options=options, seed=5) for order in orders]
    require_same_bytes(found[1], found[0])


@METHODS
def test_shards_storage_and_threads_do_not_matter(
    pico, pico_tuned, merged, tmp_path, method, options
):
    base, tuned, other = pico("phi"), pico_tuned("phi"), pico_tuned("phi", seed=1)
    given = {"method": method, "options": options}
    expected = merged(base, [(tuned, 0.6), (other, 0.3)], **given)
    saved = Delta.between(base, tuned).save(tmp_path / "saved")
    pieces = [in_shards(path, tmp_path / name) for name, path in (("b", base), ("o", other))]
    torch.set_num_threads(3)
    try:
        small = Output(shard_size="20KB")
        found = merged(pieces[0], [(saved, 0.6), (pieces[1], 0.3)], output=small, **given)
    finally:
        torch.set_num_threads(1)
    require_same_bytes(found, expected)


def test_task_arithmetic_is_linear_in_alpha_and_lambda(pico, pico_tuned, merged):
    base, tuned = pico("gemma2"), pico_tuned("gemma2")
    start = weights(base)
    third, half, whole = (merged(base, [(tuned, alpha)]) for alpha in (0.3, 0.5, 0.8))
    for name, tensor in start.items():
        total = third[name] + half[name] - tensor
        torch.testing.assert_close(total, whole[name], rtol=1e-6, atol=1e-6)
    scaled = merged(base, [(tuned, 0.5)], options={"lambda": 2.0})
    require_same_bytes(scaled, weights(tuned))


def test_dare_masks_do_not_depend_on_other_terms(pico, pico_tuned, merged):
    base, tuned, other = pico("phi"), pico_tuned("phi"), pico_tuned("phi", seed=1)
    given, start = {"method": "dare", "options": {"drop_rate": 0.8}}, weights(base)
    alone, second = merged(base, [(tuned, 0.5)], **given), merged(base, [(other, 1.5)], **given)
    both = merged(base, [(other, 1.5), (tuned, 0.5)], **given)
    for name, tensor in start.items():
        total = alone[name] + second[name] - tensor
        torch.testing.assert_close(both[name], total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("drop_rate", [0.2, 0.5, 0.9])
def test_dare_keeps_the_mean(pico, pico_tuned, merged, drop_rate):
    base, tuned = pico("llama"), pico_tuned("llama")
    start, end = weights(base), weights(tuned)
    names = sorted(start)
    found = merged(base, [(tuned, 1.0)], method="dare", options={"drop_rate": drop_rate}, seed=1)
    change, delta = (
        torch.cat([(w[name] - start[name]).double().flatten() for name in names])
        for w in (found, end)
    )
    changed = delta != 0
    spread = (drop_rate / (1 - drop_rate) * delta.pow(4).sum()).sqrt() / delta.pow(2).sum()
    assert abs((change @ delta) / (delta @ delta) - 1.0) < 4 * spread
    kept = (change[changed] != 0).double().mean()
    assert abs(kept - (1 - drop_rate)) < 4 * (drop_rate * (1 - drop_rate) / len(delta)) ** 0.5
    share = (change / delta)[change != 0].median()
    assert share == pytest.approx(1 / (1 - drop_rate), rel=1e-4)


def test_seeds_draw_other_masks_and_a_delta_given_twice_draws_two(pico, pico_tuned, merged):
    base, tuned = pico("phi"), pico_tuned("phi")
    given = {"method": "dare", "options": {"drop_rate": 0.5}}
    one, two = (merged(base, [(tuned, 1.0)], seed=seed, **given) for seed in (0, 1))
    twice = merged(base, [(tuned, 0.5), (tuned, 0.5)], **given)
    for name in ("lm_head.weight", "model.layers.0.mlp.fc1.weight"):
        assert not torch.equal(one[name], two[name])
        assert not torch.equal(one[name], twice[name])


def test_the_same_recipe_writes_the_same_files(pico, pico_tuned, tmp_path):
    base, tuned = pico("phi", "bfloat16"), pico_tuned("phi", "bfloat16")
    for name in ("one", "two"):
        merge(base, [(tuned, 0.4)], out=tmp_path / name, output=Output(rounding="stochastic"))
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "two").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.fixture
def large(tmp_path):
    """A base and a fine-tune with one tensor that torch splits among threads."""
    base = torch.randn(700, 500, generator=torch.Generator().manual_seed(0))
    for name, tensor in (("base", base), ("tuned", base + 0.01 * base.flip(0))):
        (tmp_path / name).mkdir()
        save_file({"w": tensor}, tmp_path / name / "model.safetensors")
    return tmp_path / "base", tmp_path / "tuned"


def test_the_manifest_does_not_depend_on_threads(large, tmp_path):
    manifests = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        try:
            merge(large[0], [(large[1], 0.5)], out=tmp_path / f"{threads}", method="ties")
        finally:
            torch.set_num_threads(1)
        manifests.append((tmp_path / f"{threads}" / "MANIFEST.json").read_text())
    assert manifests[0] == manifests[1] == manifests[2]
