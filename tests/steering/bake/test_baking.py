"""``bake`` as a whole: what it publishes, how it is proved, and what it refuses."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli.steer.effect import bake as verb
from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    DataError,
    ModelError,
    NonFiniteError,
    OutputExistsError,
    PersonalityVectorError,
    RecipeError,
    TensorMismatchError,
    VerificationError,
)
from personality_vector.steering.bake import bake, bake_ablation, exports
from personality_vector.steering.bake.proof import load_export
from personality_vector.subject.models import load_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
]
# Two ways to hold a bias, and the other routes; test_exports.py has every family.
ROUTES = {"llama": "bias", "gpt2": "bias", "qwen2": "convert", "mistral": "adapter"}
IDS = torch.arange(7, 47).reshape(2, 20) * 11 % 300
COEFFICIENT = 0.7


def _logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("family", ROUTES)
def test_a_baked_model_says_what_the_hooks_say(family, pico, vector_of, hooked, weights, tmp_path):
    path, out = pico(family), tmp_path / "out"
    vector = vector_of(path, 0, 1)
    done = bake(vector, path, [1], COEFFICIENT, out)
    assert done.route == ROUTES[family]
    assert max(done.proof.error, done.proof.error_asked, done.proof.error_stored) < 1e-5
    assert done.proof.effect > 0.1
    assert done.proof.greedy_tokens == 64
    # Again, by another way: hooks of PyTorch alone, and other tokens.
    model = load_model(path)
    with hooked(model, {1: lambda hidden: hidden + COEFFICIENT * vector[1]}):
        expected = _logits(model)
    is_adapter = done.route == "adapter"
    found = load_export(*((str(path), str(out)) if is_adapter else (str(out), "")), "float32")
    torch.testing.assert_close(_logits(found), expected, atol=1e-5, rtol=0)
    _require_only_biases(weights(path), weights(out), is_adapter=is_adapter)
    made = json.loads((out / "MANIFEST.json").read_text())
    assert made["route"] == done.route
    assert made["proof"]["error"] == pytest.approx(done.proof.error, rel=1e-6)
    assert "same 64 greedy tokens" in (out / "README.md").read_text()


def _require_only_biases(base, found, *, is_adapter):
    """Nothing but biases may differ from the base; an adapter's matrices are 0."""
    if is_adapter:
        sums = {name: float(tensor.abs().sum()) for name, tensor in found.items()}
        assert [name for name, total in sums.items() if total] == [n for n in sums if "bias" in n]
        assert sum(tensor.nbytes for tensor in found.values()) < 4096
        return
    changed = [n for n in found if n not in base or not torch.equal(found[n], base[n])]
    assert set(base) <= set(found)
    assert all(name.endswith(".bias") for name in changed)
    assert sum(bool(found[name].any()) for name in changed) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("family", "route"), [("llama", "bias"), ("qwen2", "convert")])
def test_shards_ties_and_half_precision(family, route, pico, vector_of, weights, tmp_path):
    path, out = pico(family, "bfloat16", tied=True, sharded=True), tmp_path / "out"
    vector = vector_of(path, 0, 2)
    done = bake(vector, path, [0, -1], COEFFICIENT, out)
    assert done.route == route
    assert json.loads((out / "MANIFEST.json").read_text())["layers"] == [0, 2]
    base, found = weights(path), weights(out)
    for name, tensor in base.items():
        assert torch.equal(found[name], tensor), name
    added = set(found) - set(base)
    assert {found[name].dtype for name in added} == {torch.bfloat16}
    nonzero = {name: found[name] for name in added if found[name].any()}
    assert nonzero.keys() == {f"model.layers.{layer}.mlp.down_proj.bias" for layer in (0, 2)}
    for layer in (0, 2):
        stored = nonzero[f"model.layers.{layer}.mlp.down_proj.bias"]
        assert torch.equal(stored, (COEFFICIENT * vector[layer]).bfloat16())
    # What parts the export from the hooks is the rounding of the bias, and that is said.
    assert done.proof.error < 1e-5 < done.proof.error_asked < 0.05 < done.proof.effect
    assert done.proof.dtype == "bfloat16"
    assert done.proof.error_stored < 0.2
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(found)
    assert {file.name for file in out.glob("*.safetensors")} == set(index["weight_map"].values())
    Checkpoint.open(out)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("family", "dtype", "tied"), [("qwen2", "float32", True), ("gpt2", "bfloat16", None)]
)
def test_an_ablation_leaves_nothing_along_the_direction(
    family, dtype, tied, pico, vector_of, hooked, tmp_path
):
    path = pico(family, dtype, tied=tied)
    vector = vector_of(path, 1)
    done = bake_ablation(vector, path, 1, tmp_path / "out")
    assert done.proof.error <= done.proof.tolerance < 2e-4
    assert done.proof.error_asked < (1e-4 if dtype == "float32" else 0.1) < done.proof.effect
    model, seen = load_model(done.path), []
    with hooked(model, {0: lambda h: seen.append(h) or h, 1: lambda h: seen.append(h) or h}):
        _logits(model)
    unit = vector[1] / vector[1].norm()
    share = max(float((h @ unit).abs().max() / h.norm(dim=-1).max()) for h in seen)
    assert share < (1e-6 if dtype == "float32" else 1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_real_model(shared, vector_of, tmp_path):
    path = shared / "models" / "persona-tiny"
    if not path.is_dir():
        pytest.skip(f"{path} is absent: it is not part of the repository")
    done = bake(vector_of(path, 3), path, [3], 0.3, tmp_path / "out")
    assert done.proof.error <= done.proof.tolerance


def _wrong_bias(base, edits, config, directory):
    """Write the bias with one wrong number in it, by a little."""
    _write_checkpoint(base, edits, config, directory)
    file = max(directory.glob("*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in tensors if tensors[name].any())
    tensors[name][3] += 1e-3
    save_file(tensors, file, {"format": "pt"})


def _other_tokenizer(base, edits, config, directory):
    _write_checkpoint(base, edits, config, directory)
    tokenizer = json.loads((base.path / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:3]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


_write_checkpoint = exports.write_checkpoint


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("tamper", "why"),
    [
        (_wrong_bias, "differs from the hooks"),
        (_other_tokenizer, "tokenizer"),
    ],
)
def test_an_export_that_is_not_the_hooks_is_not_published(
    tamper, why, pico, vector_of, monkeypatch, tmp_path
):
    monkeypatch.setattr(exports, "write_checkpoint", tamper)
    path = pico("llama")
    with pytest.raises(VerificationError, match=why):
        bake(vector_of(path, 1), path, [1], COEFFICIENT, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_a_bias_that_the_config_does_not_announce_is_not_published(
    pico, vector_of, monkeypatch, tmp_path
):
    """transformers would drop it with a line in its log, and be the unsteered model."""
    monkeypatch.setattr(
        exports,
        "write_checkpoint",
        lambda base, edits, config, out: _write_checkpoint(
            base, edits, {**config, "mlp_bias": False}, out
        ),
    )
    path = pico("llama")
    with pytest.raises(VerificationError, match=r"new process.*disagree on .*bias"):
        bake(vector_of(path, 1), path, [1], COEFFICIENT, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_ablation_that_forgets_a_writer_is_not_published(pico, vector_of, monkeypatch, tmp_path):
    """Also in half precision, where rounding would hide much."""
    writers = exports.writers
    monkeypatch.setattr(
        exports,
        "writers",
        lambda base: [one for one in writers(base) if "layers.1.self_attn" not in one[0]],
    )
    path = pico("llama", "bfloat16")
    with pytest.raises(VerificationError, match="before rounding"):
        bake_ablation(vector_of(path, 1), path, 1, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2", "mixtral"])
def test_families_without_a_route_are_refused(family, pico, vector_of, tmp_path):
    path = pico(family)
    for route in ("auto", "bias", "convert", "adapter"):
        with pytest.raises(ModelError, match=family):
            bake(vector_of(path, 1), path, [1], 1.0, tmp_path / "out", route=route)
    with pytest.raises(ModelError, match=family):
        bake_ablation(vector_of(path, 1), path, 1, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("layers", "coefficient", "error", "why"),
    [
        ([1], 0.0, DataError, "nothing to bake"),
        ([1], float("nan"), NonFiniteError, "cannot be scaled by nan"),
        ([1], 1e39, NonFiniteError, "layer 1: the direction holds NaN or infinity"),
        ([3], 1.0, ModelError, "3 blocks, 0 to 2"),
        ([-4], 1.0, ModelError, "3 blocks, 0 to 2"),
        ([], 1.0, DataError, "no layer"),
        ([2, -1], 1.0, DataError, "twice"),
        ([1, 1], 1.0, DataError, "twice"),
        ([0], 1.0, TensorMismatchError, "no direction for layer 0"),
        ([1], 1e-9, DataError, "cannot be told from rounding"),
    ],
)
def test_what_cannot_be_baked_is_refused(
    layers, coefficient, error, why, pico, vector_of, tmp_path
):
    path = pico("llama")
    with pytest.raises(error, match=why):
        bake(vector_of(path, 1, 2), path, layers, coefficient, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_without_a_tokenizer_is_refused(pico, vector_of, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(pico("qwen2"), model)
    for file in model.glob("*token*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        bake(vector_of(model, 1), model, [1], 1.0, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vector_of_another_model_is_refused(pico, vector_of, tmp_path):
    llama, phi3 = pico("llama"), pico("phi3")
    with pytest.raises(
        BaseMismatchError, match=r"warm: was extracted from model .*, but .* is model"
    ):
        bake(vector_of(phi3, 1), llama, [1], 1.0, tmp_path / "out")
    unknown = replace(vector_of(phi3, 1), model="")
    with pytest.raises(BaseMismatchError, match="32 wide"):
        bake(unknown, llama, [1], 1.0, tmp_path / "out")


def test_half_precision_that_overflows_is_refused(pico, vector_of, tmp_path):
    path = pico("llama", "float16")
    with pytest.raises(NonFiniteError, match=r"down_proj.bias: is not finite in torch.float16"):
        bake(vector_of(path, 1), path, [1], 1e6, tmp_path / "out")


def test_an_output_that_exists_or_is_the_base_is_refused(pico, vector_of, tmp_path):
    path = pico("llama")
    with pytest.raises(OutputExistsError):
        bake(vector_of(path, 1), path, [1], 1.0, path)
    with pytest.raises(OutputExistsError, match="force"):
        bake(vector_of(path, 1), path, [1], 1.0, tmp_path)


def test_a_base_whose_weights_are_not_those_of_its_config_is_refused(pico, vector_of, tmp_path):
    path = tmp_path / "odd"
    path.mkdir()
    tensors = load_file(pico("llama") / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "layers.2.mlp.down" not in n}, path / _FILE)
    (path / "config.json").write_bytes((pico("llama") / "config.json").read_bytes())
    with pytest.raises(PersonalityVectorError, match=r"no tensor model.layers.2.mlp.down_proj"):
        bake(vector_of(path, 1), path, [1], 1.0, tmp_path / "out")


_FILE = "model.safetensors"


def _run(*arguments):
    app = typer.Typer()
    app.command()(verb)
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.mark.slow
def test_the_verb(pico, vector_of, tmp_path):
    path, out = pico("llama"), tmp_path / "out"
    vector_of(path, 1).save(tmp_path / "vector")
    given = (tmp_path / "vector", "--model", path, "--layer", 1, "--out", out, "--json")
    done = _run(*given, "--coefficient", -0.7)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["route"] == "bias"
    assert said["proof"]["error"] < 1e-5


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "give --coefficient"),
        (["--ablate", "--coefficient", 1], "without --coefficient"),
        (["--ablate", "--route", "bias"], "without --coefficient"),
        (["--ablate", "--layer", 0], "one --layer"),
        (["--coefficient", 1, "--route", "ablate"], "takes no coefficient"),
    ],
)
def test_the_verb_refuses_what_does_not_go_together(arguments, why, pico, vector_of, tmp_path):
    path = pico("llama")
    vector_of(path, 1).save(tmp_path / "vector")
    given = (tmp_path / "vector", "--model", path, "--layer", 1, "--out", tmp_path / "out")
    done = _run(*given, *arguments)
    assert isinstance(done.exception, RecipeError)
    assert why in str(done.exception)
