"""Save, then load, is the identity; what is lost is in the record, and what is damaged is named."""

import json
import math
import shutil

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta, open_delta
from personality_vector.delta.lora import Adapter
from personality_vector.delta.record import Total, read_record
from personality_vector.delta.sources import whole
from personality_vector.errors import (
    CheckpointError,
    NonFiniteError,
    OutputExistsError,
    PersonalityVectorError,
    RecipeError,
)

TINY, SMALLEST = 1e-10, 1e-45
ADVERSARIAL = [
    (base, tuned)
    for base in (1.0, -1.0, 0.0, -0.0, 3e38, TINY, SMALLEST, 0.1)
    for tuned in (1e-10, -1e-10, 0.0, -0.0, 1.0, 1e-38, SMALLEST, -SMALLEST, 0.3, 16777217.0)
]
KINDS = [("float32", None), ("bfloat16", None), ("low-rank", 3), ("reference", None)]
EVERY_KIND = pytest.mark.parametrize(("storage", "rank"), KINDS, ids=[kind for kind, _ in KINDS])


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def exact(delta, name):
    return delta.source.part(name, whole(delta.source, name))


def restored(delta, name, base):
    return delta.source.tuned_part(name, slice(0, base.numel()), base.reshape(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_float32_restores_adversarial_values_bit_for_bit(toy, tmp_path, dtype, base_dtype):
    columns = torch.tensor(ADVERSARIAL, dtype=torch.float64).T
    largest = torch.finfo(dtype).max
    start, end = columns[0].to(base_dtype), columns[1].clamp(-largest, largest).to(dtype)
    base, tuned = toy("base", a=start), toy("tuned", a=end)
    loaded = Delta.load(Delta.between(base, tuned).save(tmp_path / "saved"))
    found = restored(loaded, "a", start)
    assert found.dtype == dtype
    assert torch.equal(bits(found), bits(end))


def test_float32_restores_random_values_of_every_size_bit_for_bit_in_any_parts(toy, tmp_path):
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (2, 20_000), generator=generator).int()
    start, end = torch.nan_to_num(words.view(torch.float32) / 4, nan=1.0)
    loaded = Delta.load(Delta.between(toy("b", a=start), toy("t", a=end)).save(tmp_path / "saved"))
    assert torch.equal(bits(restored(loaded, "a", start)), bits(end))
    for first, last in ((0, 1), (0, 7), (7, 4096), (4096, 19_999), (19_999, 20_000)):
        part = slice(first, last)
        found = loaded.source.tuned_part("a", part, start[part])
        assert torch.equal(bits(found), bits(end[part]))


def test_a_tensor_of_several_parts_is_stored_whole(toy, tmp_path, monkeypatch):
    monkeypatch.setattr("personality_vector.numeric.parallel._PIECE", 64)
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 1001, generator=generator)
    end[::7] = 0.0
    end[::5] = 1e-12
    delta = Delta.between(toy("b", a=start), toy("t", a=end))
    loaded = Delta.load(delta.save(tmp_path / "saved"))
    assert torch.equal(bits(restored(loaded, "a", start)), bits(end))
    row = read_record(tmp_path / "saved").tensors["a"]
    change = end.double() - start.double()
    assert row.norm == pytest.approx(float(change.norm()), rel=1e-8)
    assert row.zeros == pytest.approx(float((change == 0).double().mean()), rel=1e-8)
    assert loaded.verify() > 0


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("storage", ["float32", "reference"])
def test_save_then_load_is_the_identity(pico, pico_tuned, tmp_path, family, dtype, storage):
    base, tuned = pico(family, dtype), pico_tuned(family, dtype)
    delta = Delta.between(base, tuned, pole="openness:high", label="mine")
    loaded = Delta.load(delta.save(tmp_path / "saved", storage=storage))
    kept = [(d.names, d.base, d.identity, d.label, d.pole) for d in (delta, loaded)]
    assert kept[0] == kept[1]
    end = Checkpoint.open(tuned)
    for name in delta.names:
        assert torch.equal(loaded[name], delta[name])
        found = restored(loaded, name, delta.source.base[name])
        assert torch.equal(bits(found), bits(end[name]))


def test_bfloat16_is_the_nearest_and_another_identity(pair, tmp_path):
    delta = pair[0]
    loaded = Delta.load(delta.save(tmp_path / "saved", storage="bfloat16"))
    assert loaded.identity != delta.identity
    assert loaded.base == delta.base
    for name in delta.names:
        found, wanted = exact(loaded, name), exact(delta, name)
        assert torch.equal(found, found.bfloat16().double())
        # Within half a unit of the last of 8 bits, so no other bfloat16 is nearer.
        half = torch.ldexp(torch.ones_like(wanted), torch.frexp(wanted).exponent - 9)
        assert bool(((found - wanted).abs() <= half).all())
        assert restored(loaded, name, delta.source.base[name]) is None


@EVERY_KIND
def test_the_record_says_how_long_it_is_and_what_was_lost(pair, tmp_path, storage, rank):
    delta = pair[0]
    loaded = Delta.load(delta.save(tmp_path / "saved", storage=storage, rank=rank))
    record = read_record(tmp_path / "saved")
    near = {"rel": 1e-6, "abs": 1e-9}
    for name in delta.names:
        row, wanted, found = record.tensors[name], exact(delta, name), exact(loaded, name)
        assert row.shape == delta.shape(name)
        assert row.norm == pytest.approx(float(wanted.norm()), **near)
        assert row.stored_norm == pytest.approx(float(found.norm()), **near)
        lost = float((found - wanted).norm() / wanted.norm())
        assert row.loss == pytest.approx(lost, **near)
        assert row.zeros == pytest.approx(float((wanted == 0).double().mean()), **near)
    assert record.total.norm == pytest.approx(delta.norm(), **near)
    assert record.total.loss == pytest.approx((loaded - delta).norm() / delta.norm(), **near)
    assert (record.total.loss < 1e-7) == (storage in ("float32", "reference"))
    assert (loaded.identity == delta.identity) == (storage in ("float32", "reference"))


def test_totals_are_those_of_the_groups(pair, tmp_path):
    record = read_record(pair[0].save(tmp_path / "saved"))
    layers = record.totals(lambda name: "attention" if "self_attn" in name else "rest")
    assert set(layers) == {"attention", "rest"}
    assert sum(total.parameters for total in layers.values()) == record.total.parameters
    squares = sum(total.norm**2 for total in layers.values())
    assert math.sqrt(squares) == pytest.approx(record.total.norm)
    assert Total.of([]) == Total(0, 0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("make", [lambda a, b: 0.5 * a - b, lambda a, _: -a], ids=["sum", "minus"])
def test_a_combination_is_saved_as_its_value(pair, tmp_path, make):
    delta = make(*pair)
    loaded = Delta.load(delta.save(tmp_path / "saved"))
    assert loaded.identity == delta.identity
    assert all(torch.equal(loaded[name], delta[name]) for name in delta.names)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_an_adapter_stays_factored_and_is_the_same_delta(pico, adapter, tmp_path, family, options):
    path = adapter(family, **options)
    delta = Delta.from_lora(path, pico(family), pole="openness:high")
    once = Delta.load(delta.save(tmp_path / "one", storage="lora"))
    shutil.rmtree(path)
    twice = Delta.load(once.save(tmp_path / "two", storage="lora"))
    dense = Delta.load(once.save(tmp_path / "dense"))
    for loaded in (once, twice, dense):
        assert (loaded.names, loaded.base) == (delta.names, delta.base)
        assert (loaded.identity, loaded.pole) == (delta.identity, delta.pole)
    for name in once.names:
        assert torch.equal(exact(once, name), exact(twice, name))
        assert torch.equal(once[name], dense[name])
    sizes = [(tmp_path / name / "delta.safetensors").stat().st_size for name in ("one", "dense")]
    assert sizes[0] < sizes[1] / 3
    assert once.verify() == 2 * len(once.names)


def test_a_stored_adapter_is_the_adapter_bit_for_bit(pico, adapter, tmp_path):
    delta = Delta.from_lora(adapter(), pico("llama"))
    loaded = Delta.load(delta.save(tmp_path / "saved", storage="lora"))
    assert isinstance(loaded.source, Adapter)
    assert all(torch.equal(exact(loaded, name), exact(delta, name)) for name in delta.names)
    assert open_delta(tmp_path / "saved", Checkpoint.open(pico("llama"))).identity == delta.identity


def test_only_an_adapter_is_kept_as_factors(pair, pico, adapter, tmp_path):
    factored = Delta.from_lora(adapter(), pico("llama"), label="factored")
    for delta in (pair[0], pair[0] + factored):
        with pytest.raises(RecipeError, match=r"is not made of LoRA adapters.*use --low-rank R"):
            delta.save(tmp_path / "saved", storage="lora")
    assert not (tmp_path / "saved").exists()


def test_a_sum_of_adapters_keeps_the_factors_of_both(pico, adapter, tmp_path):
    """Of other ranks, scalings and modules, too."""
    one = Delta.from_lora(adapter(), pico("llama"))
    two = Delta.from_lora(
        adapter(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj"]), pico("llama")
    )
    for number, delta in enumerate((0.5 * one, one - 0.25 * two, 0.3 * two + 0.1 * one)):
        delta.save(tmp_path / str(number), storage="lora")
        loaded = Delta.load(tmp_path / str(number))
        for name in delta.names:
            torch.testing.assert_close(loaded[name], delta[name], rtol=1e-6, atol=1e-8)
        assert read_record(tmp_path / str(number)).total.loss < 1e-6
        assert loaded.verify()


def test_saving_a_loaded_delta_again_loses_nothing(toy, tmp_path):
    start, end = torch.ones(4), torch.tensor([1e-10, -0.0, 3.0, 1.0])
    delta = Delta.between(toy("base", a=start), toy("tuned", a=end))
    again = Delta.load(Delta.load(delta.save(tmp_path / "one")).save(tmp_path / "two"))
    assert again.identity == delta.identity
    found = restored(again, "a", start)
    assert found is not None
    assert torch.equal(bits(found), bits(end))
    assert again.verify() == 3  # the tensor, and where and what its exact values are


# By reference.


def copies(pico, pico_tuned, tmp_path):
    base = shutil.copytree(pico("llama"), tmp_path / "base")
    tuned = shutil.copytree(pico_tuned("llama"), tmp_path / "tuned")
    return base, tuned


def test_a_reference_is_small_and_holds_no_tensors(pico, pico_tuned, tmp_path):
    base, tuned = copies(pico, pico_tuned, tmp_path)
    saved = Delta.between(base, tuned).save(tmp_path / "saved", storage="reference")
    assert not list(saved.glob("*.safetensors"))
    reference = read_record(saved).reference
    assert (reference.base, reference.tuned) == (str(base), str(tuned))


@pytest.mark.parametrize("which", ["base", "tuned"])
def test_a_reference_to_what_was_moved_is_one_sentence(pico, pico_tuned, tmp_path, which):
    base, tuned = copies(pico, pico_tuned, tmp_path)
    saved = Delta.between(base, tuned).save(tmp_path / "saved", storage="reference")
    (tmp_path / which).rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"saved: .*{which}, which is not there; put it ba"):
        Delta.load(saved)


@pytest.mark.parametrize("which", ["base", "tuned"])
def test_a_reference_to_what_was_changed_is_one_sentence(pico, pico_tuned, tmp_path, which):
    base, tuned = copies(pico, pico_tuned, tmp_path)
    saved = Delta.between(base, tuned).save(tmp_path / "saved", storage="reference")
    other = pico_tuned("llama", seed=1) / "model.safetensors"
    shutil.copyfile(other, tmp_path / which / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"saved: .*{which}, which was \w+ and is now \w+;"):
        Delta.load(saved)


def test_only_a_difference_of_checkpoints_is_kept_by_reference(pair, pico, adapter, tmp_path):
    for delta in (2.0 * pair[0], Delta.from_lora(adapter(), pico("llama"))):
        with pytest.raises(RecipeError, match="not the difference of two checkpoints"):
            delta.save(tmp_path / "saved", storage="reference")


# Refusals.


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"storage": "int4"}, "'int4': a delta is stored as float32, bfloat16, lora, low-rank or"),
        ({"storage": "low-rank"}, "takes a rank of 1 or more"),
        ({"storage": "low-rank", "rank": 0}, "takes a rank of 1 or more"),
        ({"storage": "float32", "rank": 3}, "takes a rank of 1 or more"),
    ],
)
def test_another_storage_is_refused(pair, tmp_path, how, said):
    with pytest.raises(RecipeError, match=said):
        pair[0].save(tmp_path / "saved", **how)
    assert not list(tmp_path.iterdir())


def test_it_is_not_overwritten_unless_forced(pair, tmp_path):
    pair[0].save(tmp_path / "saved")
    with pytest.raises(OutputExistsError):
        pair[1].save(tmp_path / "saved")
    pair[1].save(tmp_path / "saved", force=True)
    assert Delta.load(tmp_path / "saved").identity == pair[1].identity


def test_nan_leaves_no_directory(toy, tmp_path):
    delta = Delta.between(
        toy("base", a=torch.ones(2)), toy("tuned", a=torch.tensor([1.0, torch.nan]))
    )
    with pytest.raises(NonFiniteError, match="a: 1 of 2 values"):
        delta.save(tmp_path / "saved")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_a_delta_beyond_the_dtype_is_refused(toy, tmp_path, storage):
    end = torch.tensor([1.0, 3e38])
    delta = Delta.between(toy("base", a=-end), toy("tuned", a=end))
    with pytest.raises(NonFiniteError, match=rf"a: the delta is as large as 6e\+38.*{storage}"):
        delta.save(tmp_path / "saved", storage=storage)


# Damage.


@pytest.fixture
def saved(toy, tmp_path):
    start, end = torch.ones(4), torch.tensor([1e-10, -0.0, 3.0, 1.0])
    return Delta.between(toy("base", a=start), toy("tuned", a=end)).save(tmp_path / "saved")


def flip(file, at):
    """Change one bit of a file, keeping its size."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@EVERY_KIND
def test_a_flipped_bit_is_found_and_its_tensor_named(pico, pico_tuned, tmp_path, storage, rank):
    base, tuned = copies(pico, pico_tuned, tmp_path)
    saved = Delta.between(base, tuned).save(tmp_path / "saved", storage=storage, rank=rank)
    delta = Delta.load(saved)
    assert delta.verify() == len(read_record(saved).hashes)
    stored = delta.source.tuned if storage == "reference" else delta.source.tensors
    entry = max(stored.entries.values(), key=lambda entry: entry.end - entry.start)
    flip(entry.file, entry.start + 600)
    # What a reference leads to is looked at when it is loaded, what was stored when one asks.
    said = r"tuned, which was \w+ and is now" if storage == "reference" else entry.name
    with pytest.raises(CheckpointError, match=f"saved: .*{said}"):
        Delta.load(saved).verify()


@pytest.mark.parametrize(
    ("number", "said"), [({}, "was saved by an earlier version"), ({"format": 3}, "in format 3")]
)
def test_a_delta_of_another_version_has_to_be_taken_again(saved, number, said):
    record = json.loads((saved / "delta.json").read_text())
    del record["format"]
    (saved / "delta.json").write_text(json.dumps(record | number))
    with pytest.raises(CheckpointError, match=rf"{said}.* take the delta again with `pvec diff`"):
        Delta.load(saved)


def test_a_flipped_exact_value_is_found(saved):
    flip(saved / "exact.safetensors", -1)
    with pytest.raises(CheckpointError, match=r"a\.(index|value): the content is not"):
        Delta.load(saved).verify()


@pytest.mark.parametrize("name", ["delta.json", "delta.safetensors"])
def test_an_incomplete_delta_is_refused_by_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Delta.load(saved)


def test_a_delta_without_its_exact_values_is_refused(saved):
    (saved / "exact.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"exact\.safetensors"):
        Delta.load(saved)


REQUIRED = ["base", "identity", "label", "pole", "storage", "tensors", "hashes", "tuned_dtypes"]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_record_that_lacks_a_key_is_refused(saved, key):
    record = json.loads((saved / "delta.json").read_text())
    del record[key]
    (saved / "delta.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=rf"delta\.json: lacks {key}"):
        Delta.load(saved)


def test_a_record_of_other_tensors_is_refused(saved, toy):
    other = toy("other", b=torch.ones(4)) / "model.safetensors"
    other.rename(saved / "delta.safetensors")
    with pytest.raises(CheckpointError, match="disagree on a, b"):
        Delta.load(saved)


@pytest.mark.parametrize("storage", ["float32", "lora", "low-rank"])
@pytest.mark.parametrize("odd", ["q_proj.wgight", "q_proj"])
def test_a_misspelt_tensor_of_a_record_is_refused(adapter, pico, tmp_path, storage, odd):
    delta = Delta.from_lora(adapter(), pico("llama"))
    path = delta.save(tmp_path / "d", storage=storage, rank=1 if storage == "low-rank" else None)
    text = (path / "delta.json").read_text()
    (path / "delta.json").write_text(
        text.replace("layers.1.self_attn.q_proj.weight", f"layers.1.self_attn.{odd}")
    )
    with pytest.raises(CheckpointError, match=f"disagree on .*{odd}"):
        Delta.load(path)


def test_tensors_of_other_shapes_are_refused(saved, toy):
    other = toy("other", a=torch.ones(5)) / "model.safetensors"
    other.rename(saved / "delta.safetensors")
    with pytest.raises(CheckpointError, match="disagree on a"):
        Delta.load(saved)


@pytest.mark.parametrize(
    "damage",
    [
        {"base": {"digest": "x"}},
        {"base": None},
        {"tuned_dtypes": {"a": "F31"}},
        {"storage": "lora"},
        {"storage": "low-rank"},
        {"storage": "reference"},
        {"rank": 3},
    ],
    ids=["half a base", "no base", "dtype", "no adapter", "no rank", "no reference", "a rank"],
)
def test_a_record_of_wrong_values_is_refused(saved, damage):
    record = json.loads((saved / "delta.json").read_text())
    (saved / "delta.json").write_text(json.dumps(record | damage))
    with pytest.raises(PersonalityVectorError, match=r"delta\.json"):
        Delta.load(saved)
