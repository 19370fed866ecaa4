"""A model that can be asked: loading, chats, prompt spans, generation, endpoints.

What is named here imports no torch; ``Subject`` and ``Checkpoint`` are therefore only annotations.
"""

from personality_vector.subject.chat import Chat, Message, answered, batched, question, render
from personality_vector.subject.identity import digest_of, identity_of
from personality_vector.subject.protocols import (
    AT_TURN,
    Answer,
    Better,
    Cell,
    Checkpoint,
    Findings,
    Intervention,
    Judge,
    Measure,
    Observation,
    Place,
    Quality,
    Reading,
    Reply,
    Rubric,
    Score,
    Subject,
    rated,
    rated_for,
)
from personality_vector.subject.spec import GenerationSpec, Sampling, Template, TemplatedRecipe
from personality_vector.subject.thoughts import said

__all__ = [
    "AT_TURN",
    "Answer",
    "Better",
    "Cell",
    "Chat",
    "Checkpoint",
    "Findings",
    "GenerationSpec",
    "Intervention",
    "Judge",
    "Measure",
    "Message",
    "Observation",
    "Place",
    "Quality",
    "Reading",
    "Reply",
    "Rubric",
    "Sampling",
    "Score",
    "Subject",
    "Template",
    "TemplatedRecipe",
    "answered",
    "batched",
    "digest_of",
    "identity_of",
    "question",
    "rated",
    "rated_for",
    "render",
    "said",
]
