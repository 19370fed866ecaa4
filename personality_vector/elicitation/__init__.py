"""Personas: from a description of a trait or role to chats in which a model shows it.

``write_persona`` lets a model write the contrastive system prompts and questions; ``elicit`` draws
the model's own answers under them, has them judged and keeps the clear pairs; ``extract_persona``
makes a steering vector of what is left.
"""

from personality_vector.elicitation.extract import extract_persona
from personality_vector.elicitation.filter import FilterReport
from personality_vector.elicitation.pipeline import (
    Elicited,
    elicit,
    evaluation_instrument,
    read_persona,
)
from personality_vector.elicitation.rollouts import Rollout, read_rollouts
from personality_vector.elicitation.writing import (
    EndpointGenerator,
    Generator,
    LocalGenerator,
    write_persona,
)

__all__ = [
    "Elicited",
    "EndpointGenerator",
    "FilterReport",
    "Generator",
    "LocalGenerator",
    "Rollout",
    "elicit",
    "evaluation_instrument",
    "extract_persona",
    "read_persona",
    "read_rollouts",
    "write_persona",
]
