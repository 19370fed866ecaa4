"""A delta belongs in another model only if shapes, sizes, vocabulary and head agree."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.delta.transfer import Transfer, transferred
from personality_vector.errors import CheckpointError, TensorMismatchError
from tests import vlms

NOTHING = vlms.excluding()


def move(
    of: Path, tuned: Path, target: Path, exclude: Callable[[str], bool] = NOTHING
) -> tuple[Delta, Transfer]:
    start = Checkpoint.open(of)
    delta = Delta.between(start, tuned, label="x")
    return transferred(delta, start, Checkpoint.open(target), exclude)


def refusal(of: Path, tuned: Path, target: Path, *kinds: str) -> str:
    with pytest.raises(TensorMismatchError) as caught:
        move(of, tuned, target, vlms.excluding(*kinds))
    said = str(caught.value)
    assert said.startswith("x: ")
    return said.removeprefix("x: ")


@pytest.fixture
def pair(text) -> tuple[Path, Path]:
    """The text model of LLaVA and a fine-tune of it."""
    return text("llava"), text("llava", tuned=0)


def test_vocabularies_of_other_sizes_are_refused_unless_left_alone(pair, text):
    wider = text("llava", vocab_size=100)
    assert refusal(*pair, wider) == (
        f"the vocabularies differ: lm_head.weight has 96 rows in {pair[0]} and 100 in {wider}; "
        "write embeddings: match to carry rows by token, or exclude embeddings and head"
    )
    assert "embed_tokens.weight has 96 rows" in refusal(*pair, wider, "head")
    moved, transfer = move(*pair, wider, vlms.excluding("embeddings", "head"))
    assert transfer.left_alone == ("lm_head.weight", "model.embed_tokens.weight")
    assert len(moved.names) == len(Checkpoint.open(wider).names) - 2


def with_tokens(path: Path, out: Path, vocabulary: Any) -> Path:
    shutil.copytree(path, out)
    (out / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    return out


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"a": 0, "b": 1, "c": 2}, {"a": 0, "c": 1, "b": 2}),
        ({"a": 0, "b": 1, "c": 2}, {"a": 0, "d": 1, "e": 2, "f": 3}),
        ([["a", 0.0], ["b", -1.0], ["c", -2.0]], [["a", 0.0], ["c", -1.0], ["b", -2.0]]),
        ([["a", 0.0], ["b", -1.0], ["c", -2.0]], {"a": 0, "c": 1, "b": 2}),
    ],
    ids=["swapped", "others", "unigram", "two kinds"],
)
def test_rows_that_mean_other_tokens_are_refused(text, tmp_path, ours, theirs):
    of = with_tokens(text("llava"), tmp_path / "of", ours)
    target = with_tokens(text("llava", tuned=1), tmp_path / "target", theirs)
    pair = of, text("llava", tuned=0)
    second = "d" if "d" in theirs else "c"
    assert refusal(*pair, target, "embeddings") == (
        f"the vocabularies differ in 2 tokens: 1 is 'b' in {of} and {second!r} in {target}; "
        "write embeddings: match to carry rows by token, or exclude embeddings and head"
    )
    assert move(*pair, target, vlms.excluding("embeddings", "head"))[0].names


def test_rows_that_mean_the_same_as_far_as_both_have_them_are_accepted(text, tmp_path):
    pair = with_tokens(text("llava"), tmp_path / "of", {"a": 0, "b": 1}), text("llava", tuned=0)
    longer = with_tokens(text("llava", tuned=1), tmp_path / "1", {"b": 1, "a": 0, "<image>": 2})
    for target in (longer, text("llava", tuned=1)):  # the second has no tokenizer
        assert len(move(*pair, target)[0].names) == 21


@pytest.mark.parametrize("vocabulary", [{"a": None}, ["ab", 1], 3])
def test_a_broken_vocabulary_is_named(text, tmp_path, vocabulary):
    of = with_tokens(text("llava"), tmp_path / "of", {"a": 0})
    target = with_tokens(text("llava", tuned=1), tmp_path / "target", vocabulary)
    with pytest.raises(CheckpointError, match=r"target/tokenizer\.json: its model\.vocab is not"):
        move(of, text("llava", tuned=0), target)


def test_one_head_against_none_is_refused_unless_left_out(pair, text):
    tied = text("llava", tie_word_embeddings=True)
    assert refusal(*pair, tied) == (
        f"{pair[0]} has lm_head.weight and {tied} has none, as its head is tied to its "
        "embeddings; exclude head to leave it out"
    )
    assert "model.embed_tokens.weight" in move(*pair, tied, vlms.excluding("head"))[0].names


def test_no_head_against_one_is_refused_unless_the_head_is_left_alone(text, vlm):
    tied = text("llava", tie_word_embeddings=True)
    pair, target = (tied, text("llava", tie_word_embeddings=True, tuned=0)), vlm("llava")
    said = refusal(*pair, target, "norms")
    assert said.startswith(f"{target} has language_model.lm_head.weight and {tied} has none")
    for kinds in (["head"], ["embeddings"], ["embeddings", "head"]):
        transfer = move(*pair, target, vlms.excluding(*kinds))[1]
        assert "language_model.lm_head.weight" in transfer.left_alone


def test_a_tensor_without_a_place_is_named_with_the_sizes_that_differ(text):
    deeper = text("llava", num_hidden_layers=3), text("llava", num_hidden_layers=3, tuned=0)
    assert refusal(*deeper, text("llava")) == (
        f"model.layers.2.input_layernorm.weight of {deeper[0]} has no place in {text('llava')} "
        "(the models differ in num_hidden_layers (3 and 2)); exclude norms to leave it out"
    )


@pytest.mark.parametrize("with_config", [True, False])
def test_layers_of_a_deeper_model_are_not_those_of_a_shallower(pair, text, tmp_path, with_config):
    """Every tensor would find a place: a model grown by cross-attention has other layers there."""
    deeper = shutil.copytree(text("llava", num_hidden_layers=3), tmp_path / "deeper")
    if not with_config:
        (deeper / "config.json").unlink()
    said = refusal(*pair, deeper)
    assert said == f"{pair[0]} and {deeper} differ in num_hidden_layers (2 and 3)"


def test_other_shapes_are_refused_with_both_of_them(pair, text, vlm):
    other = text("llava", hidden_size=48)
    assert refusal(*pair, other, "embeddings", "head") == (
        f"model.layers.0.input_layernorm.weight has shape [32] in {pair[0]}, [48] in {other} "
        "(the models differ in hidden_size (32 and 48))"
    )
    wide = text("llava", intermediate_size=64), text("llava", intermediate_size=64, tuned=0)
    assert refusal(*wide, vlm("llava")) == (
        f"model.layers.0.mlp.down_proj.weight has shape [32, 64] in {wide[0]}, language_model."
        f"model.layers.0.mlp.down_proj.weight has [32, 48] in {vlm('llava')}"
    )
    assert "lm_head.weight has shape [96, 32]" in refusal(*pair, other)


def test_heads_of_attention_that_are_cut_otherwise_are_refused_though_shapes_agree(pair, text):
    other = text("llava", num_attention_heads=8, num_key_value_heads=4)
    assert refusal(*pair, other) == (
        f"{pair[0]} and {other} differ in num_attention_heads (4 and 8), "
        "num_key_value_heads (2 and 4)"
    )


def test_quantised_weights_take_no_delta(toy):
    weight = torch.ones(2, 3)
    of, tuned = toy("of", a=weight, b=weight), toy("tuned", a=weight, b=weight + 1)
    target = toy("target", a=weight, b=weight.to(torch.int8))
    assert refusal(of, tuned, target) == (
        f"b of {target} is torch.int8; a delta is added to floating-point weights, not to "
        "quantised ones"
    )


def test_a_target_that_has_a_tensor_twice_is_refused(pair, toy):
    target = toy(
        "target", **{"lm_head.weight": torch.ones(1), "model.lm_head.weight": torch.ones(1)}
    )
    with pytest.raises(TensorMismatchError, match=r"are both lm_head\.weight"):
        move(*pair, target)


def test_an_adapter_asks_nothing_about_the_vocabulary(pico, pico_tuned, adapter, tmp_path):
    of = Checkpoint.open(pico("llama"))
    delta = Delta.from_lora(adapter(target_modules=["q_proj"]), of)
    tokens = {"a": 0, "b": 1}
    shutil.copytree(pico_tuned("llama"), tmp_path / "target")
    (tmp_path / "target" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}}))
    moved, _ = transferred(delta, of, Checkpoint.open(tmp_path / "target"), NOTHING)
    assert moved.names == delta.names
