"""Merge methods: pure functions from the slices of all terms to one merged delta tensor.

A slice is what one term contributes to one tensor. The keyword-only parameters of a method are its
options in a recipe. To add a method, write a function and decorate it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal, Protocol, get_args, get_origin, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from personality_vector.errors import RecipeError
from personality_vector.merging.select import keep_at_least
from personality_vector.numeric import pieces
from personality_vector.rng import uniform

OptionValue = float | int | str | bool


@runtime_checkable
class Slice(Protocol):
    """One term's part of one tensor."""

    @property
    def alpha(self) -> float:
        """The term's alpha."""

    @property
    def delta(self) -> Float[Tensor, "*shape"]:
        """The term's delta of this tensor, float32."""

    @property
    def key(self) -> int:
        """Key of the random stream of this term and this tensor."""

    def threshold(self, density: float, scope: str) -> float:
        """Return the magnitude that the top ``density`` of the whole term or tensor reaches."""


Combine = Callable[[Sequence[Slice]], Tensor]


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A named method, its citation and its options with their defaults."""

    name: str
    source: str
    function: Callable[..., Tensor]
    options: Mapping[str, inspect.Parameter]

    def bind(self, given: Mapping[str, OptionValue]) -> tuple[Combine, dict[str, OptionValue]]:
        """Return the function with its options fixed, and every option with its value.

        Raises:
            RecipeError: An option is unknown to this method or has an impossible value.
        """
        for name in given:
            if name not in self.options:
                raise RecipeError(self._unknown(name))
        values = {
            name: given.get(name, parameter.default) for name, parameter in self.options.items()
        }
        for name, value in values.items():
            _check(self.name, name, value, self.options[name].annotation)
        arguments = {self.options[name].name: value for name, value in values.items()}
        return partial(self.function, **arguments), values

    def _unknown(self, name: str) -> str:
        other = {"density": "drop_rate", "drop_rate": "density"}.get(name)
        hint = f" ({other} = 1 - {name})" if other in self.options else ""
        takes = ", ".join(self.options) or "no options"
        return f"{self.name} takes {takes}; got {name}{hint}"


METHODS: dict[str, MergeMethod] = {}


def merge_method(
    name: str, *, source: str
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as the merge method ``name``."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        # ``lambda`` is a keyword of Python: the parameter is ``lambda_``, the option ``lambda``.
        options = {parameter.name.rstrip("_"): parameter for parameter in parameters}
        METHODS[name] = MergeMethod(name, source, function, options)
        return function

    return register


def find_method(name: str) -> MergeMethod:
    """Return a registered method.

    Raises:
        RecipeError: There is none of that name.
    """
    if name not in METHODS:
        raise RecipeError(f"unknown merge method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name]


@merge_method("task_arithmetic", source="Ilharco et al. 2022, arXiv:2212.04089")
def task_arithmetic(slices: Sequence[Slice], *, lambda_: float = 1.0) -> Float[Tensor, "*shape"]:
    """Return ``lambda * sum_i alpha_i delta_i``."""
    return scaled(lambda_, weighted_sum([s.alpha for s in slices], [s.delta for s in slices]))


@merge_method("ties", source="Yadav et al. 2023, arXiv:2306.01708")
def ties(
    slices: Sequence[Slice],
    *,
    density: float = 0.2,
    trim: Literal["global", "per_tensor"] = "global",
    consensus: Literal["mean", "sum"] = "mean",
    lambda_: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """Trim, elect a sign per entry, average the entries that agree.

    ``T_i = trim(delta_i)`` keeps the top ``density`` of the whole vector by magnitude;
    ``s = sign(sum_i alpha_i T_i)``; ``tau = mean of alpha_i T_i over {i: sign(alpha_i T_i) = s}``;
    the result is ``lambda * tau``.

    Deviations: alpha scales before the election, so a negative alpha votes for the opposite sign
    and a term with ``alpha = 0`` has no vote; where the sum is exactly zero nothing is added (the
    reference falls back to the majority over the whole vector). mergekit and PEFT trim per tensor:
    ``trim: per_tensor``. The whole vector of a LoRA adapter is that of the tensors it adapts.
    """
    trimmed = [s.alpha * keep_at_least(s.delta, s.threshold(density, trim)) for s in slices]
    return scaled(lambda_, agree(trimmed, elect_sign(trimmed), consensus))


@merge_method("dare", source="Yu et al. 2023, arXiv:2311.03099")
def dare(
    slices: Sequence[Slice], *, drop_rate: float = 0.5, lambda_: float = 1.0
) -> Float[Tensor, "*shape"]:
    """Return ``lambda * sum_i alpha_i DARE(delta_i)``: drop at random, rescale, add.

    The default drop rate is that of the released script of Personality Vector (arXiv:2509.19727).
    """
    kept = [drop_and_rescale(s.delta, drop_rate, s.key) for s in slices]
    return scaled(lambda_, weighted_sum([s.alpha for s in slices], kept))


@merge_method("dare_ties", source="Yu et al. 2023, arXiv:2311.03099, before TIES, arXiv:2306.01708")
def dare_ties(
    slices: Sequence[Slice],
    *,
    drop_rate: float = 0.5,
    consensus: Literal["mean", "sum"] = "mean",
    lambda_: float = 1.0,
) -> Float[Tensor, "*shape"]:
    """DARE each delta, then elect signs and average as TIES does, without trimming.

    Deviations: the released code of DARE trims as well; mergekit's default is ``consensus: sum``.
    """
    kept = [s.alpha * drop_and_rescale(s.delta, drop_rate, s.key) for s in slices]
    return scaled(lambda_, agree(kept, elect_sign(kept), consensus))


def weighted_sum(
    alphas: Sequence[float], deltas: Sequence[Float[Tensor, "*shape"]]
) -> Float[Tensor, "*shape"]:
    """Return ``sum_i alpha_i delta_i`` in float32, summed in the order given."""
    total = alphas[0] * deltas[0]
    for alpha, delta in zip(alphas[1:], deltas[1:], strict=True):
        total += alpha * delta
    return total


def scaled(factor: float, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ``factor * tensor``; the tensor itself where the factor is 1."""
    return tensor if factor == 1.0 else factor * tensor


def elect_sign(weighted: Sequence[Float[Tensor, "*shape"]]) -> Float[Tensor, "*shape"]:
    """Return the sign of the total mass per entry: -1, 0 or 1."""
    return weighted_sum([1.0] * len(weighted), weighted).sign()


def agree(
    weighted: Sequence[Float[Tensor, "*shape"]],
    sign: Float[Tensor, "*shape"],
    consensus: Literal["mean", "sum"],
) -> Float[Tensor, "*shape"]:
    """Return the mean (or sum) over the terms whose entry has the elected sign; 0 where none."""
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for term in weighted:
        agrees: Bool[Tensor, "*shape"] = (term.sign() == sign) & (sign != 0)
        total += torch.where(agrees, term, 0.0)
        count += agrees
    return total if consensus == "sum" else total / count.clamp(min=1.0)


def drop_and_rescale(
    delta: Float[Tensor, "*shape"], drop_rate: float, key: int
) -> Float[Tensor, "*shape"]:
    """Zero each entry with probability ``drop_rate``; divide survivors by ``1 - drop_rate``.

    The expectation over masks is the input. Entry ``i`` of the mask depends on ``(key, i)`` only.

    Args:
        delta: float32, any shape. Not modified.
        drop_rate: ``p`` in [0, 1).
        key: Of the random stream, from :func:`personality_vector.rng.key_for`.

    Raises:
        ValueError: ``drop_rate`` outside [0, 1).

    Source:
        DARE, arXiv:2311.03099: ``(1 - m) * delta / (1 - p)``, ``m ~ Bernoulli(p)``. mergekit's
        ``rescale`` matches the L1 norm of each tensor instead.
    """
    if not 0.0 <= drop_rate < 1.0:
        raise ValueError(f"drop_rate must be in [0, 1), got {drop_rate}")
    if drop_rate == 0.0:
        return delta
    kept = delta.reshape(-1) / (1.0 - drop_rate)
    for part in pieces(kept.numel()):
        drop = uniform(key, part.start, part.stop - part.start, delta.device) < drop_rate
        kept[part].masked_fill_(drop, 0.0)
    return kept.reshape(delta.shape)


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "density": ("in (0, 1]", lambda value: 0.0 < value <= 1.0),
    "drop_rate": ("in [0, 1)", lambda value: 0.0 <= value < 1.0),
}


_ANY: tuple[str, Callable[[float], bool]] = ("a finite number", lambda value: abs(value) < inf)


def _check(method: str, name: str, value: OptionValue, annotation: object) -> None:
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            choices = " or ".join(map(str, get_args(annotation)))
            raise RecipeError(f"{method}: {name} must be {choices}, got {value!r}")
        return
    wanted, holds = _RANGES.get(name, _ANY)
    if isinstance(value, bool | str) or not holds(value):
        raise RecipeError(f"{method}: {name} must be {wanted}, got {value!r}")
