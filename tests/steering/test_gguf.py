"""Control vectors for llama.cpp, read back by the package gguf."""

import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from personality_vector.errors import (
    DataError,
    ModelError,
    NonFiniteError,
    OutputExistsError,
    RecipeError,
)
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.steering.storage import export_gguf

gguf = pytest.importorskip("gguf")


def _vector(*layers):
    directions = {
        layer: torch.randn(8, generator=generator_for(0, f"layer {layer}")) for layer in layers
    }
    return SteeringVector(directions, "", None, "warm", "response_mean", (1, 1))


def _added_by_llama_cpp(file, blocks):
    """Return what llama.cpp adds to the output of each of its 0-based blocks; ``None`` nothing.

    Its loader puts ``direction.N`` at offset ``(N - 1) * n_embd`` of a buffer, refusing ``N = 0``;
    its adapter then copies from offset ``(il - 1) * n_embd`` for block ``il``, from 1 on.
    """
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    width = len(next(iter(tensors.values())).data)
    buffer = np.zeros(0, dtype=np.float32)
    for name, tensor in tensors.items():
        kind, number = name.split(".")
        assert kind == "direction"
        assert int(number) > 0, "llama.cpp refuses the file"
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert list(tensor.shape) == [width]
        buffer = np.concatenate([buffer, np.zeros(max(0, width * int(number) - len(buffer)), "f4")])
        buffer[width * (int(number) - 1) : width * int(number)] += tensor.data
    rows = [None] + [buffer[width * (il - 1) : width * il] for il in range(1, blocks)]
    return [row if row is not None and row.any() else None for row in rows]


def test_direction_l_is_added_to_the_output_of_block_l(tmp_path):
    vector = _vector(1, 3)
    file = export_gguf(vector, tmp_path / "warm.gguf", coefficient=-1.5)
    added = _added_by_llama_cpp(file, blocks=4)
    assert [row is None for row in added] == [True, False, True, False]
    for layer in (1, 3):
        np.testing.assert_array_equal(added[layer], (-1.5 * vector[layer]).numpy())


def test_zeros_fill_the_other_blocks_up_to_the_last(tmp_path):
    vector = _vector(2)
    file = export_gguf(vector, tmp_path / "warm.gguf", blocks=5)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    assert sorted(tensors) == [f"direction.{block}" for block in range(1, 5)]
    np.testing.assert_array_equal(tensors["direction.2"], vector[2].numpy())
    assert not any(tensors[f"direction.{block}"].any() for block in (1, 3, 4))
    with pytest.raises(ModelError, match="this model has 2 blocks, 0 to 1"):
        export_gguf(vector, tmp_path / "short.gguf", blocks=2)
    export_gguf(vector, file, blocks=3, force=True)


def test_the_keys_are_those_of_a_control_vector(tmp_path):
    file = export_gguf(_vector(1, 2), tmp_path / "warm.gguf", model_hint="qwen2")
    fields = gguf.GGUFReader(file).fields
    found = {name: field.contents() for name, field in fields.items() if "." in name}
    assert found["general.architecture"] == "controlvector"
    assert found["controlvector.model_hint"] == "qwen2"
    assert found["controlvector.layer_count"] == 2


def test_layer_0_is_refused_since_llama_cpp_has_none(tmp_path):
    with pytest.raises(DataError, match="block 0"):
        export_gguf(_vector(0, 1), tmp_path / "warm.gguf")
    assert not list(tmp_path.iterdir())
    file = export_gguf(_vector(0, 1), tmp_path / "warm.gguf", layers=[1])
    assert [tensor.name for tensor in gguf.GGUFReader(file).tensors] == ["direction.1"]


@pytest.mark.parametrize(
    ("coefficient", "error"), [(0.0, DataError), (float("nan"), NonFiniteError)]
)
def test_a_coefficient_that_steers_nothing_is_refused(tmp_path, coefficient, error):
    with pytest.raises(error):
        export_gguf(_vector(1), tmp_path / "warm.gguf", coefficient=coefficient)


def test_a_layer_is_given_once(tmp_path):
    with pytest.raises(DataError, match=r"layers \[2, 2\] name the same block twice"):
        export_gguf(_vector(1, 2), tmp_path / "warm.gguf", layers=[2, 2])
    with pytest.raises(DataError, match="no layer was given"):
        export_gguf(_vector(1, 2), tmp_path / "warm.gguf", layers=[])
    assert not list(tmp_path.iterdir())


def test_only_a_control_vector_is_replaced_and_only_by_force(tmp_path):
    file = export_gguf(_vector(1), tmp_path / "warm.gguf")
    with pytest.raises(OutputExistsError, match="--force"):
        export_gguf(_vector(2), file)
    export_gguf(_vector(2), file, force=True)
    assert [tensor.name for tensor in gguf.GGUFReader(file).tensors] == ["direction.2"]
    other, whole = tmp_path / "model.gguf", file.read_bytes()
    spoilt = [b"not ours", b"", whole[:-60], whole[:40], whole[:4] + b"\xff" * 60 + whole[64:]]
    changed = bytearray(whole)
    changed[gguf.GGUFReader(file).tensors[0].data_offset] ^= 1
    for content in [*spoilt, bytes(changed), whole.replace(b"personality_v", b"personality_w")]:
        other.write_bytes(content)
        with pytest.raises(OutputExistsError, match="never replaced"):
            export_gguf(_vector(1), other, force=True)
        assert other.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf", "warm.gguf"]


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RecipeError, match=r"personality-vector\[gguf\]"):
        export_gguf(_vector(1), tmp_path / "warm.gguf")


def test_the_verb(tmp_path):
    import typer

    from personality_vector.cli.steer.effect import export_gguf as verb

    app = typer.Typer()
    app.command()(verb)
    _vector(0, 2).save(tmp_path / "vector")
    out = tmp_path / "warm.gguf"
    arguments = [str(tmp_path / "vector"), "--out", str(out), "--layer", "2", "--coefficient", "2"]
    arguments += ["--blocks", "4"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "1 directions" in done.output
    assert "zeros for the other blocks of 4" in done.output
    added = _added_by_llama_cpp(out, blocks=3)
    np.testing.assert_array_equal(added[2], (2 * _vector(2)[2]).numpy())
