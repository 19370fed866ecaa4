"""From a recipe to an intervention: what it names is opened and checked against the base."""

from dataclasses import replace
from pathlib import Path
from typing import cast

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta, combine, open_delta
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.neurons import RESPONSE, NeuronSet, NeuronSteering
from personality_vector.interventions.portrait import Portrait
from personality_vector.interventions.prompted import Prompted
from personality_vector.interventions.roles import RolePrompt
from personality_vector.interventions.system_prompt import SystemPrompt
from personality_vector.interventions.weights import WeightEdit
from personality_vector.recipes.schema import GateSpec, InterventionSpec
from personality_vector.steering import ALL, Gate, Positions, SteeringVector
from personality_vector.steering.belonging import require_made_from, require_width
from personality_vector.steering.positions import names_a_token
from personality_vector.subject.models import load_tokenizer
from personality_vector.subject.protocols import Intervention


def open_intervention(spec: InterventionSpec, base: Checkpoint) -> Intervention:
    """Return the intervention that a recipe describes.

    Raises:
        BaseMismatchError: It was made from another model.
        RecipeError: Its positions are no clause, or its pole has not as many adjectives.
        TraitError: Its pole has no adjectives or no portrait.
        CheckpointError: A file that it names is missing or damaged.
    """
    prompt = _prompt_of(spec)
    if prompt is not None:
        return prompt
    if spec.vector is not None:
        return _steering(spec, spec.vector, base)
    if spec.neurons is not None:
        return _neurons(spec, spec.neurons, base)
    return WeightEdit(_delta_of(spec, base), label=spec.label)


def _prompt_of(spec: InterventionSpec) -> SystemPrompt | None:
    if spec.prompt is not None:
        return Prompted(spec.prompt, spec.label, spec.adjectives, spec.seed)
    if spec.portrait is not None:
        return Portrait(spec.portrait, spec.label)
    return RolePrompt(spec.roles, spec.label) if spec.roles else None


def _delta_of(spec: InterventionSpec, base: Checkpoint) -> Delta:
    if not spec.terms:
        return open_delta(spec.delta or spec.tuned or "", base, label=spec.label)
    opened = [(open_delta(term.source, base), cast("float", term.alpha)) for term in spec.terms]
    return combine(opened, spec.label)


def _steering(spec: InterventionSpec, path: Path, base: Checkpoint) -> ActivationSteering:
    vector = _vector(path, base)
    if spec.incremental:
        alone = {layer: vector[layer] for layer in spec.layers}
        vector = replace(vector, directions=alone).incremental()
    return ActivationSteering(
        vector,
        spec.layers,
        label=spec.label,
        positions=_positions(spec, base, ALL),
        how=spec.how,
        gate=_gate(spec.gate, base) if spec.gate else None,
    )


def _gate(spec: GateSpec, base: Checkpoint) -> Gate:
    direction = _vector(spec.vector, base)[spec.layer]
    return Gate(spec.layer, direction, spec.threshold, spec.side)


def _neurons(spec: InterventionSpec, path: Path, base: Checkpoint) -> NeuronSteering:
    neurons = NeuronSet.load(path)
    require_made_from(path, neurons.model, base)
    return NeuronSteering(neurons, spec.label, _positions(spec, base, RESPONSE))


def _vector(path: Path, base: Checkpoint) -> SteeringVector:
    vector = SteeringVector.load(path)
    require_made_from(path, vector.model, base)
    require_width(path, vector.hidden, base)
    return vector


def _positions(spec: InterventionSpec, base: Checkpoint, default: Positions) -> Positions:
    if spec.positions is None:
        return default
    tokenizer = load_tokenizer(base.path) if names_a_token(spec.positions) else None
    return Positions.parse(spec.positions, tokenizer)
