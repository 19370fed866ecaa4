"""Extraction equals its formula, computed the slow way, and reads what the blocks put out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector.delta import Delta
from personality_vector.errors import (
    DataError,
    ModelError,
    NonFiniteError,
    TensorMismatchError,
)
from personality_vector.interventions.weights import WeightEdit
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector, steered
from personality_vector.steering.activations import Reader, template_hash
from personality_vector.steering.estimators import ESTIMATORS, shift
from personality_vector.subject.chat import answered, question
from personality_vector.subject.encoding import encode_chats
from personality_vector.subject.models import decoder_blocks, load_model
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi")
HIGH = Pole("extraversion", "high")

LOUD = [
    answered(question("What are you like?"), "I love meeting new people."),
    answered(question("And at a party?", system="Be brief."), "I talk."),
    answered(question("Hi"), "I am the one who talks at every party, and then I talk some more."),
]
QUIET = [
    answered(question("What are you like?"), "I am quiet."),
    answered(question("And at a party?"), "I go home é."),
]


def pooled_activations(model: Any, tokenizer: Any, chats: Any, *how: Any, **named: Any) -> Any:
    return Reader(model, tokenizer, *how, **named).pooled(chats)


def mean_activations(model: Any, tokenizer: Any, chats: Any, *how: Any, **named: Any) -> Any:
    return Reader(model, tokenizer, *how, **named).mean(chats)


@torch.no_grad()
def oracle(model: Any, tokenizer: Any, chats: Any, layer: int) -> Tensor:
    """Mean over chats of the mean over response tokens: one chat at a time, no padding."""
    means = []
    for chat in chats:
        encoded = encode_chats(tokenizer, [chat])
        seen: list[Tensor] = []
        handle = decoder_blocks(model)[layer].register_forward_hook(
            lambda _block, _args, output, seen=seen: seen.append(output)
        )
        out = model(encoded.input_ids, output_hidden_states=True)
        handle.remove()
        if layer + 1 < len(decoder_blocks(model)):
            assert torch.equal(seen[0], out.hidden_states[layer + 1])
        means.append(seen[0][0, encoded.response_mask[0]].double().mean(0))
    return torch.stack(means).mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_extraction_is_the_difference_of_mean_response_activations(loaded, family):
    model, tokenizer = loaded(family)
    vector = SteeringVector.extract(model, tokenizer, LOUD, QUIET, pole=HIGH)
    assert vector.layers == tuple(range(len(decoder_blocks(model))))
    assert (vector.pole, vector.label, vector.counts) == (HIGH, "extraversion:high", (3, 2))
    for layer in vector.layers:
        plus, minus = (oracle(model, tokenizer, side, layer) for side in (LOUD, QUIET))
        assert vector[layer].dtype == torch.float32
        torch.testing.assert_close(vector[layer], (plus - minus).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_and_choice_of_layers_do_not_matter(loaded, family):
    model, tokenizer = loaded(family)
    whole = SteeringVector.extract(model, tokenizer, LOUD, QUIET, batch_size=16)
    last = len(decoder_blocks(model)) - 1
    single = SteeringVector.extract(model, tokenizer, LOUD, QUIET, layers=[-1], batch_size=1)
    assert single.layers == (last,)
    torch.testing.assert_close(single[last], whole[last], rtol=0, atol=1e-5)


def test_swapping_the_sides_negates(loaded):
    model, tokenizer = loaded("qwen2")
    one = SteeringVector.extract(model, tokenizer, LOUD, QUIET)
    other = SteeringVector.extract(model, tokenizer, QUIET, LOUD)
    assert all(torch.equal(one[layer], -other[layer]) for layer in one.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_extraction_sees_steering_at_the_steered_layer(loaded, family):
    """``output_hidden_states`` would not: it records before a user's hook runs."""
    model, tokenizer = loaded(family)
    addition = 3 * torch.randn(48, generator=generator_for(0, "addition"))
    last = len(decoder_blocks(model)) - 1
    plain = mean_activations(model, tokenizer, LOUD, [last])[last]
    with steered(model, {last: addition}):
        moved = mean_activations(model, tokenizer, LOUD, [last])[last]
    torch.testing.assert_close(moved - plain, addition.double(), rtol=0, atol=1e-5)


def test_a_bfloat16_model_gives_nearly_the_same_direction(loaded):
    vectors = [
        SteeringVector.extract(*loaded("llama", dtype), LOUD, QUIET)
        for dtype in ("float32", "bfloat16")
    ]
    assert all(vectors[0].cosine(vectors[1], layer) > 0.999 for layer in vectors[0].layers)


@pytest.mark.parametrize(("sides", "which"), [(([], QUIET), "positive"), ((LOUD, []), "negative")])
def test_an_empty_side_is_refused_by_name(loaded, sides, which):
    with pytest.raises(DataError, match=f"no {which} inputs"):
        SteeringVector.extract(*loaded("llama"), *sides)


def test_equal_sides_are_refused(loaded):
    with pytest.raises(DataError, match="layer 0: the direction is zero"):
        SteeringVector.extract(*loaded("llama"), LOUD, LOUD)


def test_a_model_that_yields_nan_is_refused(loaded):
    model, tokenizer = loaded("llama")
    with torch.no_grad():
        decoder_blocks(model)[1].mlp.down_proj.weight[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="layer 1"):
        SteeringVector.extract(model, tokenizer, LOUD, QUIET)


def test_a_layer_that_is_not_there_is_refused(loaded):
    with pytest.raises(ModelError, match="layer 7"):
        SteeringVector.extract(*loaded("phi"), LOUD, QUIET, layers=[0, 7])


def test_hooks_are_gone_after_an_unusable_chat(loaded):
    model, tokenizer = loaded("llama")
    unanswered = [*LOUD, question("Are you there?")]
    with pytest.raises(DataError, match="must end with a message of the assistant"):
        SteeringVector.extract(model, tokenizer, unanswered, QUIET, batch_size=1)
    assert not any(block._forward_hooks for block in decoder_blocks(model))


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@pytest.mark.parametrize("pooling", ["response_mean", "prompt_last", "prompt_mean", "last"])
def test_a_vector_says_how_it_was_made_and_is_that(loaded, pooling, estimator):
    model, tokenizer = loaded("llama")
    sides = ([LOUD[1], LOUD[2]], [QUIET[1], QUIET[0]])
    vector = SteeringVector.extract(
        model, tokenizer, *sides, pooling=pooling, estimator=estimator, layers=[1]
    )
    assert (vector.pooling, vector.estimator) == (pooling, estimator)
    assert vector.template == template_hash(tokenizer) != ""
    pooled = [pooled_activations(model, tokenizer, side, [1], pooling)[1] for side in sides]
    expected = ESTIMATORS[estimator](*(rows.double() for rows in pooled)).float()
    torch.testing.assert_close(vector[1], expected, rtol=0, atol=1e-5)


def test_pca_of_sides_that_are_no_pairs_is_refused(loaded):
    with pytest.raises(DataError, match="there are 3 positive and 2 negative"):
        SteeringVector.extract(*loaded("llama"), LOUD, QUIET, estimator="pca")


# two models


def test_a_bias_that_was_fine_tuned_is_found_again(loaded):
    """Phi adds the bias of ``mlp.fc2`` to the output of its block, so the shift is that bias."""
    (base, tokenizer), (tuned, _) = loaded("phi"), loaded("phi")
    change = torch.randn(48, generator=generator_for(0, "change"))
    with torch.no_grad():
        decoder_blocks(tuned)[-1].mlp.fc2.bias += change
    vector = SteeringVector.between(base, tuned, tokenizer, LOUD, layers=[-1], batch_size=2)
    torch.testing.assert_close(vector[1], change, rtol=0, atol=1e-5)
    assert (vector.estimator, vector.counts) == ("finetuning_shift", (3, 3))
    with pytest.raises(DataError, match="layer 0: the direction is zero"):
        SteeringVector.between(base, tuned, tokenizer, LOUD)


@pytest.mark.parametrize("pooling", ["response_mean", "prompt_last"])
def test_two_models_and_one_model_with_a_weight_edit_give_the_same_shift(
    loaded, pico, pico_tuned, pooling
):
    base, tokenizer = loaded("qwen2")
    tuned = load_model(pico_tuned("qwen2"))
    vector = SteeringVector.between(base, tuned, tokenizer, LOUD, pooling=pooling)
    edit = WeightEdit(Delta.between(pico("qwen2"), pico_tuned("qwen2")))
    before = mean_activations(base, tokenizer, LOUD, None, pooling)
    with edit.applied(Subject(base, None), 1.0):
        after = mean_activations(base, tokenizer, LOUD, None, pooling)
    for layer, direction in shift(after, before).items():
        torch.testing.assert_close(vector[layer], direction, rtol=0, atol=1e-5)


def test_a_model_minus_itself_points_nowhere(loaded):
    (base, tokenizer), (same, _) = loaded("llama"), loaded("llama")
    with pytest.raises(DataError, match="a direction must have a length"):
        SteeringVector.between(base, same, tokenizer, LOUD)


def test_models_of_another_shape_are_not_compared(loaded):
    (base, tokenizer), (deeper, _) = loaded("phi"), loaded("llama")
    for other in (deeper, loaded("mistral")[0]):
        with pytest.raises(TensorMismatchError) as refused:
            SteeringVector.between(base, other, tokenizer, LOUD)
        assert str(base.name_or_path) in str(refused.value)
        assert str(other.name_or_path) in str(refused.value)


def test_what_differs_between_two_models_is_said_before_they_read(loaded, monkeypatch):
    (base, tokenizer), (other, _) = loaded("llama"), loaded("llama")
    monkeypatch.setattr(
        "personality_vector.steering.vector.Reader",
        lambda *_: pytest.fail("a chat was read"),
    )
    monkeypatch.setattr(other.config, "vocab_size", 301)
    with pytest.raises(TensorMismatchError, match=r"a vocabulary of 300, .* of 301;"):
        SteeringVector.between(base, other, tokenizer, LOUD)
    with pytest.raises(TensorMismatchError, match=r"2 blocks .* 3 blocks"):
        SteeringVector.between(loaded("phi")[0], base, tokenizer, LOUD)


@pytest.mark.parametrize("pooling", ["prompt_last", "prompt_mean"])
@pytest.mark.parametrize("counts", [(3, 3), (3, 2)])
def test_a_pooling_of_the_prompt_needs_other_prompts_on_either_side(loaded, pooling, counts):
    asked = question("What are you like?")
    high, low = (
        [answered(asked, f"{word} {place}") for place in range(count)]
        for word, count in zip(("Loud", "Quiet"), counts, strict=True)
    )
    with pytest.raises(DataError, match="both sides have the same prompts") as refused:
        SteeringVector.extract(*loaded("llama"), high, low, pooling=pooling)
    assert pooling in str(refused.value)
    assert SteeringVector.extract(*loaded("llama"), high, low).counts == counts


def test_prompts_that_differ_in_number_only_are_not_the_same(loaded):
    one, other = ([question(text)] for text in ("Who are you?", "And at night?"))
    vector = SteeringVector.extract(
        *loaded("llama"), one * 2 + other, one + other * 2, pooling="prompt_last"
    )
    assert vector.counts == (3, 3)
