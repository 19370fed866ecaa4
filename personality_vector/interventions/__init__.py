"""Interventions: ways to change what a model says, undone when the ``with`` block ends."""

from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.neurons import NeuronSet, NeuronSteering, find_neurons
from personality_vector.interventions.opening import open_intervention
from personality_vector.interventions.portrait import Portrait
from personality_vector.interventions.prompted import Prompted
from personality_vector.interventions.protocol import Intervention
from personality_vector.interventions.roles import (
    Ranking,
    RolePrompt,
    SingleAgent,
    best_of,
    effect_on,
    role_prompts,
)
from personality_vector.interventions.system_prompt import SystemPrompt
from personality_vector.interventions.weights import WeightEdit
from personality_vector.subject.chat import ChatEdit

__all__ = [
    "ActivationSteering",
    "ChatEdit",
    "Intervention",
    "NeuronSet",
    "NeuronSteering",
    "Portrait",
    "Prompted",
    "Ranking",
    "RolePrompt",
    "SingleAgent",
    "SystemPrompt",
    "WeightEdit",
    "best_of",
    "effect_on",
    "find_neurons",
    "open_intervention",
    "role_prompts",
]
