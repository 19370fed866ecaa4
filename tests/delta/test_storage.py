"""Save, then load, is the identity; in float32 it restores the fine-tuned model bit for bit."""

import json

import pytest
import torch

from personality_vector.delta import Delta
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


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_float32_restores_adversarial_values_bit_for_bit(toy, tmp_path, dtype, base_dtype):
    columns = torch.tensor(ADVERSARIAL, dtype=torch.float64).T
    largest = torch.finfo(dtype).max
    start, end = columns[0].to(base_dtype), columns[1].clamp(-largest, largest).to(dtype)
    base, tuned = toy("base", a=start), toy("tuned", a=end)
    loaded = Delta.load(Delta.between(base, tuned).save(tmp_path / "saved"))
    restored = loaded.tuned("a", start)
    assert restored.dtype == dtype
    assert torch.equal(bits(restored), bits(end))


def test_float32_restores_random_values_of_every_size_bit_for_bit(toy, tmp_path):
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(-(2**31), 2**31, (2, 20_000), generator=generator).int()
    start, end = torch.nan_to_num(words.view(torch.float32) / 4, nan=1.0)
    loaded = Delta.load(Delta.between(toy("b", a=start), toy("t", a=end)).save(tmp_path / "saved"))
    assert torch.equal(bits(loaded.tuned("a", start)), bits(end))


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_save_then_load_is_the_identity(pico, pico_tuned, tmp_path, family, dtype):
    base, tuned = pico(family, dtype), pico_tuned(family, dtype)
    delta = Delta.between(base, tuned, pole="openness:high", label="mine")
    loaded = Delta.load(delta.save(tmp_path / "saved"))
    kept = [(d.names, d.base, d.identity, d.label, d.pole) for d in (delta, loaded)]
    assert kept[0] == kept[1]
    for name in delta.names:
        assert torch.equal(loaded[name], delta[name])
        start = delta.source.base[name]
        assert torch.equal(bits(loaded.tuned(name, start)), bits(delta.tuned(name, start)))


def test_bfloat16_storage_rounds_once_and_is_another_identity(pair, tmp_path):
    delta = pair[0]
    loaded = Delta.load(delta.save(tmp_path / "saved", dtype="bfloat16"))
    assert loaded.identity != delta.identity
    assert loaded.base == delta.base
    for name in delta.names:
        assert torch.equal(loaded[name], delta[name].bfloat16().float())
        assert loaded.tuned(name, delta.source.base[name]) is None


@pytest.mark.parametrize("make", [lambda a, b: 0.5 * a - b, lambda a, _: -a], ids=["sum", "minus"])
def test_a_combination_is_saved_as_its_value(pair, tmp_path, make):
    delta = make(*pair)
    loaded = Delta.load(delta.save(tmp_path / "saved"))
    assert loaded.identity == delta.identity
    assert all(torch.equal(loaded[name], delta[name]) for name in delta.names)


def test_a_lora_delta_is_saved_expanded(pico, adapter, tmp_path):
    delta = Delta.from_lora(adapter(), pico("llama"))
    loaded = Delta.load(delta.save(tmp_path / "saved"))
    assert loaded.names == delta.names
    assert all(torch.equal(loaded[name], delta[name]) for name in delta.names)


def test_saving_a_loaded_delta_again_loses_nothing(toy, tmp_path):
    start, end = torch.ones(4), torch.tensor([1e-10, -0.0, 3.0, 1.0])
    delta = Delta.between(toy("base", a=start), toy("tuned", a=end))
    again = Delta.load(Delta.load(delta.save(tmp_path / "one")).save(tmp_path / "two"))
    assert again.identity == delta.identity
    restored = again.tuned("a", start)
    assert restored is not None
    assert torch.equal(bits(restored), bits(end))


def test_another_storage_dtype_is_refused(pair, tmp_path):
    with pytest.raises(RecipeError, match="'int4': a delta is stored as float32 or bfloat16"):
        pair[0].save(tmp_path / "saved", dtype="int4")
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


@pytest.fixture
def saved(toy, tmp_path):
    start, end = torch.ones(4), torch.tensor([1e-10, -0.0, 3.0, 1.0])
    return Delta.between(toy("base", a=start), toy("tuned", a=end)).save(tmp_path / "saved")


@pytest.mark.parametrize("name", ["delta.json", "delta.safetensors"])
def test_an_incomplete_delta_is_refused_by_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        Delta.load(saved)


def test_a_delta_without_its_exact_values_is_refused(saved):
    (saved / "exact.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"exact\.safetensors"):
        Delta.load(saved)


@pytest.mark.parametrize("key", ["base", "identity", "label", "pole", "tuned_dtypes", "statistics"])
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


@pytest.mark.parametrize(
    "damage",
    [{"base": {"digest": "x"}}, {"base": None}, {"tuned_dtypes": {"a": "F31"}}],
    ids=["half a base", "no base", "dtype"],
)
def test_a_record_of_wrong_values_is_refused(saved, damage):
    record = json.loads((saved / "delta.json").read_text())
    (saved / "delta.json").write_text(json.dumps(record | damage))
    with pytest.raises(PersonalityVectorError, match=r"delta\.json"):
        Delta.load(saved)
