"""Adding to block outputs: which block, which shape, and what is refused."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from personality_vector.errors import BaseMismatchError, DataError, ModelError, NonFiniteError
from personality_vector.numeric.random import generator_for
from personality_vector.steering import EDITS, Gate, Positions, resolve_layers, steered
from personality_vector.subject.models import decoder_blocks, load_model
from personality_vector.subject.prompts import Prompts, reading

HIDDEN = 48


class ToyBlock(nn.Module):
    """Returns a tuple, as transformers 4 did, or the tensor that it was given, unchanged."""

    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.as_tuple = as_tuple

    def forward(self, hidden: Tensor) -> Any:
        return (hidden, "attention") if self.as_tuple else hidden


class Toy(nn.Module):
    def __init__(self, as_tuple: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ToyBlock(as_tuple) for _ in range(2))
        text = SimpleNamespace(num_hidden_layers=2, hidden_size=4)
        self.config = SimpleNamespace(get_text_config=lambda: text)


def hooks_on(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.fixture
def llama(pico):
    return load_model(pico("llama"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tuple_stays_a_tuple_and_only_its_first_item_moves(dtype):
    hidden, vector = torch.ones(2, 3, 4, dtype=dtype), torch.arange(4.0)
    model = Toy(as_tuple=True)
    with steered(model, {1: vector}):
        assert model.blocks[0](hidden) == (hidden, "attention")
        moved, rest = model.blocks[1](hidden)
    assert rest == "attention"
    assert moved.dtype == dtype
    assert torch.equal(moved, hidden + vector.to(dtype))


def test_the_output_is_not_modified_in_place():
    hidden, model = torch.ones(1, 1, 4), Toy(as_tuple=False)
    with steered(model, {0: torch.ones(4)}):
        assert torch.equal(model.blocks[0](hidden), 2 * torch.ones(1, 1, 4))
    assert torch.equal(hidden, torch.ones(1, 1, 4))


def test_every_width_of_output_gets_the_original_vector():
    """A cast to bfloat16 for one call must not lose bits for a later call in float32."""
    vector, model = torch.full((4,), 1.0 + 2**-20), Toy(as_tuple=False)
    with steered(model, {0: vector}):
        model.blocks[0](torch.zeros(1, 1, 4, dtype=torch.bfloat16))
        assert torch.equal(model.blocks[0](torch.zeros(1, 1, 4))[0, 0], vector)


def test_gradients_flow_through_an_addition():
    hidden, model = torch.ones(1, 1, 4, requires_grad=True), Toy(as_tuple=False)
    with steered(model, {0: torch.ones(4)}):
        model.blocks[0](hidden).sum().backward()
    assert torch.equal(hidden.grad, torch.ones(1, 1, 4))


def test_a_direction_of_zero_is_refused(llama):
    with (
        pytest.raises(DataError, match="layer 0: the direction is zero"),
        steered(llama, {0: torch.zeros(HIDDEN), 1: torch.ones(HIDDEN)}),
    ):
        pytest.fail("the body must not run")
    assert hooks_on(llama) == 0


def test_no_direction_at_all_is_refused(llama):
    with pytest.raises(DataError, match="no direction was given"), steered(llama, {}):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("layer", [3, -1])
def test_a_layer_that_is_not_there_is_refused(llama, layer):
    good = {0: torch.ones(HIDDEN)}
    with (
        pytest.raises(ModelError, match=rf"layer {layer} does not exist.*3 blocks, 0 to 2"),
        steered(llama, good | {layer: torch.ones(HIDDEN)}),
    ):
        pytest.fail("the body must not run")
    assert hooks_on(llama) == 0


@pytest.mark.parametrize("shape", [(HIDDEN + 1,), (1, HIDDEN), (), (1,)])
def test_another_width_is_refused_even_where_it_would_broadcast(llama, shape):
    with pytest.raises(BaseMismatchError, match="layer 1"), steered(llama, {1: torch.ones(shape)}):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_is_refused(llama, bad):
    vector = torch.ones(HIDDEN)
    vector[5] = bad
    with pytest.raises(NonFiniteError, match="layer 2"), steered(llama, {2: vector}):
        pytest.fail("the body must not run")


def test_negative_layers_count_from_the_end(llama):
    assert resolve_layers(llama, [-1, 0, -2]) == (2, 0, 1)


def test_layers_that_make_no_sense_are_refused(llama):
    with pytest.raises(ModelError, match="layer -4"):
        resolve_layers(llama, [0, -4])
    with pytest.raises(DataError, match="same block twice"):
        resolve_layers(llama, [2, -1])
    with pytest.raises(DataError, match="no layer"):
        resolve_layers(llama, [])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), [1.0, float("nan")]])
def test_a_strength_that_is_not_finite_is_refused(llama, bad):
    with (
        pytest.raises(NonFiniteError, match="strength must be a finite number"),
        steered(llama, {0: torch.ones(HIDDEN)}, bad),
    ):
        pytest.fail("the body must not run")


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e30), ("float16", 300.0)])
def test_a_product_that_the_dtype_cannot_hold_is_refused(pico, dtype, size):
    model = load_model(pico("llama"), dtype=dtype)
    with (
        pytest.raises(NonFiniteError, match=rf"layer 0: .* too large for torch.{dtype}"),
        steered(model, {0: torch.full((HIDDEN,), size)}, size),
    ):
        pytest.fail("the body must not run")


@pytest.mark.parametrize("bad", [[], torch.ones(1, 1)])
def test_a_strength_of_another_shape_is_refused(llama, bad):
    with (
        pytest.raises(DataError, match=r"give a number, or \[rows\]"),
        steered(llama, {0: torch.ones(HIDDEN)}, bad),
    ):
        pytest.fail("the body must not run")


def test_strengths_of_other_rows_than_the_batch_are_refused(llama):
    ids = torch.ones(3, 4, dtype=torch.int64)
    with (
        steered(llama, {0: torch.ones(HIDDEN)}, [1.0, 2.0]),
        pytest.raises(DataError, match="2 strengths were given for a batch of 3 rows"),
    ):
        llama(ids)


def test_a_plain_pass_has_to_say_where_its_prompt_ends(llama):
    with (
        steered(llama, {0: torch.ones(HIDDEN)}, positions=Positions.parse("response")),
        pytest.raises(DataError, match="positions response: where the prompt ends is unknown"),
    ):
        llama(torch.ones(1, 4, dtype=torch.int64))


def mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 32}
    return MambaForCausalLM(MambaConfig(**sizes)).eval()


def with_virtual_tokens() -> Any:
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, intermediate_size=8, vocab_size=32)
    tuned = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return peft.get_peft_model(LlamaForCausalLM(config), tuned)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft's, of transformers 5
@pytest.mark.parametrize(
    ("make", "why"), [(mamba, "takes no past_key_values"), (with_virtual_tokens, "virtual tokens")]
)
def test_where_columns_cannot_be_told_only_all_is_possible(make, why):
    with torch.random.fork_rng(devices=[]):
        model = make()
    directions = {0: torch.ones(8)}
    with steered(model, directions):
        assert hooks_on(model) >= 1
    with (
        pytest.raises(ModelError, match=f"at positions all only: .*{why}"),
        steered(model, directions, positions=Positions.parse("response")),
    ):
        pytest.fail("the body must not run")


def test_guidance_reads_without_the_prompt_and_is_refused(llama):
    ids = torch.tensor([[5, 6, 7]])
    with (
        steered(llama, {0: torch.ones(HIDDEN)}, positions=Positions.parse("response")),
        pytest.raises(DataError, match=r"guidance_scale 1\.5 reads every text a second time"),
    ):
        llama.generate(ids, guidance_scale=1.5, max_new_tokens=2)


@pytest.mark.parametrize("how", ["positional", "named", "model's own"])
def test_guidance_is_found_wherever_it_is_asked_for(llama, how):
    from transformers import GenerationConfig

    ids, config = torch.tensor([[5, 6, 7]]), GenerationConfig(guidance_scale=2.0, max_new_tokens=2)
    args = (ids, config) if how == "positional" else (ids,)
    given = {"generation_config": config} if how == "named" else {}
    if how == "model's own":
        llama.generation_config.guidance_scale = 2.0
        given = {"generation_config": GenerationConfig(max_new_tokens=2)}
    where = Positions.parse("response")
    with steered(llama, {0: torch.ones(HIDDEN)}, positions=where):
        with pytest.raises(DataError, match=r"guidance_scale 2\.0"):
            llama.generate(*args, **given)
        llama.generate(*args, **given, guidance_scale=1.0, max_new_tokens=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_one_strength_does_what_the_same_for_each_row_does(llama, dtype):
    """Whatever the dtype of the direction: products are float32."""
    ids = torch.tensor([[5, 6, 7], [6, 7, 8]])
    direction = torch.linspace(1, 100, HIDDEN).to(dtype)
    found = []
    for strength in (1000.1, [1000.1, 1000.1]):
        with torch.no_grad(), steered(llama, {2: direction}, strength):
            found.append(llama(ids).logits)
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(found[0], found[1])


def test_a_long_direction_is_removed_in_half_precision(pico):
    model = load_model(pico("llama"), dtype="float16")
    with torch.no_grad(), steered(model, {1: torch.full((HIDDEN,), 1e6)}, how="ablate"):
        assert torch.isfinite(model(torch.tensor([[5, 6]])).logits).all()


@pytest.mark.parametrize("how", ["add", "add_keeping_norm", "ablate"])
def test_a_row_of_strength_zero_is_plain_in_float64_too(llama, how):
    model, ids = llama.double(), torch.tensor([[5, 6, 7], [6, 7, 8]])
    with torch.no_grad():
        plain = model(ids).logits
        with steered(model, {0: torch.ones(HIDDEN)}, [0.0, 1.0], how=how):
            assert torch.equal(model(ids).logits[0], plain[0])


def test_strengths_of_rows_need_no_prompt_at_all_positions(llama):
    with steered(llama, {0: torch.ones(HIDDEN)}, [1.0]):
        assert "generate" not in vars(llama)


def test_a_mask_from_inference_serves_training_too(llama):
    """Of the same prompts and shape, so that it is remembered."""
    ids = torch.tensor([[5, 6, 7, 8]])
    where = Positions.parse("response")
    with (
        reading(Prompts.of(ids, ends=[2])),
        steered(llama, {0: torch.ones(HIDDEN)}, positions=where),
    ):
        with torch.inference_mode():
            llama(ids)
        llama(ids).logits.sum().backward()
    assert llama.lm_head.weight.grad is not None


class Wrapper(nn.Module):
    """A module around a block, as repeng puts one."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **given: Any) -> Any:
        return self.block(*args, **given)


def test_what_another_tool_left_behind_is_refused(llama):
    blocks, directions = decoder_blocks(llama), {0: torch.ones(HIDDEN)}
    for name in ("model.layers.1.mlp", "model.norm", "model"):
        handle = llama.get_submodule(name).register_forward_hook(lambda *_: None)
        with pytest.raises(ModelError, match=rf"^{name} already has a hook or wrapper from"):
            steered(llama, directions).__enter__()
        handle.remove()
    plain, blocks[2] = blocks[2], Wrapper(blocks[2])
    with pytest.raises(ModelError, match="block 2 already has a hook or wrapper from"):
        steered(llama, directions).__enter__()
    blocks[2] = plain
    with steered(llama, directions), steered(llama, directions):
        pass


def gate(**changes: Any) -> Gate:
    given = {"layer": 0, "direction": torch.ones(HIDDEN), "threshold": 0.1}
    return Gate(**(given | changes))


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (gate(layer=3), ModelError, "must be one of the 3 blocks"),
        (gate(layer=2), ModelError, "no later than the first steered one, 1"),
        (gate(direction=torch.ones(3)), BaseMismatchError, r"has shape \[3\]"),
        (gate(direction=torch.zeros(HIDDEN)), DataError, "gate at layer 0: the direction is zero"),
        (gate(threshold=float("nan")), NonFiniteError, "must be a finite number, got nan"),
    ],
)
def test_a_gate_that_does_not_fit_is_refused(llama, wrong, error, said):
    where = Positions.parse("response")
    with (
        pytest.raises(error, match=said),
        steered(llama, {1: torch.ones(HIDDEN)}, positions=where, gate=wrong),
    ):
        pytest.fail("the body must not run")
    assert hooks_on(llama) == 0


def test_a_gate_opens_for_responses_only(llama):
    with (
        pytest.raises(DataError, match="positions must be response, not all"),
        steered(llama, {1: torch.ones(HIDDEN)}, gate=gate()),
    ):
        pytest.fail("the body must not run")


def test_ablation_removes_the_direction_and_nothing_else():
    hidden = torch.randn(2, 5, 8, generator=generator_for(0, "hidden"))
    direction = torch.randn(8, generator=generator_for(0, "direction"))
    found = EDITS["ablate"](hidden, 3 * direction, 1.0)
    unit = direction / direction.norm()
    assert (found @ unit).abs().max() < 1e-6
    torch.testing.assert_close(found + (hidden @ unit)[..., None] * unit, hidden)


def test_keeping_the_norm_turns_and_does_not_stretch():
    hidden = torch.randn(2, 5, 8, generator=generator_for(0, "hidden"))
    hidden[0, 0] = 0
    direction = torch.randn(8, generator=generator_for(0, "direction"))
    found = EDITS["add_keeping_norm"](hidden, direction, 2.0)
    torch.testing.assert_close(found.norm(dim=-1), hidden.norm(dim=-1))
    expected = torch.nn.functional.normalize(hidden + 2.0 * direction, dim=-1)
    torch.testing.assert_close(
        torch.nn.functional.normalize(found, dim=-1)[1], expected[1], rtol=1e-5, atol=1e-6
    )
