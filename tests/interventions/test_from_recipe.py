"""From a recipe to an intervention: every kind, every key, and what does not go together."""

import json
import pickle

import pytest
import torch

from personality_vector.cli.steer import extract as verb
from personality_vector.delta import Delta
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    ModelError,
    RecipeError,
    TensorMismatchError,
)
from personality_vector.interventions.activations import ActivationSteering, NeuronSteering
from personality_vector.interventions.neurons.chosen import NeuronSet
from personality_vector.interventions.portraits import Portrait, Prompted
from personality_vector.interventions.prompts import RolePrompt
from personality_vector.interventions.weights import WeightEdit, WeightsSpec
from personality_vector.steering import SteeringVector
from personality_vector.subject.models import load_tokenizer
from personality_vector.traits import Pole

HIGH = Pole("extraversion", "high")
VECTOR = {"vector": "vector", "layers": [1]}
GATE = {"vector": "vector", "layer": 0, "threshold": 0.1}
GATED = {**VECTOR, "positions": "response"}
KINDS = "delta, tuned, terms, vector, neurons, prompt, portrait, roles, persona, system, examples"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"prompt": "extraversion:high"}, Prompted(HIGH, "x")),
        (
            {"prompt": "extraversion:high", "adjectives": 5, "seed": 1},
            Prompted(HIGH, "x", adjectives=5, seed=1),
        ),
        ({"portrait": "extraversion:low"}, Portrait(HIGH.opposite, "x")),
        ({"roles": ["a cook", "a poet"]}, RolePrompt(["a cook", "a poet"], "x")),
    ],
)
def test_a_prompt_is_what_its_keys_say(opened, keys, expected):
    assert opened(**keys) == expected


def test_weights_are_an_edit_of_a_delta_or_of_what_was_tuned(opened, pico, pico_tuned, tmp_path):
    delta = Delta.between(pico("llama"), pico_tuned("llama"))
    delta.save(tmp_path / "delta")
    saved, tuned = opened(delta=str(tmp_path / "delta")), opened(tuned=str(pico_tuned("llama")))
    assert isinstance(saved, WeightEdit)
    assert saved.delta.identity == tuned.delta.identity == delta.identity
    assert saved.label == tuned.label == "x"


@pytest.mark.parametrize("alpha", [0.5, [0.2, 0.8], {"*self_attn*": 0.3}])
def test_a_merge_goes_to_another_process(opened, pico_tuned, alpha):
    tuned = str(pico_tuned("llama"))
    edit = opened(terms=[{"tuned": tuned, "alpha": alpha}], method="ties", options={"density": 0.5})
    assert pickle.loads(pickle.dumps(edit)).identity() == edit.identity()  # noqa: S301


def test_a_merge_is_an_edit_whose_strength_is_lambda(opened, pico_tuned, llama, merged):
    """At strength 0.5, with alphas by layer and a method, it holds what a merge writes."""
    ends = [pico_tuned("llama", seed=seed) for seed in (0, 1)]
    terms = [
        {"tuned": str(ends[0]), "alpha": [0.2, 1.0]},
        {"tuned": str(ends[1]), "alpha": -0.5, "label": "other"},
    ]
    how = {"method": "ties", "options": {"density": 0.4}, "exclude": ["embeddings"]}
    edit = opened(terms=terms, **how)
    given = [(ends[0], (0.2, 1.0)), (ends[1], -0.5)]
    how["options"] = {"density": 0.4, "lambda": 0.5}
    expected = merged(given, **how)
    with edit.applied(llama, 0.5) as asked:
        for name, value in asked.model.state_dict().items():
            assert torch.equal(value, expected[name]), name


@pytest.fixture
def merged(pico, weights, tmp_path):
    """Return the tensors that a merge with pico llama writes."""
    from personality_vector import merge

    return lambda terms, **given: weights(
        merge(pico("llama"), terms, out=tmp_path / "merged", **given).path
    )


def test_a_vector_steers_all_tokens_unless_told(opened, folder):
    found = opened(vector="vector", layers=[1, -1])
    assert isinstance(found, ActivationSteering)
    assert (found.positions, found.how, found.gate) == ("all", "add", None)
    assert (found.layers, found.files) == ((1, -1), (folder / "vector",))
    told = opened(vector="vector", layers=[1], positions="last 1 + response", how="ablate")
    assert (told.positions, told.how) == ("last 1 + response", "ablate")


def test_a_token_is_named_by_its_text(opened, pico, llama):
    mark = load_tokenizer(pico("llama")).convert_tokens_to_ids("<|assistant|>")
    by_text, by_id = (
        opened(vector="vector", layers=[1], positions=f"after {token}")
        for token in ("<|assistant|>", mark)
    )
    chat = [[{"role": "user", "content": "Hi"}]]
    logits = []
    for found in (by_text, by_id):
        with found.applied(llama, 3.0) as asked:
            logits.append(asked.next_token(chat, range(300)))
    with pytest.raises(RecipeError, match="makes 3 tokens of it"):
        opened(vector="vector", layers=[1], positions="after QQQ")
    assert torch.equal(*logits)


def test_a_gate_has_the_direction_of_its_vector(opened, folder):
    gate = {"vector": "one", "layer": 1, "threshold": 0.25, "side": "below"}
    found = opened(**GATED, gate=gate)
    assert (found.gate.layer, found.gate.threshold, found.gate.side) == (1, 0.25, "below")
    assert torch.equal(found.gate.direction, SteeringVector.load(folder / "one")[1])
    assert found.files == (folder / "vector", folder / "one")


def test_increments_of_the_given_layers_add_up_to_the_vector(opened, folder):
    vector = SteeringVector.load(folder / "vector")
    found = opened(vector="vector", layers=[0, 2], incremental=True).vector
    assert found.layers == (0, 2)
    assert torch.equal(found[0], vector[0])
    torch.testing.assert_close(found[0] + found[2], vector[2])


def test_neurons_steer_the_response_unless_told(opened):
    found = opened(neurons="neurons")
    assert isinstance(found, NeuronSteering)
    assert (found.label, found.positions) == ("x", "response")
    assert opened(neurons="neurons", positions="all").positions == "all"


@pytest.mark.parametrize(
    "keys",
    [
        {"vector": "strange", "layers": [1]},
        {"neurons": "strangers"},
        {**GATED, "gate": {"vector": "strange", "layer": 0, "threshold": 0.1}},
    ],
)
def test_what_is_of_another_model_is_refused(opened, keys):
    with pytest.raises(BaseMismatchError, match=r": was extracted .*from model 0000.*, but "):
        opened(**keys)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"vector": "narrow", "layers": [1]}, BaseMismatchError, "x: is 32 wide, but .* is 48 w"),
        ({"vector": "vector", "layers": [3]}, ModelError, "layer 3 does not exist: this model ha"),
        ({"vector": "vector", "layers": [2, -1]}, DataError, "name the same block twice"),
        ({"vector": "one", "layers": [0]}, TensorMismatchError, "no direction for layer 0"),
        (
            {**GATED, "layers": [-1, 1], "gate": {**GATE, "layer": 2}},
            ModelError,
            "at layer 2 comes after the first steered layer, 1; move it to layer 1",
        ),
        (
            {**GATED, "gate": {**GATE, "vector": "narrow"}},
            BaseMismatchError,
            "the gate: is 32 wide",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_a_model_is_loaded(opened, keys, error, message):
    with pytest.raises(error, match=message):
        opened(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, f"give exactly one of {KINDS}"),
        ({"portrait": "openness:high", "roles": ["a cook"]}, "keys of two kinds, portrait and rol"),
        ({"neurons": "n", "prompt": "openness:high"}, "keys of two kinds, neurons and prompt"),
        ({"delta": "d", "tuned": "t"}, "give either delta"),
        ({"neurons": "n", "layers": [1]}, "unknown key 'layers'"),
        ({"vector": "v"}, "the key 'layers' is missing"),
        ({"vector": "v", "layers": []}, "layers: needs at least one"),
        ({"roles": ["a cook", "a cook"]}, "given twice"),
        ({"roles": [" "]}, r"roles\.0"),
        ({"tuned": "t", "positions": "all"}, "unknown key 'positions'"),
        ({"neurons": "n", "how": "ablate"}, "unknown key 'how'"),
        ({"portrait": "openness:high", "seed": 0}, "unknown key 'seed'"),
        ({**VECTOR, "gate": GATE}, "add positions: response"),
        ({**VECTOR, "positions": "sometimes"}, "positions 'sometimes' cannot be read"),
        ({**VECTOR, "how": "multiply"}, "how: Input should be 'add'"),
        ({**VECTOR, "layers": [-1], "incremental": True}, "layers count from 0"),
        ({**GATED, "gate": {**GATE, "threshold": 1.5}}, r"gate\.threshold: Input should be less"),
        ({"prompt": "extraversion:high", "adjectives": 9}, "use 1 to 8, not 9"),
        ({"label": "base", "roles": ["a cook"]}, "a label must be a name other than .base."),
    ],
)
def test_keys_that_do_not_go_together_are_refused(opened, keys, message):
    with pytest.raises(RecipeError, match=message):
        opened(**keys)


def test_a_seed_in_a_path_is_put_in(tmp_path):
    spec = WeightsSpec(label="x", delta=str(tmp_path / "delta-{seed}"))
    assert spec.has_seed
    assert spec.at_seed(3).delta == tmp_path / "delta-3"


# --- neurons from a recipe ---


def neuron_recipe(folder, pico, **changes):
    side = {"source": str(folder / "statements.jsonl"), "part": "all"}
    data = {"model": str(pico("llama")), "pole": "extraversion:high", "device": "cpu"}
    data |= {"positive": side, "negative": side}
    return SteerRecipe.parse({**data, **changes}, origin="test", folder=folder)


def test_neurons_of_a_recipe_know_their_model_and_pole(folder, pico, base):
    found = verb.find_recipe_neurons(neuron_recipe(folder, pico))
    assert (found.model, found.pole, found.label) == (base.fingerprint.digest, HIGH, str(HIGH))
    assert found.counts == (4, 4)


@pytest.mark.parametrize("changes", [{"layers": [1]}, {"estimator": "pca"}])
def test_a_key_that_only_a_vector_has_is_refused(folder, pico, changes):
    with pytest.raises(RecipeError, match=f"leave out {next(iter(changes))}"):
        verb.find_recipe_neurons(neuron_recipe(folder, pico, **changes))


def test_the_verb_writes_what_the_recipe_finds(folder, pico, tmp_path, capsys):
    recipe = neuron_recipe(folder, pico)
    plan = verb.check_neurons(recipe)
    assert (plan["positive"], plan["negative"]) == (4, 4)
    verb.neurons(recipe, tmp_path / "found", force=False, as_json=True)
    said, found = json.loads(capsys.readouterr().out), NeuronSet.load(tmp_path / "found")
    assert (said["positive"], said["negative"]) == found.sizes
    assert found.model == verb.find_recipe_neurons(recipe).model
