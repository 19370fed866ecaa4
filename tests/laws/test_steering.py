"""Law 7: strength 0 is the model itself, and a steered model is one model however it is run."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import cycle, product
from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector.interventions.activations import ActivationSteering
from personality_vector.numeric.random import generator_for
from personality_vector.steering import Gate, Positions, SteeringVector, steered
from personality_vector.subject.models import decoder_blocks, hidden_size, load_model
from personality_vector.subject.prompts import Prompts, reading
from personality_vector.subject.subject import Subject
from tests import vlms

MARK = 7  # a token that every prompt of `rows` holds
TEXT = (
    *("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral"),
    *("phi", "phi3", "gpt_neox", "gpt2", "mixtral", "olmo2"),
)
VISION = ("llava", "qwen2_vl", "gemma3")
FAMILIES = TEXT + VISION
CLAUSES = ("all", "prompt", "response", "last 2", "last 1 + response", f"after {MARK}")
HOW = ("add", "add_keeping_norm", "ablate")
TOLERANCE = 1e-5  # float32; logits have a standard deviation of about 2


@pytest.fixture(scope="module")
def loaded(pico, vlm) -> Callable[[str], Any]:
    """Return ``loaded(family)``: a pico model in float32, loaded once."""

    @cache
    def load(family: str) -> Any:
        return vlms.load(vlm(family)) if family in VISION else load_model(pico(family))

    return load


def directions_for(model: Any, size: float = 3.0) -> dict[int, Tensor]:
    return {
        layer: size * torch.randn(hidden_size(model), generator=generator_for(layer, "direction"))
        for layer in range(len(decoder_blocks(model)))
    }


def vector_for(model: Any) -> SteeringVector:
    return SteeringVector(directions_for(model), "", None, "random", "random", (1, 1))


@torch.no_grad()
def logits_of(model: Any, rows: Any) -> list[Tensor]:
    found = []
    for ids, end in rows:
        with reading(Prompts.of(ids[None], ends=[end])):
            found.append(model(ids[None]).logits[0])
    return found


def hooks_on(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_model_is_one_model(loaded, differences, family):
    found = differences(loaded(family))
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize(
    ("family", "clause"),
    # Every family with two clauses, every clause with five families.
    list(zip([*FAMILIES, *FAMILIES], cycle(CLAUSES), strict=False)),
)
def test_a_steered_model_is_one_model(loaded, differences, rows, family, clause):
    model = loaded(family)
    plain = logits_of(model, rows)
    steering = ActivationSteering(vector_for(model), [0, -1], positions=Positions.parse(clause))
    with steering.applied(Subject(model, None), -1.0):
        found = differences(model)
        moved = logits_of(model, rows)
    assert max(found.values()) < TOLERANCE, found
    spread = torch.cat(plain).std()
    assert all((x - y).abs().max() > 0.2 * spread for x, y in zip(moved, plain, strict=True))


@pytest.mark.parametrize("how", HOW[1:])
@pytest.mark.parametrize(
    ("family", "clause"), list(zip(FAMILIES, cycle(["all", "last 1 + response"]), strict=False))
)
def test_every_way_of_steering_is_one_model(loaded, differences, family, clause, how):
    model = loaded(family)
    where = Positions.parse(clause)
    with steered(model, directions_for(model), 0.7, positions=where, how=how):
        found = differences(model)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize(
    ("family", "side"), list(zip(FAMILIES, cycle(["above", "below"]), strict=False))
)
def test_a_gated_model_is_one_model(loaded, differences, rows, family, side):
    """The threshold lies between the rows, so that some are steered and some are not."""
    model = loaded(family)
    direction = directions_for(model)[1]
    threshold = sorted(similarities(model, rows, direction))[1] - 1e-4
    gate = Gate(0, direction, threshold, side)
    where = Positions.parse("response")
    plain = logits_of(model, rows)
    with steered(model, {1: direction}, positions=where, gate=gate):
        found = differences(model)
        moved = logits_of(model, rows)
    assert max(found.values()) < TOLERANCE, found
    open_rows = [not torch.equal(x, y) for x, y in zip(moved, plain, strict=True)]
    assert sum(open_rows) == (2 if side == "above" else 1)


@torch.no_grad()
def similarities(model: Any, rows: Any, direction: Tensor) -> list[float]:
    """Return the cosine of ``direction`` and the mean output of block 0 over each prompt."""
    seen: list[Tensor] = []

    def record(_block: Any, _args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0].mean(0))

    handle = decoder_blocks(model)[0].register_forward_hook(record)
    for ids, end in rows:
        model(ids[None, :end])
    handle.remove()
    return [float(torch.cosine_similarity(mean, direction, dim=0)) for mean in seen]


@pytest.mark.parametrize(
    ("how", "family", "clause"),
    [
        (*each, c)
        for each, c in zip(product(HOW, FAMILIES), cycle(["all", "response"]), strict=False)
    ],
)
def test_strengths_of_rows_are_independent(loaded, rows, family, clause, how):
    """A batch with a strength for each row gives each what it gets alone; 0 is the plain model."""
    model = loaded(family)
    where = Positions.parse(clause)
    strengths = [-0.8, 0.0, 1.5]
    batch = torch.stack([ids[:3].repeat(4) for ids, _ in rows])
    prompts = Prompts.of(batch, ends=[5, 6, 7])
    directions = directions_for(model)

    def run(strength: Any) -> Tensor:
        context = steered(model, directions, strength, positions=where, how=how)
        with torch.no_grad(), reading(prompts), context:
            return model(batch).logits

    mixed = run(strengths)
    with torch.no_grad():
        plain = model(batch).logits[1]
    # Mixtral gathers the tokens of all rows for each expert, so that rows share their rounding.
    torch.testing.assert_close(mixed[1], plain, rtol=0, atol=TOLERANCE * (family == "mixtral"))
    for row, strength in enumerate(strengths):
        torch.testing.assert_close(mixed[row], run(strength)[row], rtol=0, atol=TOLERANCE)
    assert (mixed[0] - run(1.5)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("sizes", [[9] + [1] * 12, [4, 4, 4, 4, 5]])
@pytest.mark.parametrize("clause", CLAUSES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_prompts_of_a_batch_end_where_they_end(loaded, rows, family, clause, sizes):
    """Read in pieces, some of which are prompt for one row and response for another."""
    model = loaded(family)
    batch = torch.stack([rows[2][0], rows[2][0].flip(0), rows[2][0]])
    batch[:, 1] = MARK
    prompts = Prompts.of(batch, ends=[3, 7, 12])

    def run(pieces: list[int]) -> Tensor:
        cache, logits = None, []
        for piece in batch.split(pieces, dim=1):
            out = model(piece, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
        return torch.cat(logits, dim=1)

    where = Positions.parse(clause)
    with torch.no_grad(), reading(prompts), steered(model, directions_for(model), positions=where):
        whole, in_pieces = run([21]), run(sizes)
    assert (whole - in_pieces).abs().max() < TOLERANCE


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2}])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_beams_and_samples_have_the_strength_of_their_row(loaded, rows, family, options):
    model = loaded(family)
    prompt = rows[1][0][:6]
    batch = torch.stack([prompt, prompt])
    given = {"max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    greedy = {"do_sample": False, "num_beams": 2, **options}
    found = {}
    for strength in (-1.0, 1.0, [-1.0, 1.0]):
        with steered(model, directions_for(model), strength):
            found[str(strength)] = model.generate(batch, **given, **greedy).tolist()
    times = len(found["1.0"]) // 2
    assert found["[-1.0, 1.0]"] == found["-1.0"][:times] + found["1.0"][times:]
    assert found["1.0"] != found["-1.0"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clause", CLAUSES)
def test_strength_zero_is_bit_identical(loaded, rows, family, clause):
    model = loaded(family)
    plain, before = logits_of(model, rows), hooks_on(model)
    steering = ActivationSteering(
        vector_for(model), range(-2, 0), positions=Positions.parse(clause)
    )
    with steering.applied(Subject(model, None), 0.0):
        assert hooks_on(model) == before
        assert all(map(torch.equal, logits_of(model, rows), plain))


@pytest.mark.parametrize("clause", CLAUSES)
def test_strength_zero_is_bit_identical_in_bfloat16(pico, rows, clause):
    model = load_model(pico("llama", "bfloat16"), dtype="bfloat16")
    plain = logits_of(model, rows)
    with steered(model, directions_for(model), [0.0], positions=Positions.parse(clause)):
        assert all(map(torch.equal, logits_of(model, rows), plain))


@pytest.mark.parametrize("clause", CLAUSES)
@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_named_tokens_move(loaded, rows, family, clause):
    """By exactly the addition, at the output of the steered block: an oracle by hand."""
    model = loaded(family)
    ids, end = rows[2]
    mark = ids[:end].tolist().index(MARK)
    expected = {
        "all": range(len(ids)),
        "prompt": range(end),
        "response": range(end, len(ids)),
        "last 2": range(end - 2, end),
        "last 1 + response": range(end - 1, len(ids)),
        f"after {MARK}": range(mark + 1, len(ids)),
    }[clause]
    last = len(decoder_blocks(model)) - 1
    direction = directions_for(model)[last]
    steering = ActivationSteering(vector_for(model), [last], positions=Positions.parse(clause))
    before, after = (outputs(model, ids, end, steering, strength) for strength in (0.0, 1.0))
    moved = before.clone()
    moved[list(expected)] += direction
    assert torch.equal(after, moved)


@torch.no_grad()
def outputs(
    model: Any, ids: Tensor, end: int, steering: ActivationSteering, strength: float
) -> Tensor:
    """Return what leaves the last block."""
    seen = []

    def record(_block: Any, _args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    with steering.applied(Subject(model, None), strength):
        handle = decoder_blocks(model)[-1].register_forward_hook(record)
        with reading(Prompts.of(ids[None], ends=[end])):
            model(ids[None])
        handle.remove()
    return seen[0][0]


@pytest.mark.parametrize("clause", ["all", "response"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_after_an_exception(loaded, rows, family, clause):
    model = loaded(family)
    plain, before = logits_of(model, rows), hooks_on(model)
    registered = []

    def fail() -> None:
        registered.append(hooks_on(model))
        raise KeyError

    where = Positions.parse(clause)
    with pytest.raises(KeyError), steered(model, directions_for(model), positions=where):
        fail()
    assert registered[0] - before >= len(decoder_blocks(model))
    assert hooks_on(model) == before
    assert "generate" not in vars(model)
    assert all(map(torch.equal, logits_of(model, rows), plain))


def test_nested_contexts_add_up(loaded, rows):
    model = loaded("llama")
    one, two = directions_for(model), directions_for(model, -0.7)
    with steered(model, one), steered(model, two):
        nested = logits_of(model, rows)
    with steered(model, {layer: one[layer] + two[layer] for layer in one}):
        summed = logits_of(model, rows)
    torch.testing.assert_close(nested, summed, rtol=0, atol=TOLERANCE)


# The same check, pointed at the hooks of the field, re-stated. What each fails is what
# measurements of the originals have shown.


def last_position(hidden: Tensor, addition: Tensor) -> Tensor:
    """Persona vectors' ``positions="response"``: the last position of each forward call."""
    moved = hidden.clone()
    moved[:, -1] += addition
    return moved


def after_index(hidden: Tensor, addition: Tensor) -> Tensor:
    """steering-vectors' ``min_token_index``: a mask over the chunk, as if over the sequence."""
    moved = hidden.clone()
    moved[:, 4:] += addition
    return moved


def first_row(hidden: Tensor, addition: Tensor) -> Tensor:
    """Conditional activation steering: only the first row of a batch."""
    moved = hidden.clone()
    moved[0] += addition
    return moved


def in_prefill(hidden: Tensor, addition: Tensor) -> Tensor:
    """Persona vectors' ``positions="prompt"``: any call that reads more than one token."""
    return hidden + addition if hidden.shape[1] > 1 else hidden


@contextmanager
def wrongly_steered(
    model: Any, additions: Mapping[int, Tensor], rule: Callable[[Tensor, Tensor], Tensor]
) -> Generator[None]:
    def hook(addition: Tensor) -> Callable[..., Any]:
        def steer(_block: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (rule(output[0], addition), *output[1:])
            return rule(output, addition)

        return steer

    blocks = decoder_blocks(model)
    handles = [blocks[layer].register_forward_hook(hook(v)) for layer, v in additions.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


EVERYWHERE = {"cached", "chunked", "generated", "generated_in_chunks", "beams"}


WRONG = [
    (last_position, EVERYWHERE | {"right_padded"}),
    (after_index, EVERYWHERE | {"left_padded"}),
    (first_row, {"right_padded", "left_padded", "generated", "beams"}),
    (in_prefill, EVERYWHERE),
]


@pytest.mark.parametrize(
    ("family", "rule", "broken"),
    [(family, *wrong) for family, wrong in zip(FAMILIES, cycle(WRONG), strict=False)],
)
def test_the_check_finds_the_hooks_of_the_field_wrong(loaded, differences, family, rule, broken):
    model = loaded(family)
    with wrongly_steered(model, directions_for(model), rule):
        found = differences(model)
    assert {check for check, size in found.items() if size > 100 * TOLERANCE} == broken


def test_a_hook_that_somebody_left_behind_is_refused(loaded):
    from personality_vector.errors import ModelError

    model = loaded("llama")
    with (
        wrongly_steered(model, directions_for(model), last_position),
        pytest.raises(ModelError, match=r"layers.0 already has a hook or wrapper from tests\.laws"),
        steered(model, directions_for(model)),
    ):
        pytest.fail("the body must not run")
