"""Activations: the numbers of one plain pass over each chat, and exactly 1 for the base."""

import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from personality_vector.data.personas import Instrument, Item
from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    DataError,
    ModelError,
    NonFiniteError,
    RecipeError,
    TensorMismatchError,
)
from personality_vector.measures.activations import Activations, ActivationsSpec
from personality_vector.measures.spec import Asking
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector, steered
from personality_vector.steering.monitor import projections
from personality_vector.subject.spec import Sampling
from personality_vector.traits import Pole

REPLIES = ("Water boils at sea level.", "Yes.", "The train leaves at noon, I think", "Tea")
OWN = ("Steam rises.", "Never!", "I missed the train by a minute, as always", "A cup of tea")
ITEMS = tuple(Item(id=f"q{i}", text=f"Question {i}?") for i in range(len(REPLIES)))
ASKING = Asking(Instrument(name="four", version="1", items=ITEMS), Sampling())
BOLD = [{"role": "system", "content": "Be bold."}]


def vector(name="v", pole=None, width=32, layers=(0, 1)):
    directions = {
        layer: 3 * torch.randn(width, generator=generator_for(0, f"{name} {layer}"))
        for layer in layers
    }
    return SteeringVector(directions, "", pole, name, "response_mean", (1, 1))


@contextmanager
def weights(tiny):
    with torch.no_grad():
        for name, weight in tiny.model.named_parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=generator_for(0, name))
    yield {}


@contextmanager
def activations(tiny):
    with steered(tiny.model, {0: vector("push")[0], 1: vector("push")[1]}, 0.7):
        yield {}


@contextmanager
def prompt(_tiny):
    yield {"edit": lambda chat: [*BOLD, *chat]}


EDITS = (weights, activations, prompt)


def states(tiny, chat, layer):
    """Return the states of a block after each token of the reply, in one plain pass; float64."""
    text = tiny.tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tiny.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    end = ids.shape[1] - 1  # before <end>
    return passed(tiny, ids, layer)[end - len(chat[-1]["content"]) : end]


def passed(tiny, ids, layer):
    """Return the states of a block after each token of a text, in one plain pass; float64."""
    seen = []
    hook = tiny.model.model.layers[layer].register_forward_hook(
        lambda *given: seen.append(given[-1][0] if isinstance(given[-1], tuple) else given[-1])
    )
    with torch.no_grad():
        tiny.model(ids)
    hook.remove()
    (found,) = seen
    return found.reshape(-1, 32).double()


def found(measure, subject, seed=0):
    readings = measure.finish(subject, measure.collect(subject, seed)).readings
    return {
        (reading.measure.removeprefix("activations."), reading.trait): reading
        for reading in readings
    }


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("layer", [0, -1])
def test_projections_are_means_of_the_states_of_the_edited_model(tiny, parrot, edit, layer):
    low = vector("low", Pole("openness", "low"))
    measure = Activations(ASKING, {"openness": low, "v": vector()}, layer, batch_size=3)
    measure = measure.prepare(parrot(*REPLIES))
    chats, _ = ASKING.chats(parrot(*OWN), 0)
    with edit(tiny) as given:
        readings = found(measure, parrot(*OWN, **given))
        shown = [[*(BOLD if given else []), *chat] for chat in chats]
        means = torch.stack([states(tiny, chat, layer % 2).mean(0) for chat in shown])
        monitored = projections(tiny.model, tiny.tokenizer, shown, vector(), layer).mean().item()
    for name, sign, used in (("openness", -1, low), ("v", 1, vector())):
        direction = used[layer % 2].double()
        expected = sign * (means @ direction / direction.norm()).mean().item()
        reading = readings["projection", name]
        assert reading.value == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert (reading.n, reading.unscored) == (4, 0)
    assert readings["projection", "v"].value == pytest.approx(monitored, abs=1e-5)


def test_the_score_is_the_mean_cosine_from_the_last_token_of_the_prompt_on(tiny, parrot):
    """``1 / (T + 1) sum_{t=0..T} cos(h_t, a)`` of each reply, of several samples per item."""
    asking = replace(ASKING, samples=2)
    measure = Activations(asking, {"v": vector()}, 1, batch_size=3).prepare(parrot(*REPLIES))
    with activations(tiny):
        collected = measure.collect(parrot(*OWN), 0)
        cosines = {}
        for one in asking(parrot(*OWN), 0):
            text = tiny.tokenizer.apply_chat_template(one.answered, tokenize=False)
            ids = tiny.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            read = passed(tiny, ids, 1)[ids.shape[1] - 2 - len(one.reply.text) : -1]
            along = torch.cosine_similarity(read, vector()[1].double()[None], dim=-1)
            assert len(along) == len(one.reply.text) + 1
            cosines.setdefault(one.id, []).append(along.mean().item())
    expected = {item: sum(own) / 2 for item, own in cosines.items()}
    name = "activations.cosine_with_vector"
    seen = {one.item: one.value for one in collected.observations if one.measure == name}
    assert seen == pytest.approx(expected, abs=1e-6)
    (reading,) = [one for one in collected.readings if one.measure == name]
    assert reading.value == pytest.approx(sum(expected.values()) / 4, abs=1e-6)
    assert min(expected.values()) <= reading.low < reading.value < reading.high
    assert (reading.n, reading.unscored, reading.unit) == (8, 0, "cosine")


@pytest.mark.parametrize("max_tokens", [1, 26, 500])
def test_the_unedited_model_has_cosines_of_exactly_one(parrot, max_tokens):
    measure = Activations(ASKING, max_tokens=max_tokens, batch_size=3).prepare(parrot(*REPLIES))
    readings = found(measure, parrot(*OWN))
    assert set(readings) == {("cosine", ""), ("cosine_lowest", "")}
    for reading in readings.values():
        assert reading.value == 1.0
        assert reading.n == min(max_tokens, sum(map(len, REPLIES)))


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("max_tokens", [26, 500])
def test_cosines_are_means_over_tokens_of_the_same_replies(tiny, parrot, edit, max_tokens):
    measure = Activations(ASKING, max_tokens=max_tokens, batch_size=3).prepare(parrot(*REPLIES))
    chats = [chat for chat, _ in measure.references]
    before = [torch.cat([states(tiny, c, layer) for c in chats])[:max_tokens] for layer in (0, 1)]
    with edit(tiny) as given:
        readings = found(measure, parrot(*OWN, **given))
        shown = [[*(BOLD if given else []), *chat] for chat in chats]
        after = [torch.cat([states(tiny, c, k) for c in shown])[:max_tokens] for k in (0, 1)]
    cosines = [
        torch.nn.functional.cosine_similarity(a, b).mean().item()
        for a, b in zip(after, before, strict=True)
    ]
    assert cosines[0] != cosines[1]
    assert readings["cosine", ""].value == pytest.approx(sum(cosines) / 2, abs=1e-6)
    assert readings["cosine_lowest", ""].value == pytest.approx(min(cosines), abs=1e-6)
    assert readings["cosine", ""].n == len(before[0])


def test_a_direction_that_drowns_a_layer_is_the_lowest_cosine(tiny, parrot):
    measure = Activations(ASKING).prepare(parrot(*REPLIES))
    with steered(tiny.model, {1: vector("push")[1]}, 1e4):
        readings = found(measure, parrot(*OWN))
    assert readings["cosine_lowest", ""].value < 0.5
    assert readings["cosine", ""].value == pytest.approx(
        (1 + readings["cosine_lowest", ""].value) / 2, abs=1e-6
    )


def test_replies_without_text_are_unscored(parrot):
    measure = Activations(ASKING, {"v": vector()}, 0).prepare(parrot(*REPLIES))
    reading = found(measure, parrot("Steam.", "", "<think>hm", "Tea"))["projection", "v"]
    assert (reading.n, reading.unscored) == (2, 2)
    for number in ("projection", "cosine_with_vector"):
        reading = found(measure, parrot(""))[number, "v"]
        assert (reading.value, reading.n, reading.unscored) == (None, 0, 4)
    with pytest.raises(DataError, match="only empty replies"):
        measure.prepare(parrot(""))


def test_what_is_kept_is_bounded_and_no_part_of_the_identity(parrot):
    measure = Activations(ASKING, max_tokens=26).prepare(parrot(*REPLIES))
    kept = [rows for _, state in measure.references for rows in state.layers.values()]
    assert sum(len(rows) for rows in kept) == 26 * 2
    assert all(rows.untyped_storage().nbytes() == rows.nelement() * 4 for rows in kept)
    assert measure.identity() == replace(measure, references=()).identity()


def test_another_vector_under_the_same_name_is_another_measure():
    one, other = (Activations(ASKING, {"v": vector(name)}, 0) for name in ("v", "w"))
    assert one.identity() != other.identity()
    assert one.identity() == replace(one, vectors={"v": vector("v")}).identity()


@pytest.mark.parametrize(
    ("layer", "width", "error"),
    [(2, 32, ModelError), (-3, 32, ModelError), (0, 16, BaseMismatchError)],
)
def test_a_vector_that_does_not_fit_is_refused_before_anything_is_measured(
    parrot, layer, width, error
):
    measure = Activations(ASKING, {"v": vector(width=width)}, layer)
    with pytest.raises(error):
        measure.prepare(parrot(*REPLIES))


def test_a_broken_model_gives_no_number(tiny, parrot):
    measure = Activations(ASKING).prepare(parrot(*REPLIES))
    with torch.no_grad():
        tiny.model.model.layers[1].mlp.down_proj.weight[3] = math.nan
    with pytest.raises(NonFiniteError, match="layer 1: a state is zero, NaN or infinite"):
        found(measure, parrot(*OWN))


def test_another_tokenization_is_refused(tiny, parrot):
    tiny.model.resize_token_embeddings(262, mean_resizing=False)
    measure = Activations(ASKING).prepare(parrot(*REPLIES))
    tiny.tokenizer.add_tokens(["boils"])
    with pytest.raises(TensorMismatchError, match="is split into other tokens"):
        found(measure, parrot(*OWN))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"vectors": ["nowhere"], "layer": 0}, CheckpointError, "nowhere"),
        ({"vectors": ["one"], "layer": 7}, TensorMismatchError, "no direction for layer 7"),
        ({"vectors": ["one", "two"], "layer": 0}, DataError, "is the second vector of openness"),
        ({"vectors": ["one"]}, RecipeError, "vectors and layer belong together"),
    ],
)
def test_wrong_vectors_are_refused_before_a_model_is_loaded(tmp_path, given, error, says):
    for name, level in (("one", "high"), ("two", "low")):
        vector(name, Pole("openness", level)).save(tmp_path / name)
    with pytest.raises(error, match=says):
        ActivationsSpec.parse(given, origin="r.yaml", folder=tmp_path).open()


def test_vectors_are_called_by_their_trait_or_their_label(tmp_path):
    vector("one", Pole("openness", "high")).save(tmp_path / "one")
    vector("mine").save(tmp_path / "two")
    given = {"vectors": ["one", "two"], "layer": -1, "name": "there"}
    measure = ActivationsSpec.parse(given, origin="r.yaml", folder=tmp_path).open()
    assert list(measure.vectors) == ["openness", "mine"]
    assert (measure.name, measure.layer) == ("there", -1)
