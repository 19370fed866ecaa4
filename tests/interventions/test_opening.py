"""From a recipe to an intervention: every kind, every key, and what does not go together."""

import json
from dataclasses import replace

import pytest
import torch
from personality_vector.interventions.neurons.recipe import find_recipe_neurons
from personality_vector.interventions.opening import open_intervention
from personality_vector.interventions.system_prompt import SystemPrompt
from personality_vector.recipes.schema import CompareRecipe, InterventionSpec, SweepRecipe
from personality_vector.study.compare import compare, matched_effect
from personality_vector.study.runs import spec_of
from personality_vector.study.sweep import sweep

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli.steer import neurons as verb
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.errors import BaseMismatchError, ModelError, RecipeError
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.neurons import RESPONSE, NeuronSet, NeuronSteering
from personality_vector.interventions.portrait import Portrait
from personality_vector.interventions.prompted import Prompted
from personality_vector.interventions.roles import RolePrompt
from personality_vector.interventions.weights import WeightEdit
from personality_vector.numeric.random import generator_for
from personality_vector.steering import ALL, Positions, SteeringVector
from personality_vector.subject.models import load_tokenizer
from personality_vector.traits import Pole

HIGH = Pole("extraversion", "high")
PROBED = ("I love parties", "I talk a lot", "I am quiet", "alone again")


@pytest.fixture(scope="module")
def base(pico):
    return Checkpoint.open(pico("llama"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base, neurons_of):
    """Return a folder with a vector, neurons and statements of pico llama."""
    folder, digest = tmp_path_factory.mktemp("inputs"), base.fingerprint.digest
    drawn = {i: torch.randn(48, generator=generator_for(i, "vector")) for i in range(3)}
    vector = SteeringVector(drawn, digest, HIGH, "v", "response_mean", (1, 1))
    vector.save(folder / "vector")
    replace(vector, model="0" * 32).save(folder / "strange")
    narrow = {layer: direction[:32] for layer, direction in drawn.items()}
    replace(vector, model="", directions=narrow).save(folder / "narrow")
    replace(neurons_of("llama"), model=digest).save(folder / "neurons")
    replace(neurons_of("llama"), model="0" * 32).save(folder / "strangers")
    rows = [
        {"trait": "extraversion", "level": level, "statement": f"{text} {part}", "part": part}
        for part in ("train", "held_out")
        for text, level in zip(PROBED, ("high", "high", "low", "low"), strict=True)
    ]
    (folder / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def opened(folder, base):
    """Return ``opened(**keys)``: the intervention of these keys."""

    def make(**keys):
        spec = InterventionSpec.parse({"label": "x", **keys}, origin="test", folder=folder)
        return open_intervention(spec, base)

    return make


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


def test_weights_are_an_edit(opened, pico_tuned):
    assert isinstance(opened(tuned=str(pico_tuned("llama"))), WeightEdit)


def test_a_vector_steers_all_tokens_unless_told(opened):
    found = opened(vector="vector", layers=[1, -1])
    assert isinstance(found, ActivationSteering)
    assert (found.positions, found.how, found.gate) == (ALL, "add", None)
    assert found.layers == (1, -1)
    told = opened(vector="vector", layers=[1], positions="last 1 + response", how="ablate")
    assert (str(told.positions), told.how) == ("last 1 + response", "ablate")


def test_a_token_is_named_by_its_text(opened, pico):
    mark = load_tokenizer(pico("llama")).convert_tokens_to_ids("<|assistant|>")
    found = opened(vector="vector", layers=[1], positions="after <|assistant|>")
    assert found.positions == Positions.parse(f"after {mark}")


def test_a_gate_has_the_direction_of_its_vector(opened, folder):
    gate = {"vector": "vector", "layer": 0, "threshold": 0.25, "side": "below"}
    found = opened(vector="vector", layers=[1], positions="response", gate=gate).gate
    assert (found.layer, found.threshold, found.side) == (0, 0.25, "below")
    assert torch.equal(found.direction, SteeringVector.load(folder / "vector")[0])


def test_increments_of_the_given_layers_add_up_to_the_vector(opened, folder):
    vector = SteeringVector.load(folder / "vector")
    found = opened(vector="vector", layers=[0, 2], incremental=True).vector
    assert found.layers == (0, 2)
    assert torch.equal(found[0], vector[0])
    torch.testing.assert_close(found[0] + found[2], vector[2])


def test_neurons_steer_the_response_unless_told(opened):
    found = opened(neurons="neurons")
    assert isinstance(found, NeuronSteering)
    assert (found.label, found.positions) == ("x", RESPONSE)
    assert opened(neurons="neurons", positions="all").positions == ALL


@pytest.mark.parametrize(
    "keys",
    [
        {"vector": "strange", "layers": [1]},
        {"neurons": "strangers"},
        {
            "vector": "vector",
            "layers": [1],
            "positions": "response",
            "gate": {"vector": "strange", "layer": 0, "threshold": 0.1},
        },
    ],
)
def test_what_is_of_another_model_is_refused(opened, keys):
    with pytest.raises(
        BaseMismatchError, match=r"strange(rs)?: was extracted from model 0000.*, but .* is model"
    ):
        opened(**keys)


VECTOR = {"vector": "vector", "layers": [1]}
GATE = {"vector": "vector", "layer": 0, "threshold": 0.1}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give exactly one of delta, tuned, terms, vector, prompt, portrait, roles or neurons"),
        ({"portrait": "openness:high", "roles": ["a cook"]}, "give exactly one"),
        ({"neurons": "n", "prompt": "openness:high"}, "give exactly one"),
        ({"neurons": "n", "layers": [1]}, "vector and layers go together"),
        ({"roles": ["a cook", "a cook"]}, "given twice"),
        ({"roles": [" "]}, "roles.0"),
        ({"tuned": "t", "positions": "all"}, "positions goes with vector or neurons, not with tun"),
        ({"neurons": "n", "how": "ablate"}, "how goes with vector, not with neurons"),
        ({"neurons": "n", "incremental": True}, "incremental goes with vector"),
        ({"prompt": "openness:high", "gate": GATE}, "gate goes with vector, not with prompt"),
        ({"portrait": "openness:high", "seed": 0}, "seed goes with prompt, not with portrait"),
        ({**VECTOR, "adjectives": 5}, "adjectives goes with prompt, not with vector"),
        ({**VECTOR, "gate": GATE}, "add positions: response"),
        ({**VECTOR, "positions": "sometimes"}, "positions 'sometimes' select no token"),
        ({**VECTOR, "how": "multiply"}, "how: Input should be 'add'"),
        ({**VECTOR, "layers": [-1], "incremental": True}, "layers are counted from 0"),
        (
            {**VECTOR, "positions": "response", "gate": {**GATE, "threshold": 1.5}},
            r"gate\.threshold: Input should be less",
        ),
        ({"prompt": "extraversion:high", "adjectives": 9}, "has 1 to 8 adjectives"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(opened, keys, message):
    with pytest.raises(RecipeError, match=message):
        opened(**keys)


INTERVENTIONS = [
    {"label": "everywhere", **VECTOR},
    {"label": "gated", **VECTOR, "positions": "response", "gate": GATE},
    {"label": "neurons", "neurons": "neurons"},
    {"label": "adjectives", "prompt": "extraversion:high", "adjectives": 5, "seed": 0},
    {"label": "portrait", "portrait": "extraversion:high"},
    {"label": "roles", "roles": ["a cook", "a poet"]},
]


@pytest.fixture
def recipe(folder, base):
    """Return ``recipe(kind, **changes)``: all kinds but weights on pico llama."""

    def make(kind=SweepRecipe, **changes):
        data = {
            "base": str(base.path),
            "interventions": INTERVENTIONS,
            "strengths": [1.0],
            "measure": {
                "traits": ["extraversion"],
                "statements": "statements.jsonl",
                "generation": {"max_new_tokens": 4},
                "side_effects": False,
            },
            "device": "cpu",
        }
        return kind.parse({**data, **changes}, origin="test", folder=folder)

    return make


def test_a_sweep_measures_each_kind(recipe, tmp_path):
    with sweep(recipe(), tmp_path / "run") as results:
        probe = results.frame("measures").query("measure == 'probe'")
    values = probe.set_index("intervention")["value"]
    assert set(values.index) == {"base", *(spec["label"] for spec in INTERVENTIONS)}
    assert values.nunique() == len(values)


def test_a_vector_of_another_width_is_refused_before_a_model_is_loaded(recipe):
    spec = {"label": "x", "vector": "narrow", "layers": [1]}
    with pytest.raises(BaseMismatchError, match=r"narrow: is 32 wide, but .* is 48 wide"):
        spec_of(recipe(interventions=[spec]))


def test_what_a_number_depends_on_is_part_of_the_run(recipe):
    contents = spec_of(recipe())["contents"]
    assert {"everywhere", "gated", "gated, gate", "neurons"} <= set(contents)
    assert "portrait" not in contents


@pytest.mark.parametrize("label", ["adjectives", "portrait", "roles"])
def test_a_step_that_a_prompt_has_not_is_refused_before_a_model_is_loaded(recipe, label):
    spec = next(spec for spec in INTERVENTIONS if spec["label"] == label)
    with pytest.raises(RecipeError, match=f"{label}: "):
        spec_of(recipe(interventions=[{**spec, "strengths": [1.0, 3.5]}]))


def test_a_layer_that_the_base_has_not_is_refused_before_a_model_is_loaded(recipe):
    with pytest.raises(ModelError, match="layer 3 is not one of the 3 decoder blocks"):
        spec_of(recipe(interventions=[{"label": "x", "vector": "vector", "layers": [3]}]))


def test_a_gate_behind_what_it_opens_is_refused_before_a_model_is_loaded(recipe):
    gate = {**GATE, "layer": 2}
    spec = {"label": "x", **VECTOR, "layers": [-1, 1], "positions": "response", "gate": gate}
    with pytest.raises(ModelError, match="at layer 2 lies behind the first steered layer, 1"):
        spec_of(recipe(interventions=[spec]))


def test_a_comparison_takes_every_prompt_at_a_step(recipe, tmp_path):
    """A prompt between two steps would be refused."""
    with sweep(recipe(), tmp_path / "sweep") as results:
        probe = results.frame("measures").query("measure == 'probe'")
    value = probe.set_index("intervention")["value"]
    prompts = [s["label"] for s in INTERVENTIONS if {"prompt", "portrait", "roles"} & s.keys()]
    # Whither a random model is moved is chance: compare those that go the way of the portrait.
    is_up = value["portrait"] > value["base"]
    chosen = [label for label in prompts if (value[label] > value["base"]) == is_up]
    kept = [spec for spec in INTERVENTIONS if spec["label"] in chosen]
    pole = str(HIGH if is_up else HIGH.opposite)
    compared = recipe(CompareRecipe, interventions=kept, pole=pole, points=2)
    with compare(compared, tmp_path / "compare") as results:
        table = matched_effect(results, compared.pole)
    assert "portrait" in set(table["intervention"])
    assert set(table["strength"]) == {1.0}


def test_a_prompt_is_a_system_prompt_and_nothing_else_is(opened, pico_tuned):
    keys = [{k: v for k, v in spec.items() if k != "label"} for spec in INTERVENTIONS]
    keys.append({"tuned": str(pico_tuned("llama"))})
    found = [isinstance(opened(**given), SystemPrompt) for given in keys]
    assert found == [False, False, False, True, True, True, False]


# --- neurons from a recipe ---


def neuron_recipe(folder, pico, **changes):
    side = {"source": str(folder / "statements.jsonl"), "part": "all"}
    data = {"model": str(pico("llama")), "pole": "extraversion:high", "device": "cpu"}
    data |= {"positive": side, "negative": side}
    return SteerRecipe.parse({**data, **changes}, origin="test", folder=folder)


def test_neurons_of_a_recipe_know_their_model_and_pole(folder, pico, base):
    found = find_recipe_neurons(neuron_recipe(folder, pico))
    assert (found.model, found.pole, found.label) == (base.fingerprint.digest, HIGH, str(HIGH))
    assert found.counts == (4, 4)


@pytest.mark.parametrize("changes", [{"layers": [1]}, {"estimator": "pca"}])
def test_a_key_that_only_a_vector_has_is_refused(folder, pico, changes):
    with pytest.raises(RecipeError, match=f"leave out {next(iter(changes))}"):
        find_recipe_neurons(neuron_recipe(folder, pico, **changes))


def test_the_verb_writes_what_the_recipe_finds(folder, pico, tmp_path, capsys):
    recipe = neuron_recipe(folder, pico)
    plan = verb.check(recipe)
    assert (plan["positive"], plan["negative"]) == (4, 4)
    verb.neurons(recipe, tmp_path / "found", force=False, as_json=True)
    said, found = json.loads(capsys.readouterr().out), NeuronSet.load(tmp_path / "found")
    assert (said["positive"], said["negative"]) == found.sizes
    assert found.model == find_recipe_neurons(recipe).model
