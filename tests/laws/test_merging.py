"""What merging promises: the ends of alpha, one rounding, symmetry, and the same bytes always."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import personality_vector as pv
from personality_vector import Checkpoint, Delta, Output, merge
from tests.rows import EVERY_ROW, NEUTRAL_ROWS

SINGLE = "model.safetensors"
DTYPES = ("float32", "bfloat16")
EVERY = pytest.mark.parametrize("dtype", DTYPES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("saved", [False, True], ids=["by reference", "saved"])
def test_alpha_1_restores_what_addition_cannot(merged, tmp_path, dtype, saved, require_same_bytes):
    """Values of every size, so that ``base + (tuned - base)`` is not ``tuned`` in float32."""
    drawn = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0))
    sizes = 10.0 ** torch.arange(-20_000, 0).div(4_000).flip(0)
    ends = [drawn[0].to(dtype), (drawn[1] * sizes).to(dtype)]
    ends[1][:2] = torch.tensor([-0.0, 1e-10])
    for name, tensor in zip(("base", "tuned"), ends, strict=True):
        (tmp_path / name).mkdir()
        save_file({"w": tensor}, tmp_path / name / SINGLE)
    base, where = tmp_path / "base", tmp_path / "tuned"
    if saved:
        where = Delta.between(base, where).save(tmp_path / "saved")
    require_same_bytes(merged(base, [(where, 1.0)]), {"w": ends[1]})


@EVERY_ROW
def test_alpha_0_is_the_base_for_every_method(
    pico, pico_tuned, merged, method, options, weights, require_same_bytes
):
    base, tuned = pico("phi", "bfloat16"), pico_tuned("phi", "bfloat16")
    found = merged(base, [(tuned, 0.0), (tuned, -0.0)], method=method, options=options)
    require_same_bytes(found, weights(base))


@NEUTRAL_ROWS
@EVERY
def test_alpha_1_of_a_whole_delta_is_the_fine_tuned_for_every_method(
    pico, pico_tuned, merged, dtype, method, options, weights, require_same_bytes
):
    base, tuned = pico("phi", dtype), pico_tuned("phi", dtype)
    found = merged(base, [(tuned, 1.0)], method=method, options=options)
    require_same_bytes(found, weights(tuned))


@EVERY_ROW
def test_alpha_and_minus_alpha_average_to_the_base(
    pico, pico_tuned, merged, method, options, weights
):
    base, tuned = pico("qwen2"), pico_tuned("qwen2")
    plus, minus = (
        merged(base, [(tuned, alpha)], method=method, options=options) for alpha in (0.8, -0.8)
    )
    for name, tensor in weights(base).items():
        middle = (plus[name].double() + minus[name].double()) / 2
        ulp = np.spacing(torch.maximum(plus[name].abs(), minus[name].abs()).numpy())
        assert bool(((middle - tensor).abs().numpy() <= ulp).all()), name
        assert not torch.equal(plus[name], minus[name]), name


@NEUTRAL_ROWS
@pytest.mark.parametrize("alpha", [0.7, -0.7])
def test_every_method_of_one_whole_delta_is_alpha_delta(
    pico, pico_tuned, merged, method, options, alpha, require_same_bytes, restated
):
    base, terms = pico("phi", "bfloat16"), [(pico_tuned("phi", "bfloat16"), alpha)]
    found = merged(base, terms, method=method, options=options)
    require_same_bytes(found, restated(base, terms))


@EVERY_ROW
def test_a_term_with_alpha_0_changes_nothing(
    pico, pico_tuned, merged, method, options, require_same_bytes
):
    base, tuned, other = pico("phi"), pico_tuned("phi"), pico_tuned("phi", seed=1)
    given = {"method": method, "options": options}
    alone = merged(base, [(tuned, 0.5)], **given)
    terms = [(other, 0.0), (tuned, -0.0), (tuned, 0.5), (other, -0.0)]
    require_same_bytes(merged(base, terms, **given), alone)
    with_zeros, without = pv.merged(base, terms, **given), pv.merged(base, [(tuned, 0.5)], **given)
    assert with_zeros.identity == without.identity


@EVERY_ROW
def test_the_order_of_terms_does_not_matter(
    pico, pico_tuned, merged, method, options, require_same_bytes
):
    base = pico("phi")
    terms = [(pico_tuned("phi", seed=seed), 0.3 + 0.1 * seed) for seed in range(3)]
    terms.append((pico_tuned("phi"), -0.2))
    orders = [terms, [terms[i] for i in (3, 1, 0, 2)]]
    given = {"method": method, "options": options, "seed": 5}
    require_same_bytes(*(merged(base, order, **given) for order in orders))
    one, other = (pv.merged(base, order, **given).identity for order in orders)
    assert one == other


@EVERY_ROW
def test_shards_and_threads_do_not_matter(
    pico, pico_tuned, merged, monkeypatch, require_same_bytes, method, options
):
    given = {"method": method, "options": options, "seed": 3}
    dtype = "bfloat16" if options else "float32"
    found = []
    for sharded in (False, True):
        base, *tuned = [
            pico("phi", dtype, sharded=sharded),
            *(pico_tuned("phi", dtype, seed, sharded=sharded) for seed in (0, 1)),
        ]
        terms = list(zip(tuned, (0.6, 0.3), strict=True))
        output = Output(shard_size="20KB" if sharded else "5GB")
        found.append(merged(base, terms, output=output, **given))
        monkeypatch.setenv("PVEC_THREADS", "3")
    require_same_bytes(found[1], found[0])


def test_stochastic_rounding_does_not_depend_on_shards_and_threads(
    large, merged, monkeypatch, require_same_bytes
):
    found = []
    for size, threads in (("5GB", "1"), ("20KB", "3")):
        monkeypatch.setenv("PVEC_THREADS", threads)
        output = Output(rounding="stochastic", shard_size=size)
        found.append(merged(large[0], [(large[1], 0.37)], output=output, seed=2))
    require_same_bytes(*found)
    nearest = merged(large[0], [(large[1], 0.37)])
    assert any(not torch.equal(nearest[name], tensor) for name, tensor in found[0].items())


@EVERY_ROW
def test_saving_a_delta_does_not_matter(
    pico, pico_tuned, merged, tmp_path, require_same_bytes, method, options
):
    """For bfloat16, whose differences are exact in the float32 of a saved delta."""
    base, tuned, other = (
        pico("phi", "bfloat16"),
        *(pico_tuned("phi", "bfloat16", seed) for seed in (0, 1)),
    )
    saved = Delta.between(base, tuned).save(tmp_path / "saved")
    found = [
        merged(base, [(where, 0.6), (other, -0.3)], method=method, options=options)
        for where in (tuned, saved)
    ]
    require_same_bytes(found[1], found[0])


def test_task_arithmetic_is_linear_in_alpha_and_lambda(
    pico, pico_tuned, merged, weights, require_same_bytes
):
    base, tuned = pico("gemma2"), pico_tuned("gemma2")
    start = weights(base)
    third, half, whole = (merged(base, [(tuned, alpha)]) for alpha in (0.3, 0.5, 0.8))
    for name, tensor in start.items():
        total = third[name] + half[name] - tensor
        torch.testing.assert_close(total, whole[name], rtol=1e-6, atol=1e-6)
    scaled = merged(base, [(tuned, 0.5)], options={"lambda": 2.0})
    require_same_bytes(scaled, weights(tuned))


def test_dare_masks_do_not_depend_on_other_terms(pico, pico_tuned, merged, weights):
    base, tuned, other = pico("phi"), pico_tuned("phi"), pico_tuned("phi", seed=1)
    given, start = {"method": "dare", "options": {"drop_rate": 0.8}}, weights(base)
    alone, second = merged(base, [(tuned, 0.5)], **given), merged(base, [(other, 1.5)], **given)
    both = merged(base, [(other, 1.5), (tuned, 0.5)], **given)
    for name, tensor in start.items():
        total = alone[name] + second[name] - tensor
        torch.testing.assert_close(both[name], total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("drop_rate", [0.2, 0.5, 0.9])
def test_dare_keeps_the_mean(pico, pico_tuned, merged, drop_rate, weights):
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
    """A base and two fine-tunes of several chunks: long rows, and more rows than a chunk holds."""
    drawn = torch.randn(3, 350_003, generator=torch.Generator().manual_seed(0)).bfloat16()
    ends = {"base": drawn[0], "one": drawn[0] + 0.01 * drawn[1], "two": drawn[0] + 0.01 * drawn[2]}
    for name, flat in ends.items():
        (tmp_path / name).mkdir()
        tensors = {
            "long": flat[:200_003].reshape(1, -1),
            "square": flat[200_003:340_003].reshape(700, 200),
            "vector": flat[340_003:],
        }
        save_file({key: t.clone() for key, t in tensors.items()}, tmp_path / name / SINGLE)
    return [tmp_path / name for name in ends]


@EVERY_ROW
def test_a_merge_is_a_delta_whose_entries_do_not_depend_on_how_it_is_cut(
    large, merged, require_same_bytes, weights, method, options
):
    """And base plus that delta, rounded once, is what a merge writes."""
    terms, given = [(large[1], 0.5), (large[2], -0.25)], {"method": method, "options": options}
    delta = pv.merged(large[0], terms, **given)
    found = {}
    for name, base in weights(large[0]).items():
        ends = sorted(
            {0, base.numel(), *(cut for cut in (1, 199, 200, 70_001) if cut < base.numel())}
        )
        parts = [delta.source.part(name, slice(*ends[i : i + 2])) for i in range(len(ends) - 1)]
        change = torch.cat(parts).reshape(base.shape)
        assert change.dtype == torch.float64
        found[name] = (base.double() + change).to(base.dtype)
    require_same_bytes(found, merged(large[0], terms, **given))


@NEUTRAL_ROWS
def test_a_merge_knows_the_fine_tuned_entries_where_it_is_one_delta(
    large, weights, method, options
):
    delta = pv.merged(large[0], [(large[1], 1.0)], method=method, options=options)
    halved = pv.merged(large[0], [(large[1], 0.5)], method=method, options=options)
    base, part = Checkpoint.open(large[0]), slice(70_000, 99_000)
    found = delta.source.tuned_part("square", part, base.part("square", part))
    assert torch.equal(found, weights(large[1])["square"].flatten()[part])
    assert halved.source.tuned_part("square", part, base.part("square", part)) is None


@EVERY_ROW
def test_no_file_depends_on_threads(large, tmp_path, monkeypatch, method, options):
    """Neither weights nor the sums in the manifest, for tensors of several chunks."""
    folders = []
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("PVEC_THREADS", threads)
        terms = [(large[1], 0.5), (large[2], -0.25)]
        out = tmp_path / f"threads-{threads}"
        folders.append(merge(large[0], terms, out=out, method=method, options=options).path)
    files = [{file.name: file.read_bytes() for file in out.iterdir()} for out in folders]
    assert files[0] == files[1] == files[2]
