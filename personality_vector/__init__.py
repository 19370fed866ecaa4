"""Personality by arithmetic: deltas of language-model weights, merged, swept and compared.

>>> import personality_vector as pv
>>> pv.Pole.parse("extraversion:high").trait
'extraversion'
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.data.questionnaires import read_questionnaire
    from personality_vector.delta import Delta
    from personality_vector.errors import PersonalityVectorError
    from personality_vector.interventions.activations import ActivationSteering, NeuronSteering
    from personality_vector.interventions.decoding import Decoding
    from personality_vector.interventions.discussion import Discussion
    from personality_vector.interventions.portraits import Portrait, Prompted
    from personality_vector.interventions.prompts import FewShot, RolePrompt, SystemPrompt
    from personality_vector.interventions.weights import HybridEdit, WeightEdit
    from personality_vector.measures.creativity import CreativitySpec
    from personality_vector.measures.interview import Interview
    from personality_vector.measures.likelihood import Likelihood, LikelihoodSpec
    from personality_vector.measures.linguistic import LinguisticSpec
    from personality_vector.measures.self_report import SelfReportSpec
    from personality_vector.merging.engine import MergeReport, merge
    from personality_vector.merging.fusion import fuse
    from personality_vector.merging.merged import merged
    from personality_vector.merging.plan import Output
    from personality_vector.steering import Gate, Positions, SteeringVector, steered
    from personality_vector.steering.bake import bake
    from personality_vector.study.design import Arm
    from personality_vector.study.run import Run
    from personality_vector.study.study import Study
    from personality_vector.subject.models import load_model, load_tokenizer
    from personality_vector.subject.protocols import Intervention
    from personality_vector.subject.spec import Sampling, Template
    from personality_vector.subject.subject import Subject
    from personality_vector.traits import BIG_FIVE, Pole

# Otherwise transformers fetches kernels from the Hub, where the package `kernels` is installed, and
# runs them.
os.environ.setdefault("USE_HUB_KERNELS", "NO")

# Imported when first used: torch takes seconds, and `--help` must not.
_HOMES = {
    "BIG_FIVE": "traits",
    "ActivationSteering": "interventions.activations",
    "Arm": "study.design",
    "Checkpoint": "checkpoint",
    "CreativitySpec": "measures.creativity",
    "Decoding": "interventions.decoding",
    "Delta": "delta",
    "Discussion": "interventions.discussion",
    "FewShot": "interventions.prompts",
    "Gate": "steering",
    "HybridEdit": "interventions.weights",
    "Intervention": "subject.protocols",
    "Interview": "measures.interview",
    "Likelihood": "measures.likelihood",
    "LikelihoodSpec": "measures.likelihood",
    "LinguisticSpec": "measures.linguistic",
    "MergeReport": "merging.engine",
    "NeuronSteering": "interventions.activations",
    "Output": "merging.plan",
    "PersonalityVectorError": "errors",
    "Pole": "traits",
    "Portrait": "interventions.portraits",
    "Positions": "steering",
    "Prompted": "interventions.portraits",
    "RolePrompt": "interventions.prompts",
    "Run": "study.run",
    "Sampling": "subject.spec",
    "SelfReportSpec": "measures.self_report",
    "SteeringVector": "steering",
    "Study": "study.study",
    "Subject": "subject.subject",
    "SystemPrompt": "interventions.prompts",
    "Template": "subject.spec",
    "WeightEdit": "interventions.weights",
    "bake": "steering.bake",
    "fuse": "merging.fusion",
    "load_model": "subject.models",
    "load_tokenizer": "subject.models",
    "merge": "merging.engine",
    "merged": "merging.merged",
    "read_questionnaire": "data.questionnaires",
    "steered": "steering",
}

__all__ = [
    "BIG_FIVE",
    "ActivationSteering",
    "Arm",
    "Checkpoint",
    "CreativitySpec",
    "Decoding",
    "Delta",
    "Discussion",
    "FewShot",
    "Gate",
    "HybridEdit",
    "Intervention",
    "Interview",
    "Likelihood",
    "LikelihoodSpec",
    "LinguisticSpec",
    "MergeReport",
    "NeuronSteering",
    "Output",
    "PersonalityVectorError",
    "Pole",
    "Portrait",
    "Positions",
    "Prompted",
    "RolePrompt",
    "Run",
    "Sampling",
    "SelfReportSpec",
    "SteeringVector",
    "Study",
    "Subject",
    "SystemPrompt",
    "Template",
    "WeightEdit",
    "bake",
    "fuse",
    "load_model",
    "load_tokenizer",
    "merge",
    "merged",
    "read_questionnaire",
    "report",
    "steered",
    "study",
]


_ROOMS = ("report", "study")
"""Packages that are called by their own name: ``pv.study(...)``, ``pv.report(folder)``."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
