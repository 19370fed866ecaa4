"""Steering vectors are vectors: their algebra, what they refuse, and how they are kept."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    DataError,
    NonFiniteError,
    OutputExistsError,
    TensorMismatchError,
)
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.traits import Pole

HIGH = Pole("openness", "high")


def vector(name: str, layers: Any = (0, 2), width: int = 8, model: str = "abc") -> SteeringVector:
    directions = {
        layer: torch.randn(width, generator=generator_for(layer, name)) for layer in layers
    }
    return SteeringVector(directions, model, HIGH, name, "response_mean", (5, 4))


def same(one: SteeringVector, other: SteeringVector) -> bool:
    return one.layers == other.layers and all(
        torch.equal(one[layer], other[layer]) for layer in one.layers
    )


def test_algebra_is_that_of_vectors():
    a, b = vector("a"), vector("b")
    assert same(a + b, b + a)
    assert same(a - b, a + -b)
    assert same(2.0 * a, a + a)
    assert same(a * 2.0, a / 0.5)
    assert same(-a, -1.0 * a)
    assert torch.equal((a - b)[2], a[2] - b[2])


def test_algebra_keeps_track_of_what_a_vector_is():
    a, b = vector("a"), vector("b")
    assert (a + b).label == "a + b"
    assert (a + b).counts == (10, 8)
    assert (a + b).pooling == "response_mean"
    assert (a + replace(b, pooling="prompt_last")).pooling == "response_mean + prompt_last"
    other = replace(b, estimator="pca", template="1f", judge="j")
    mixed = a - other
    assert mixed.estimator == "mean_difference + pca"
    assert (mixed.template, mixed.judge) == ("1f", "j")
    assert (other + other).judge == "j"
    assert (2.0 * other).estimator == "pca"
    assert (2.0 * a).pole == HIGH
    assert (-a).pole is None
    assert (a + b).pole is None
    assert (a + b).model == "abc"


def test_norm_and_cosine():
    a, b = vector("a"), vector("b")
    assert a.norm(2) == pytest.approx(float(a[2].norm()), rel=1e-6)
    assert (3.0 * a).norm(0) == pytest.approx(3.0 * a.norm(0), rel=1e-6)
    assert a.cosine(-2.0 * a, 0) == pytest.approx(-1.0)
    assert a.cosine(b, 0) == pytest.approx(float(torch.cosine_similarity(a[0], b[0], dim=0)), 1e-5)


def test_a_unit_vector_points_where_it_pointed_and_has_length_1():
    a = vector("a")
    for layer in a.layers:
        assert a.unit().norm(layer) == pytest.approx(1.0, rel=1e-6)
        assert a.unit().cosine(a, layer) == pytest.approx(1.0)
    assert same((8.0 * a).unit(), a.unit())
    assert same((-a).unit(), -a.unit())
    assert (a.unit().label, a.unit().pole) == ("unit(a)", HIGH)


def test_what_is_left_without_others_is_orthogonal_to_them_and_the_rest_is_theirs():
    a, b, c = map(vector, "abc")
    left = a.without(b, c)
    for layer in a.layers:
        assert max(abs(left.cosine(other, layer)) for other in (b, c)) < 1e-6
        span = torch.stack([b[layer], c[layer], a[layer] - left[layer]])
        assert torch.linalg.matrix_rank(span, tol=1e-5) == 2
    assert same(a.without(), a)
    assert (left.label, left.pole) == (a.label, a.pole)
    with pytest.raises(DataError, match=r"a.*layer 0: the direction is zero"):
        a.without(b, a + b)


def test_increments_add_up_to_the_vector():
    a = vector("a", layers=(1, 2, 3, 6))
    steps = a.incremental()
    total = torch.zeros(8)
    for layer in a.layers:
        total = total + steps[layer]
        torch.testing.assert_close(total, a[layer])
    assert torch.equal(steps[1], a[1])
    assert torch.equal(steps[6], a[6] - a[3])
    flat = SteeringVector({0: torch.ones(4), 1: torch.ones(4)}, "", None, "flat", "", (1, 1))
    with pytest.raises(DataError, match=r"flat.*layer 1: the direction is zero"):
        flat.incremental()


def test_layers_are_ascending_and_the_callers_dict_is_not_shared():
    directions = {3: torch.ones(4), 1: torch.ones(4)}
    kept = SteeringVector(directions, "", None, "", "", (1, 1))
    directions.clear()
    assert kept.layers == (1, 3)


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        (vector("b", model="def"), BaseMismatchError, "a is of model abc and b of model def"),
        (vector("b", model=""), BaseMismatchError, "b of model unknown"),
        (vector("b", layers=(0, 1)), TensorMismatchError, r"only one of them has \[1, 2\]"),
        (vector("b", width=6), TensorMismatchError, "a is 8 wide and b is 6"),
    ],
)
def test_vectors_of_different_spaces_are_not_combined(other, error, message):
    for combine in (SteeringVector.__add__, SteeringVector.__sub__):
        with pytest.raises(error, match=message):
            combine(vector("a"), other)


def test_a_cosine_needs_one_space_and_one_layer():
    a = vector("a")
    with pytest.raises(BaseMismatchError):
        a.cosine(vector("b", model="def"), 0)
    with pytest.raises(TensorMismatchError, match="no direction for layer 1, only for"):
        a.cosine(vector("b"), 1)
    with pytest.raises(TensorMismatchError, match="wide"):
        a.cosine(vector("b", width=6), 0)
    # Layers that only one of the two has are no obstacle to a comparison at another one.
    assert -1 <= a.cosine(vector("b", layers=(0, 1)), 0) <= 1


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_factor_must_be_finite(factor):
    with pytest.raises(NonFiniteError, match="a: cannot be scaled"):
        factor * vector("a")


def test_division_by_zero_is_refused():
    with pytest.raises(NonFiniteError, match="divided by 0"):
        vector("a") / 0.0


@pytest.mark.parametrize(
    ("directions", "error", "message"),
    [
        ({}, DataError, "at least one layer"),
        ({0: torch.ones(4), 2: torch.zeros(4)}, DataError, "x, layer 2: the direction is zero"),
        ({0: torch.tensor([1.0, float("nan")])}, NonFiniteError, "x, layer 0"),
        ({0: torch.tensor([1.0, float("inf")])}, NonFiniteError, "x, layer 0"),
        ({0: torch.ones(4), 1: torch.ones(5)}, TensorMismatchError, "should be 4 float32"),
        ({0: torch.ones(4, dtype=torch.bfloat16)}, TensorMismatchError, "bfloat16"),
        ({0: torch.ones(2, 2)}, TensorMismatchError, r"\[2, 2\]"),
        ({-1: torch.ones(4)}, DataError, "count from 0"),
    ],
)
def test_what_is_no_direction_is_refused(directions, error, message):
    with pytest.raises(error, match=message):
        SteeringVector(directions, "", None, "x", "", (1, 1))


def test_a_vector_minus_itself_points_nowhere():
    with pytest.raises(DataError, match="a direction must have a length"):
        vector("a") - vector("a")


def test_overflow_is_refused():
    with pytest.raises(NonFiniteError):
        1e38 * (1e5 * vector("a"))


@pytest.mark.parametrize("pole", [HIGH, None])
def test_saving_and_loading_is_the_identity(tmp_path, pole):
    known = {"estimator": "pca", "template": "1f", "judge": "statements 2"}
    known |= {"made_with": {"dropped": {"empty": 1}}}
    a = replace(vector("a"), pole=pole, **known)
    loaded = SteeringVector.load(a.save(tmp_path / "a"))
    assert same(a, loaded)
    names = [field.name for field in fields(a) if field.name != "directions"]
    assert len(names) == 9
    assert all(getattr(a, name) == getattr(loaded, name) for name in names)


def test_the_same_vector_is_saved_as_the_same_bytes(tmp_path):
    a = vector("a")
    one, two = a.save(tmp_path / "one"), a.save(tmp_path / "two")
    names = sorted(file.name for file in one.iterdir())
    assert names == ["MANIFEST.json", "vector.json", "vector.safetensors"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_the_record_says_what_a_layer_is_and_how_long_each_direction(tmp_path):
    a = vector("a")
    record = json.loads((a.save(tmp_path / "a") / "vector.json").read_text())
    assert record["kind"] == "steering_vector"
    assert record["format"] == 2
    assert "0-based decoder block" in record["layer_convention"]
    assert record["norms"] == {"0": a.norm(0), "2": a.norm(2)}


def test_an_existing_vector_is_replaced_only_by_force(tmp_path):
    path = vector("a").save(tmp_path / "a")
    with pytest.raises(OutputExistsError):
        vector("b").save(path)
    assert SteeringVector.load(path).label == "a"
    vector("b").save(path, force=True)
    assert SteeringVector.load(path).label == "b"


def change_record(path: Any, **changes: Any) -> None:
    file = path / "vector.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def flip_signs(path: Any) -> None:
    tensors = load_file(path / "vector.safetensors")
    save_file({name: -tensor for name, tensor in tensors.items()}, path / "vector.safetensors")


def spoil_tensors(path: Any) -> None:
    (path / "MANIFEST.json").unlink()
    tensors = load_file(path / "vector.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, path / "vector.safetensors")


def drop_layer(path: Any) -> None:
    (path / "MANIFEST.json").unlink()
    tensors = load_file(path / "vector.safetensors")
    save_file({"layer.0": tensors["layer.0"]}, path / "vector.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "vector.json").unlink(), "is missing"),
        (lambda path: (path / "vector.safetensors").unlink(), "cannot be read"),
        (lambda path: (path / "vector.json").write_text("{"), "is not JSON"),
        (lambda path: (path / "vector.json").write_text("[]"), "should hold one JSON object"),
        (lambda path: change_record(path, format=1), "in format 1, but this version reads"),
        (lambda path: change_record(path, format=3), "in format 3, but this version reads"),
        (lambda path: change_record(path, format="2"), "in format '2', but this version reads"),
        (lambda path: change_record(path, kind="delta"), "not the record"),
        (lambda path: change_record(path, layer_convention="1-based"), "not the record"),
        (lambda path: change_record(path, extra=1), "not the record"),
        (flip_signs, "are not those that were written"),
        (spoil_tensors, "do not belong together"),
        (drop_layer, "disagree on layer.2"),
        (lambda path: change_record(path, pole="nonsense"), "not the record"),
    ],
)
def test_a_damaged_vector_is_refused(tmp_path, damage, message):
    path = vector("a").save(tmp_path / "a")
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        SteeringVector.load(path)


FULL = """
import resource, signal, sys
import torch
from personality_vector.errors import StorageError
from personality_vector.steering import SteeringVector
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
vector = SteeringVector({1: torch.ones(10000)}, model="v2", pole=None, label="a", counts=(1, 1),
    pooling="response_mean", estimator="mean")
try:
    vector.save(sys.argv[1])
except StorageError as error:
    print(error.exit_code, error)
"""


def test_a_vector_that_the_disk_has_no_room_for_is_a_storage_error(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "v")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(f"4 {tmp_path / 'v'}: cannot be written: "), done.stderr
    assert not list(tmp_path.iterdir())
