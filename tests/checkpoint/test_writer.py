"""What is written is what safetensors and transformers read."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from personality_vector.checkpoint import Checkpoint, ShardWriter, TensorPlan, parse_size
from personality_vector.checkpoint.tensors import DTYPES
from personality_vector.errors import RecipeError, TensorMismatchError


def write(directory, tensors, shard_bytes=2**40, order=None) -> None:
    directory.mkdir(exist_ok=True)
    plans = [TensorPlan(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    with ShardWriter(directory, plans, shard_bytes) as writer:
        for name in order or tensors:
            writer.write(name, tensors[name])


def load_all(directory) -> dict[str, torch.Tensor]:
    files = sorted(directory.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def require_equal(found, expected) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


@pytest.fixture
def every_dtype():
    drawn = torch.arange(-12, 12).reshape(2, 3, 4)
    return {name: (drawn % 2 if name == "BOOL" else drawn).to(d) for name, d in DTYPES.items()}


@pytest.mark.parametrize("shard_bytes", [2**40, 100, 1])
def test_safetensors_reads_what_was_written(tmp_path, every_dtype, tensors, shard_bytes):
    expected = every_dtype | tensors | {"scalar": torch.tensor(2.5)}
    write(tmp_path, expected, shard_bytes)
    require_equal(load_all(tmp_path), expected)
    found = Checkpoint.open(tmp_path)
    require_equal({name: found[name] for name in found.names}, expected)


def test_every_tensor_is_aligned_to_its_dtype(tmp_path, every_dtype):
    odd = {"A": torch.zeros(3, dtype=torch.uint8), **every_dtype}
    write(tmp_path, odd)
    for entry in Checkpoint.open(tmp_path).entries.values():
        assert entry.start % entry.dtype.itemsize == 0


def test_the_order_of_writing_changes_no_byte(tmp_path, tensors):
    write(tmp_path / "one", tensors)
    write(tmp_path / "two", tensors, order=sorted(tensors, reverse=True))
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_view_is_written_as_the_tensor_that_it_shows(tmp_path):
    shown = torch.arange(12.0).reshape(3, 4).T[1:]
    write(tmp_path, {"a": shown})
    assert torch.equal(load_all(tmp_path)["a"], shown)


def test_shards_hold_at_most_what_was_asked_except_a_larger_tensor(tmp_path):
    sizes = [10, 20, 30, 200, 5, 5, 60]
    write(tmp_path, {f"t{i}": torch.zeros(n) for i, n in enumerate(sizes)}, shard_bytes=4 * 64)
    shards = [load_file(file) for file in sorted(tmp_path.glob("*.safetensors"))]
    held = [sum(t.numel() for t in shard.values()) for shard in shards]
    assert held == [60, 200, 10, 60]


def test_the_index_says_where_each_tensor_is(tmp_path, tensors):
    write(tmp_path, tensors, shard_bytes=500)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    where = {name: file.name for file in tmp_path.glob("*.safetensors") for name in load_file(file)}
    assert index["weight_map"] == where
    assert len(set(where.values())) > 1
    total = sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors.values())
    assert index["metadata"]["total_size"] == total


def test_one_shard_has_no_index(tmp_path, tensors):
    write(tmp_path, tensors)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_transformers_loads_the_shards(tmp_path, pico):
    from transformers import AutoModelForCausalLM

    base = Checkpoint.open(pico("llama"))
    write(tmp_path, {name: base[name] for name in base.names}, shard_bytes=40_000)
    (tmp_path / "config.json").write_text(json.dumps(base.config))
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert all(torch.equal(loaded[name], base[name]) for name in base.names)


def test_a_tensor_that_was_never_written_is_refused_and_no_index_appears(tmp_path, tensors):
    with pytest.raises(TensorMismatchError, match="never written: long"):
        write(
            tmp_path, tensors, shard_bytes=500, order=[name for name in tensors if name != "long"]
        )
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("b", torch.ones(2)), ("a", torch.ones(3)), ("a", torch.ones(2).half())],
    ids=["name", "shape", "dtype"],
)
def test_a_tensor_that_was_not_planned_is_refused(tmp_path, name, tensor):
    plans = [TensorPlan("a", torch.float32, (2,))]
    with (
        pytest.raises(TensorMismatchError, match=f"^{name}: "),
        ShardWriter(tmp_path, plans, 100) as writer,
    ):
        writer.write(name, tensor)


def test_an_existing_file_is_not_overwritten(tmp_path, tensors):
    write(tmp_path, tensors)
    with pytest.raises(FileExistsError):
        write(tmp_path, tensors)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("200 MB", 2 * 10**8), ("1.5KB", 1500), ("0KB", 1)]
)
def test_sizes_are_decimal(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "5GiB", "-1GB", "nanGB", "5TB", "5gb"])
def test_a_size_that_cannot_be_read_is_quoted(text):
    with pytest.raises(RecipeError, match=repr(text)):
        parse_size(text)
