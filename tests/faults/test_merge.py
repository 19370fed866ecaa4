"""What ``pvec merge`` refuses: one sentence, exit code 1, no output, no traceback."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector.delta import Delta
from personality_vector.merging import engine

WEIGHT = "model.layers.1.mlp.up_proj.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def at_once(monkeypatch):
    """A refusal comes before there is an output, even a hidden one."""
    monkeypatch.setattr(engine, "AtomicDirectory", lambda *_, **__: pytest.fail("output begun"))


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
    # These two must be found by the plan, which is all that --dry-run checks.
    "probabilities below 0": (
        {"method": "della", "options": {"drop_rate": 0.1, "epsilon": 0.3}},
        "epsilon",
    ),
    "a share of nothing": (
        {"method": "breadcrumbs", "options": {"beta": 0.9, "gamma": 0.2}},
        "gamma",
    ),
    "unknown election": ({"method": "ties", "options": {"election": "mob"}}, "mass or count"),
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


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("change", "message"), RECIPES.values(), ids=RECIPES)
def test_a_wrong_recipe_is_refused(merge, bench, change, message):
    folder, recipe = bench
    recipe.update(change)
    require_refused(folder, merge(), message)


def poke(value):
    def edit(tensors):
        tensors[WEIGHT][3, 5] = value

    return edit


def other_vocabulary(tensors):
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:10]])


NUMBERS = {
    "NaN": (float("nan"), "1 of 3840 values are NaN or infinite"),
    "infinity": (float("inf"), "1 of 3840 values are NaN or infinite"),
    "minus infinity": (float("-inf"), "1 of 3840 values are NaN or infinite"),
}


@pytest.mark.parametrize(("place", "alpha"), [("tuned", 0.5), ("base", 0.5), ("base", 0.0)])
@pytest.mark.parametrize(("value", "message"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_that_is_none_is_refused(merge, bench, pico, value, message, place, alpha):
    folder, recipe = bench
    recipe["terms"][0]["alpha"] = alpha
    if place == "base":
        recipe["base"] = str(shutil.copytree(pico("llama"), folder / "base"))
    file = folder / place / "model.safetensors"
    tensors = load_file(file)
    poke(value)(tensors)
    save_file(tensors, file)
    require_refused(folder, merge(), f"{file}: {WEIGHT}: {message}")


TENSORS = {
    "other vocabulary": (
        other_vocabulary,
        "lm_head.weight has shape [310, 48], in the base",
    ),
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


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("edit", "message"), TENSORS.values(), ids=TENSORS)
def test_a_wrong_tensor_is_refused(merge, bench, edit, message):
    folder, _ = bench
    file = folder / "tuned" / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    require_refused(folder, merge(), message)


def test_a_head_that_is_a_copy_of_the_embeddings_is_passed_over(merge, bench, pico, pico_tuned):
    folder, recipe = bench
    recipe["base"] = str(pico("llama", tied=True))
    shutil.rmtree(folder / "tuned")
    shutil.copytree(pico_tuned("llama", tied=True), folder / "tuned")
    file = folder / "tuned" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file)
    assert merge()[0] == 0
    assert "lm_head.weight" not in load_file(folder / "out" / "model.safetensors")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("how", ["by reference", "saved"])
def test_a_delta_of_zero_is_refused(merge, bench, pico, how):
    folder, recipe = bench
    shutil.rmtree(folder / "tuned")
    shutil.copytree(pico("llama"), folder / "tuned")
    if how == "saved":
        Delta.between(pico("llama"), folder / "tuned").save(folder / "zero")
        recipe["terms"] = [{"delta": str(folder / "zero"), "alpha": 1.0}]
    message = "tuned: is zero in every tensor: the fine-tuned model equals the base"
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


def rewritten(folder, change):
    """Change the header of the weights: a table of dtypes, shapes and offsets."""
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def overlapping(table):
    """Let a tensor lie where another of its size does."""
    other = table[WEIGHT.replace("layers.1", "layers.0")]
    table[WEIGHT]["data_offsets"] = other["data_offsets"]


def beyond(table):
    table[WEIGHT]["data_offsets"] = [10**9, 10**9 + 4 * 3840]


FILES = {
    "truncated": (cut, "is it truncated?"),
    "overlapping tensors": (lambda f: rewritten(f, overlapping), "overlaps another or leaves a"),
    "a tensor beyond the end": (lambda f: rewritten(f, beyond), "overlaps another or leaves a"),
    "empty file": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "truncated or not safetens",
    ),
    "Git-LFS pointer": (
        lambda f: (f / "model.safetensors").write_bytes(POINTER),
        "is a Git-LFS pointer, not the file itself; run `git lfs pull`",
    ),
    "no weights": (without_weights, "has neither model.safetensors nor"),
    "pickle": (pickled, "pytorch_model.bin: pickled weights can run code and are not opened"),
    "pickle, and what to do": (pickled, "tuned --out DIR`"),
    "index leads outside": (
        lambda f: indexed(f, "../../secret.safetensors"),
        "refused shard name '../../secret.safetensors': not a plain file name",
    ),
    "shard missing": (lambda f: indexed(f, "a.safetensors"), "a.safetensors: cannot be read"),
}


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("damage", "message"), FILES.values(), ids=FILES)
def test_a_damaged_checkpoint_is_refused(merge, bench, damage, message):
    folder, _ = bench
    damage(folder / "tuned")
    require_refused(folder, merge(), message)


@pytest.mark.usefixtures("at_once")
def test_a_delta_of_another_base_with_the_same_shapes_is_refused(merge, bench, pico_tuned):
    folder, recipe = bench
    other, tuned = pico_tuned("llama", seed=1), pico_tuned("llama", seed=2)
    Delta.between(other, tuned).save(folder / "delta")
    recipe["terms"] = [{"delta": str(folder / "delta"), "alpha": 1.0}]
    require_refused(folder, merge(), "delta: is a delta of base")


@pytest.mark.usefixtures("at_once")
def test_a_model_of_the_same_architecture_and_other_weights_is_refused(merge, bench, pico):
    """Names, shapes and dtypes agree; the content does not."""
    folder, recipe = bench
    other = shutil.copytree(pico("llama"), folder / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({k: t.flip(0).contiguous() for k, t in tensors.items()}, other / "model.safetensors")
    recipe["terms"] = [{"tuned": str(other), "alpha": 0.5}]
    require_refused(folder, merge(), f"other: is not a fine-tune of {pico('llama')}")


@pytest.mark.usefixtures("at_once")
def test_a_model_of_another_architecture_is_refused(merge, bench, pico):
    folder, recipe = bench
    recipe["terms"] = [{"tuned": str(pico("phi")), "alpha": 1.0}]
    require_refused(folder, merge(), "a fine-tune of")


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "della"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("terms", [1, 2])
def test_a_change_too_large_for_the_dtype_is_refused(
    merge, bench, pico, pico_tuned, dtype, method, terms
):
    """Whatever computes it: bfloat16 has a loop of its own, which must look at what it writes."""
    folder, recipe = bench
    recipe["base"], tuned = str(pico("llama", dtype)), str(pico_tuned("llama", dtype))
    recipe["terms"] = [{"tuned": tuned, "alpha": 1e42} for _ in range(terms)]
    recipe["method"] = method
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
