"""Personality by arithmetic: deltas of language-model weights, merged, swept and compared.

>>> import personality_vector as pv
>>> pv.Pole.parse("extraversion:high").trait
'extraversion'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personality_vector.chat import Generation
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.delta import Delta
    from personality_vector.errors import PersonalityVectorError
    from personality_vector.intervention import (
        ActivationSteering,
        Intervention,
        Prompted,
        WeightEdit,
    )
    from personality_vector.merging import MergeReport, Output, Summand, merge
    from personality_vector.models import load_model, load_tokenizer
    from personality_vector.steering import SteeringVector
    from personality_vector.traits import BIG_FIVE, Pole

# Imported when first used: torch takes seconds, and `--help` must not.
_HOMES = {
    "ActivationSteering": "intervention",
    "BIG_FIVE": "traits",
    "Checkpoint": "checkpoint",
    "Delta": "delta",
    "Generation": "chat",
    "Intervention": "intervention",
    "MergeReport": "merging",
    "Output": "merging",
    "PersonalityVectorError": "errors",
    "Pole": "traits",
    "Prompted": "intervention",
    "SteeringVector": "steering",
    "Summand": "merging",
    "WeightEdit": "intervention",
    "load_model": "models",
    "load_tokenizer": "models",
    "merge": "merging",
}

__all__ = [
    "BIG_FIVE",
    "ActivationSteering",
    "Checkpoint",
    "Delta",
    "Generation",
    "Intervention",
    "MergeReport",
    "Output",
    "PersonalityVectorError",
    "Pole",
    "Prompted",
    "SteeringVector",
    "Summand",
    "WeightEdit",
    "load_model",
    "load_tokenizer",
    "merge",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
