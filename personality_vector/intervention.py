"""Interventions: three ways to change what a model says, undone when the ``with`` block ends."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from personality_vector.adjectives import ADJECTIVES
from personality_vector.chat import Chat, ChatEdit, Message, identity
from personality_vector.delta import Delta
from personality_vector.errors import (
    NonFiniteError,
    RecipeError,
    TensorMismatchError,
    TraitError,
    blame,
    some,
)
from personality_vector.kernels import projection
from personality_vector.merging.rounding import Realised, round_to
from personality_vector.numeric import pieces
from personality_vector.steering import SteeringVector, resolve_layers, steered
from personality_vector.traits import Pole

__all__ = ["ActivationSteering", "ChatEdit", "Intervention", "Prompted", "WeightEdit"]


@runtime_checkable
class Intervention(Protocol):
    """Anything that can be applied to a model at a strength, and taken back."""

    @property
    def label(self) -> str:
        """Name in tables and plots."""

    def applied(self, model: Any, strength: float, /) -> AbstractContextManager[ChatEdit]:
        """Change ``model`` inside a ``with`` block.

        Yields a function that every chat goes through before the model reads it; strength 0 is
        the model as it was, and a chat that is not edited.
        """


@dataclass(frozen=True, slots=True)
class WeightEdit:
    """``base + strength * delta`` in the live parameters; strength is alpha.

    Attributes:
        delta: Of this very base: the caller checks its fingerprint
            (:func:`personality_vector.delta.open_delta`), which a model in memory has not.
        label: Defaults to that of the delta.

    Source:
        Task arithmetic, Ilharco et al. 2022, arXiv:2212.04089:
        ``theta_new = theta + lambda * tau``.
    """

    delta: Delta
    label: str = ""
    realised: Realised = field(default_factory=Realised, compare=False)
    """Of the last edit: the share of the ideal change that survived the parameters' dtype."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.delta.label)

    @contextmanager
    def applied(self, model: nn.Module, strength: float) -> Generator[ChatEdit]:
        """Edit in place; on exit copy the saved parameters back, bit for bit.

        Arithmetic is float64, with one rounding to the dtype of the parameter, so that it holds
        the weights that a merge would write. Nothing is undone by subtracting. Memory: a copy of
        each edited parameter. Strength 0 touches nothing.

        Raises:
            TensorMismatchError: The delta names a tensor that the model has not, that has another
                shape there, or that is tied to another one that it names.
            NonFiniteError: The strength is not finite, or a weight would not be.
        """
        _require_finite(self.label, strength)
        parameters = _edited_parameters(model, self.delta)
        saved: dict[str, Tensor] = {}
        try:
            self.realised.reset()
            if strength != 0:
                for name, parameter in parameters.items():
                    with blame(tensor=name, alpha=strength):
                        saved[name] = parameter.detach().clone()
                        _add(parameter, self.delta, name, strength, self.realised)
            yield identity
        finally:
            with torch.no_grad():
                for name, original in saved.items():
                    parameters[name].copy_(original)


@dataclass(frozen=True, slots=True)
class ActivationSteering:
    """``coefficient * direction`` added to the output of some decoder blocks, at all positions.

    Attributes:
        vector: In the unit of the activation, not normalised, so coefficients of different
            vectors or models do not compare.
        layers: Decoder blocks, ``-1`` the last; each must have a direction in ``vector``.
        label: Defaults to that of the vector.
    """

    vector: SteeringVector
    layers: Sequence[int]
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.vector.label)
        object.__setattr__(self, "layers", tuple(self.layers))

    @contextmanager
    def applied(self, model: nn.Module, coefficient: float) -> Generator[ChatEdit]:
        """Steer by forward hooks; coefficient 0 registers none. See :func:`steered`.

        Raises:
            ModelError: The model has no such layer.
            DataError: A layer is named twice, or none is.
            TensorMismatchError: The vector has no direction for a layer.
            BaseMismatchError: The vector has another width than the model.
            NonFiniteError: The coefficient is not finite, or the addition would not be.
        """
        _require_finite(self.label, coefficient)
        layers = resolve_layers(model, self.layers)
        additions = {layer: coefficient * self.vector[layer] for layer in layers}
        with steered(model, additions):
            yield identity


_MODIFIERS = ("", "a bit ", "", "very ")
"""By grade; grade 0 writes no prompt."""

_MOST_ADJECTIVES = 3


@dataclass(frozen=True, slots=True)
class Prompted:
    """A system prompt that names a pole: ``You are very friendly, talkative and bold.``.

    Strength is rounded to a grade from -3 to 3, halves away from 0: 1 is "a bit", 2 has no
    modifier, 3 is "very"; below 0 it names the opposite pole.

    >>> Prompted(Pole.parse("neuroticism:high")).sentence(-1.0)
    'You are a bit relaxed, at ease and easygoing.'

    Attributes:
        pole: Of a trait that has adjectives.
        label: Defaults to the pole.

    Raises:
        TraitError: The trait has no adjectives.

    Source:
        Adjectives and modifiers of Serapio-Garcia et al. 2023, arXiv:2307.00184, as the prompt
        baseline of Personality Vector, arXiv:2509.19727, has them. Deviations: three fixed
        adjectives instead of five random ones, one modifier for all, our own sentence. Like
        there, an adjective that is the trait's own name is left out.
    """

    pole: Pole
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or f"prompt {self.pole}")
        if self.pole.trait not in ADJECTIVES:
            raise TraitError(
                f"{self.pole.trait} has no adjectives to prompt with; "
                f"there are some for {some(ADJECTIVES, 5)}"
            )

    @contextmanager
    def applied(self, model: Any, strength: float) -> Generator[ChatEdit]:  # noqa: ARG002
        """Yield an edit that puts the sentence in front of the system message, or makes one.

        Raises:
            RecipeError: The strength is not in [-3, 3].
            NonFiniteError: It is NaN or infinite.
        """
        sentence = self.sentence(strength)
        yield (lambda chat: _instructed(chat, sentence)) if sentence else identity

    def sentence(self, strength: float) -> str:
        """Return the system prompt of a strength in [-3, 3]; "" at grade 0.

        Raises:
            RecipeError: The strength is beyond.
            NonFiniteError: It is NaN or infinite.
        """
        _require_finite(self.label, strength)
        if abs(strength) > len(_MODIFIERS) - 1:
            raise RecipeError(
                f"{self.label}: a prompt has strengths from -3 (very, opposite pole) to 3 (very), "
                f"got {strength}"
            )
        grade = math.floor(abs(strength) + 0.5)
        words = _adjectives(self.pole if strength > 0 else self.pole.opposite)
        listed = f"{', '.join(words[:-1])} and {words[-1]}"
        return f"You are {_MODIFIERS[grade]}{listed}." if grade else ""


def _require_finite(label: str, strength: float) -> None:
    if not math.isfinite(strength):
        raise NonFiniteError(f"{label}: the strength must be a finite number, got {strength}")


@torch.no_grad()
def _add(parameter: Tensor, delta: Delta, name: str, strength: float, realised: Realised) -> None:
    """Write ``parameter + strength * delta`` as a merge does: in float64, rounded once."""
    flat = parameter.view(-1)
    device = "cpu" if parameter.is_mps else parameter.device  # which has no float64
    sums = []
    for part in pieces(flat.numel()):
        base = flat[part].to(device).double()
        change = strength * delta.source.part(name, part).to(device)
        written = round_to(base + change, parameter.dtype)
        flat[part] = written
        sums.append(projection(base, change, written))
    realised.add(math.fsum(s[2] for s in sums), math.fsum(s[1] for s in sums))


def _edited_parameters(model: nn.Module, delta: Delta) -> dict[str, Tensor]:
    """Return the live parameter of each tensor that ``delta`` names, after checking them all."""
    live = _parameters_on_disk(model)
    absent = set(delta.names) - set(live)
    if absent:
        raise TensorMismatchError(
            f"{delta.label}: this {type(model).__name__} has no parameter {some(absent)}; "
            "the delta is of another architecture"
        )
    edited = {name: live[name] for name in delta.names}
    owners: dict[int, str] = {}
    for name, parameter in edited.items():
        if delta.shape(name) != tuple(parameter.shape):
            raise TensorMismatchError(
                f"{delta.label}: {name} has shape {list(delta.shape(name))}, "
                f"in this model it is {list(parameter.shape)}"
            )
        owner = owners.setdefault(id(parameter), name)
        if owner != name and not torch.equal(delta[owner], delta[name]):
            raise TensorMismatchError(
                f"{delta.label}: changes {owner} and {name} differently, which are one tied "
                "parameter of this model"
            )
    return {name: edited[name] for name in owners.values()}


def _parameters_on_disk(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the parameters by name in memory and by name on disk, tied ones under every name.

    transformers 5 renames while it loads: GPT-NeoX has ``embed_out`` on disk and ``lm_head`` in
    memory. A tensor on disk that is only a part of a parameter, such as one expert, is left out.
    """
    from transformers.core_model_loading import revert_weight_conversion

    live = dict(model.named_parameters(remove_duplicate=False))
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in live.items()}
    names = {id(stand_in): name for name, stand_in in shapes.items()}
    on_disk = revert_weight_conversion(model, shapes)
    renamed = {
        disk: live[names[id(stand_in)]]
        for disk, stand_in in on_disk.items()
        if id(stand_in) in names
    }
    return {**live, **renamed}


def _adjectives(pole: Pole) -> list[str]:
    stem = pole.trait[:5]
    pairs = [pair for pair in ADJECTIVES[pole.trait] if stem not in pair[1]]
    return [pair[pole.level == "high"] for pair in pairs[:_MOST_ADJECTIVES]]


def _instructed(chat: Chat, sentence: str) -> Chat:
    if chat and chat[0]["role"] == "system":
        first: Message = {**chat[0], "content": f"{sentence} {chat[0]['content']}"}
        return [first, *chat[1:]]
    return [{"role": "system", "content": sentence}, *chat]
