"""What ``pvec merge`` refuses: one sentence, exit code 1, no output, no traceback."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from personality_vector.cli.main import run
from personality_vector.delta import Delta

WEIGHT = "model.layers.1.mlp.up_proj.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def bench(pico, pico_tuned, tmp_path):
    """Return ``(folder, recipe)``: a good merge recipe, with ``tuned/`` for a test to damage."""
    shutil.copytree(pico_tuned("llama"), tmp_path / "tuned")
    recipe = {
        "base": str(pico("llama")),
        "terms": [{"tuned": str(tmp_path / "tuned"), "alpha": 0.5}],
    }
    return tmp_path, recipe


@pytest.fixture
def merge(bench, capsys):
    """Return ``merge(*words)``: write the recipe, merge by it and return exit code and stderr."""
    folder, recipe = bench

    def call(*words):
        text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, allow_unicode=True)
        (folder / "mine.yaml").write_text(text)
        capsys.readouterr()
        code = run(["merge", str(folder / "mine.yaml"), "--out", str(folder / "out"), *words])
        printed = capsys.readouterr()
        assert code == 0 or printed.out == ""
        return code, printed.err

    return call


def require_refused(folder, ended, message):
    code, err = ended
    assert code == 1
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert all(character.isprintable() for character in err.rstrip("\n"))
    assert [path.name for path in folder.iterdir() if "out" in path.name] == []


def test_the_recipe_is_good_as_it_is(merge, bench):
    assert merge() == (0, "")
    assert (bench[0] / "out" / "model.safetensors").is_file()


RECIPES = {
    "misspelt key": ({"sede": 1}, "mine.yaml: unknown key 'sede'; did you mean 'seed'?"),
    "unknown method": ({"method": "slerpy"}, "slerpy"),
    "option of another method": (
        {"method": "ties", "options": {"drop_rate": 0.5}},
        "got drop_rate (density = 1 - drop_rate)",
    ),
    "impossible option": ({"method": "ties", "options": {"density": 2}}, "density"),
    "unknown option": ({"options": {"densty": 0.2}}, "densty"),
    "missing base": ({"base": "/no/such/base"}, "/no/such/base: no such directory"),
    "missing term": (
        {"terms": [{"tuned": "/no/such/model", "alpha": 1.0}]},
        "/no/such/model: no such directory",
    ),
    "missing delta": ({"terms": [{"delta": "absent", "alpha": 1.0}]}, "absent: no such directory"),
    "NaN alpha": ({"terms": [{"delta": "d", "alpha": float("nan")}]}, "terms.0.alpha"),
    "a terminal's command in a key": ({"\x1b[31mred\x07": 1}, "unknown key '\\x1b[31mred\\x07'"),
    "a terminal's command in a path": (
        {"base": "/no/\x1b]0;title\x07\u202e/base"},
        "/no/\\x1b]0;title\\x07\\u202e/base: no such directory",
    ),
}


@pytest.mark.parametrize(("change", "message"), RECIPES.values(), ids=RECIPES)
def test_a_wrong_recipe_is_refused(merge, bench, change, message):
    folder, recipe = bench
    recipe.update(change)
    require_refused(folder, merge(), message)


def poke(value):
    def edit(tensors):
        tensors[WEIGHT][3, 5] = value

    return edit


TENSORS = {
    "NaN": (poke(float("nan")), f"{WEIGHT}: 1 of 3840 values are NaN or infinite"),
    "infinity": (poke(float("inf")), f"{WEIGHT}: 1 of 3840 values are NaN or infinite"),
    "shape": (
        lambda tensors: tensors.update({WEIGHT: torch.ones(80, 47)}),
        f"{WEIGHT} has shape [80, 47], in the base",
    ),
    "broadcastable shape": (
        lambda tensors: tensors.update({WEIGHT: torch.ones(1, 48)}),
        f"{WEIGHT} has shape [1, 48], in the base",
    ),
    "missing tensor": (lambda tensors: tensors.pop(WEIGHT), f"tuned: lacks {WEIGHT}; a fine-tune"),
    "tensor too many": (
        lambda tensors: tensors.update({"extra.weight": torch.ones(2)}),
        "tuned: adds extra.weight; a fine-tune",
    ),
    "integers": (
        lambda tensors: tensors.update({WEIGHT: torch.ones(80, 48, dtype=torch.int32)}),
        f"{WEIGHT} is torch.int32, not torch.float32",
    ),
    "a terminal's command in a name": (
        lambda tensors: tensors.update({"\x1b[2Jevil\r\n": torch.ones(2)}),
        "refused tensor name '\\x1b[2Jevil\\r\\n'",
    ),
    "a path in a name": (
        lambda tensors: tensors.update({"../evil": torch.ones(2)}),
        "refused tensor name '../evil'",
    ),
}


@pytest.mark.parametrize(("edit", "message"), TENSORS.values(), ids=TENSORS)
def test_a_wrong_tensor_is_refused(merge, bench, edit, message):
    folder, _ = bench
    file = folder / "tuned" / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    require_refused(folder, merge(), message)


def without_weights(folder):
    (folder / "model.safetensors").unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def indexed(folder, shard):
    file = folder / "model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    file.rename(folder / "moved.safetensors")


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


FILES = {
    "truncated": (cut, "is it truncated?"),
    "empty file": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "truncated or not safetens",
    ),
    "Git-LFS pointer": (
        lambda f: (f / "model.safetensors").write_bytes(POINTER),
        "is a Git-LFS pointer, not weights; run `git lfs pull`",
    ),
    "no weights": (without_weights, "has neither model.safetensors nor"),
    "pickle": (pickled, "pickled weights can run code and are refused"),
    "index leads outside": (
        lambda f: indexed(f, "../../secret.safetensors"),
        "refused shard name '../../secret.safetensors': not a plain file name",
    ),
    "shard missing": (lambda f: indexed(f, "a.safetensors"), "a.safetensors: cannot be read"),
}


@pytest.mark.parametrize(("damage", "message"), FILES.values(), ids=FILES)
def test_a_damaged_checkpoint_is_refused(merge, bench, damage, message):
    folder, _ = bench
    damage(folder / "tuned")
    require_refused(folder, merge(), message)


def test_a_delta_of_another_base_with_the_same_shapes_is_refused(merge, bench, pico_tuned):
    folder, recipe = bench
    other, tuned = pico_tuned("llama", seed=1), pico_tuned("llama", seed=2)
    Delta.between(other, tuned).save(folder / "delta")
    recipe["terms"] = [{"delta": str(folder / "delta"), "alpha": 1.0}]
    require_refused(folder, merge(), "delta: is a delta of base")


def test_a_model_of_another_architecture_is_refused(merge, bench, pico):
    folder, recipe = bench
    recipe["terms"] = [{"tuned": str(pico("phi")), "alpha": 1.0}]
    require_refused(folder, merge(), "a fine-tune of")


def test_a_change_too_large_for_the_dtype_is_refused(merge, bench):
    folder, recipe = bench
    recipe["terms"][0]["alpha"] = 1e39
    require_refused(folder, merge(), "while at tensor")


@pytest.mark.parametrize("place", ["tuned", "tuned/inside"])
@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_output_that_is_an_input_is_refused(bench, merge, place, force):
    folder, _ = bench
    before = (folder / "tuned" / "model.safetensors").read_bytes()
    code, err = merge("--out", str(folder / place), *force)
    assert code == 1
    assert "is, holds or lies in the input" in err
    assert (folder / "tuned" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_output_that_exists_is_refused_and_left_alone(merge, bench, force):
    folder, _ = bench
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("mine")
    code, err = merge(*force)
    assert code == 1
    assert "out: exists" in err or "was not written by this tool" in err
    assert [path.name for path in (folder / "out").iterdir()] == ["thesis.txt"]
