"""Interventions: ways to change what a model says, undone when the ``with`` block ends."""

from personality_vector.chat import ChatEdit
from personality_vector.intervention.activations import ActivationSteering
from personality_vector.intervention.neurons import NeuronSet, NeuronSteering, find_neurons
from personality_vector.intervention.opening import open_intervention
from personality_vector.intervention.portrait import Portrait
from personality_vector.intervention.prompted import Prompted
from personality_vector.intervention.protocol import Intervention
from personality_vector.intervention.roles import (
    Ranking,
    RolePrompt,
    SingleAgent,
    best_of,
    effect_on,
    role_prompts,
)
from personality_vector.intervention.system_prompt import SystemPrompt
from personality_vector.intervention.weights import WeightEdit

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
