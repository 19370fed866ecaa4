"""Words and patterns mean tensors; alpha is a number, numbers over depth, or numbers by pattern."""

import pytest

from personality_vector.errors import RecipeError
from personality_vector.merging.summands import (
    WORDS,
    alpha_by_tensor,
    chosen,
    selected,
)

LAYERS = [
    f"model.layers.{layer}.{part}"
    for layer in range(5)
    for part in ("input_layernorm.weight", "mlp.up_proj.weight", "self_attn.q_proj.weight")
]
NAMES = ["lm_head.weight", "model.embed_tokens.weight", *LAYERS, "model.norm.weight"]
VISION = ["model.visual.blocks.0.mlp.weight", "model.visual.blocks.1.mlp.weight"]


# --- words and patterns ---


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("embeddings", {"model.embed_tokens.weight"}),
        ("head", {"lm_head.weight"}),
        ("norms", {"model.norm.weight", *(n for n in LAYERS if "layernorm" in n)}),
        ("*", set(NAMES)),
        ("*.mlp.*", {n for n in LAYERS if ".mlp." in n}),
        ("model.layers.3.*", {n for n in LAYERS if ".3." in n}),
        ("model.layers.[13].mlp.*", {f"model.layers.{i}.mlp.up_proj.weight" for i in (1, 3)}),
        ("lm_head.weight", {"lm_head.weight"}),
        ("lm_head?weight", {"lm_head.weight"}),
    ],
)
def test_a_word_or_a_pattern_means_tensors(pattern, expected):
    assert chosen(NAMES, pattern) == expected


def test_vision_is_what_lies_outside_the_language_part():
    assert chosen(NAMES + VISION, "vision") == set(VISION)
    assert set(WORDS) == {"embeddings", "head", "norms", "vision"}


@pytest.mark.parametrize(
    "pattern", ["vision", "mlp", "*.MLP.*", "layers.3.*", "", "Norms", "model.layers.5.*"]
)
def test_what_means_no_tensor_is_refused(pattern):
    """Patterns are over the whole name, and capitals count."""
    for refused in (
        lambda: chosen(NAMES, pattern),
        lambda: selected(NAMES, [pattern], []),
        lambda: selected(NAMES, [], [pattern]),
        lambda: selected(NAMES, ["*", pattern], []),
        lambda: alpha_by_tensor({"*": 1.0, pattern: 0.5}, NAMES),
    ):
        with pytest.raises(RecipeError) as caught:
            refused()
        assert str(caught.value).startswith(f"{pattern!r} matches no tensor; write embeddings,")


def test_include_takes_the_union_and_exclude_takes_away():
    assert selected(NAMES, [], []) == set(NAMES)
    assert selected(NAMES, ["norms", "head"], []) == {n for n in NAMES if "norm" in n or "lm" in n}
    assert selected(NAMES, ["*.mlp.*"], ["*.0.*"]) == {
        f"model.layers.{i}.mlp.up_proj.weight" for i in range(1, 5)
    }
    assert selected(NAMES, [], ["embeddings", "head"]) == set(NAMES[2:])


def test_nothing_left_is_refused():
    with pytest.raises(RecipeError, match="leave no tensor"):
        selected(NAMES, ["norms"], ["*norm*"])


# --- layers ---


# --- alpha ---


@pytest.mark.parametrize("alpha", [0.7, -1.5, 0.0])
def test_a_number_is_that_of_every_tensor(alpha):
    assert {alpha_by_tensor(alpha, NAMES)(name) for name in NAMES} == {alpha}


@pytest.mark.parametrize(
    ("alpha", "by_layer"),
    [
        ((0.0, 1.0), [0.0, 0.25, 0.5, 0.75, 1.0]),
        ((1.0, -1.0), [1.0, 0.5, 0.0, -0.5, -1.0]),
        ((0.0, 1.0, 0.0), [0.0, 0.5, 1.0, 0.5, 0.0]),
        ((1.0, 2.0, 4.0, 8.0, 16.0), [1.0, 2.0, 4.0, 8.0, 16.0]),
        ((0.3,), [0.3] * 5),
        ((0.0, 3.0, 6.0, 9.0), [0.0, 2.25, 4.5, 6.75, 9.0]),
        (tuple(map(float, range(10))), [0.0, 2.25, 4.5, 6.75, 9.0]),
    ],
)
def test_numbers_over_depth_are_interpolated(alpha, by_layer):
    at = alpha_by_tensor(alpha, NAMES)
    for layer, expected in enumerate(by_layer):
        assert {at(name) for name in LAYERS if f".{layer}." in name} == {expected}
    assert at("model.embed_tokens.weight") == alpha[0] == at("model.layers.0.mlp.up_proj.weight")
    assert at("lm_head.weight") == alpha[-1] == at("model.layers.4.mlp.up_proj.weight")
    assert at("model.norm.weight") == alpha[-1]


@pytest.mark.parametrize("layers", [2, 3, 7, 24, 33, 80])
def test_ends_are_exact_whatever_the_depth(layers):
    names = [f"model.layers.{layer}.mlp.weight" for layer in range(layers)]
    for alpha in ((0.1, 0.7), (0.3, 0.1, 0.9), (0.1, 0.2, 0.3, 0.4, 0.7)):
        at = alpha_by_tensor(alpha, names)
        assert (at(names[0]), at(names[-1])) == (alpha[0], alpha[-1])


def test_a_model_of_one_layer_has_the_first_number_there():
    at = alpha_by_tensor((0.2, 0.8), ["model.layers.0.mlp.weight", "model.norm.weight"])
    assert at("model.layers.0.mlp.weight") == 0.2
    assert at("model.norm.weight") == 0.8


def test_stacks_of_other_depth_each_run_from_first_to_last():
    at = alpha_by_tensor((0.0, 1.0), NAMES + VISION)
    assert [at(name) for name in VISION] == [0.0, 1.0]
    assert at("model.layers.1.mlp.up_proj.weight") == 0.25


@pytest.mark.parametrize(
    "name",
    ["transformer.wte.weight", "model.embed_tokens.weight", "gpt_neox.embed_in.weight"],
)
def test_embeddings_come_before_the_layers(name):
    at = alpha_by_tensor((0.2, 0.8), [name, *LAYERS])
    assert at(name) == 0.2


def test_numbers_over_depth_need_layers():
    with pytest.raises(RecipeError, match="no tensor lies in a numbered layer"):
        alpha_by_tensor((0.0, 1.0), ["model.norm.weight", "lm_head.weight"])


def test_of_numbers_by_pattern_the_first_that_matches_counts_and_others_have_0():
    table = {"*.layers.2.mlp.*": 0.1, "*.mlp.*": 0.2, "norms": -1.0, "*.0.*": 0.5}
    at = alpha_by_tensor(table, NAMES)
    assert at("model.layers.2.mlp.up_proj.weight") == 0.1
    assert at("model.layers.0.mlp.up_proj.weight") == 0.2
    assert at("model.layers.0.input_layernorm.weight") == -1.0
    assert at("model.norm.weight") == -1.0
    assert at("model.layers.0.self_attn.q_proj.weight") == 0.5
    assert at("model.layers.1.self_attn.q_proj.weight") == 0.0
    assert at("lm_head.weight") == 0.0
    turned = alpha_by_tensor(dict(reversed(table.items())), NAMES)
    assert turned("model.layers.2.mlp.up_proj.weight") == 0.2
    assert turned("model.layers.0.mlp.up_proj.weight") == 0.5
