"""Merge methods: pure functions from the slices of all terms to the merged delta.

A slice is what one term contributes to a run of whole rows of one tensor. The keyword-only
parameters of a method are its options in a recipe. To add a method, write a function and decorate
it. Arithmetic is float64.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal, Protocol, TypeVar, get_args, get_origin, runtime_checkable

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from personality_vector.errors import RecipeError
from personality_vector.numeric.kernels import agreement, trimmed

OptionValue = float | int | str | bool
Entries = Float64[Tensor, " entries"]
T = TypeVar("T")


@runtime_checkable
class Slice(Protocol):
    """One term's part of one tensor: the entries ``start .. start + len(delta)``, row-major."""

    @property
    def alpha(self) -> float:
        """The term's alpha for this tensor."""

    @property
    def delta(self) -> Float64[Tensor, " entries"]:
        """The term's delta."""

    @property
    def name(self) -> str:
        """Name of the tensor."""

    @property
    def position(self) -> int:
        """Place of the term in the recipe, from 0."""

    @property
    def start(self) -> int:
        """Index of the first entry in the tensor."""

    @property
    def columns(self) -> int:
        """Length of a row of the tensor: its last dimension."""

    def uniform(self) -> Float32[Tensor, " entries"]:
        """Return random numbers in [0, 1): fixed by seed, term, tensor and index of the entry."""

    def threshold(self, density: float, scope: str) -> float:
        """Return the magnitude that the top ``density`` of the whole term or tensor reaches."""

    def survey(self, what: str, measure: "Callable[[Callable[[], Iterator[Slice]]], T]") -> T:
        """Return a measurement of this term's whole tensor, made once and kept under ``what``.

        ``measure`` gets a function that yields the slices of the tensor in order.
        """


Combine = Callable[[Sequence[Slice]], Tensor]


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A named method, its citation and its options with their defaults."""

    name: str
    source: str
    function: Callable[..., Tensor]
    options: Mapping[str, inspect.Parameter]
    check: Callable[[Mapping[str, OptionValue]], None] = lambda _: None
    ranks_rows: bool = False

    def bind(self, given: Mapping[str, OptionValue]) -> tuple[Combine, dict[str, OptionValue]]:
        """Return the function with its options fixed, and every option with its value.

        Raises:
            RecipeError: An option is unknown to this method or has an impossible value.
        """
        for name in given:
            if name not in self.options:
                raise RecipeError(self._unknown(name))
        values = {
            name: _checked(self.name, name, given.get(name, option.default), option.annotation)
            for name, option in self.options.items()
        }
        self.check(values)
        arguments = {self.options[name].name: value for name, value in values.items()}
        return partial(self.function, **arguments), values

    def _unknown(self, name: str) -> str:
        other = {"density": "drop_rate", "drop_rate": "density"}.get(name)
        hint = f" ({other} = 1 - {name})" if other in self.options else ""
        takes = ", ".join(self.options) or "no options"
        return f"{self.name} takes {takes}; got {name}{hint}"


METHODS: dict[str, MergeMethod] = {}


def merge_method(
    name: str,
    *,
    source: str,
    check: Callable[[Mapping[str, OptionValue]], None] = lambda _: None,
    ranks_rows: bool = False,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as the merge method ``name``.

    ``check`` raises :class:`RecipeError` for options that do not go together; a method that
    ``ranks_rows`` cannot have rows that are cut.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        # ``lambda`` is a keyword of Python: the parameter is ``lambda_``, the option ``lambda``.
        options = {parameter.name.rstrip("_"): parameter for parameter in parameters}
        METHODS[name] = MergeMethod(name, source, function, options, check, ranks_rows)
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
def task_arithmetic(slices: Sequence[Slice], *, lambda_: float = 1.0) -> Entries:
    """Return ``lambda * sum_i alpha_i delta_i``."""
    return scaled(lambda_, weighted_sum(slices, [s.delta for s in slices]))


@merge_method("ties", source="Yadav et al. 2023, arXiv:2306.01708")
def ties(
    slices: Sequence[Slice],
    *,
    density: float = 0.2,
    trim: Literal["global", "per_tensor"] = "global",
    election: Literal["mass", "count"] = "mass",
    consensus: Literal["mean", "sum"] = "mean",
    lambda_: float = 1.0,
) -> Entries:
    """Trim, elect a sign per entry, average the entries that agree.

    ``T_i = trim(delta_i)`` keeps the top ``density`` of the whole vector by magnitude;
    ``s = sign(sum_i alpha_i T_i)``; ``tau = mean of alpha_i T_i over {i: sign(alpha_i T_i) = s}``;
    the result is ``lambda * tau``.

    Deviations: alpha scales before the election, so a negative alpha votes for the opposite sign
    and a term with ``alpha = 0`` has no vote; where the sum is exactly zero nothing is added (the
    reference falls back to the majority over the whole vector). Magnitudes are compared in
    float32; equal ones at the threshold are all kept. mergekit and PEFT trim per tensor:
    ``trim: per_tensor``. ``election: count`` gives every term one vote whatever its magnitude. The
    whole vector of a LoRA adapter is that of the tensors it adapts.
    """
    kept = [trimmed(s.delta, s.threshold(density, trim)) for s in slices]
    weighted = [s.alpha * t for s, t in zip(slices, kept, strict=True)]
    return scaled(lambda_, agreeing(weighted, elect(weighted, election), consensus))


@merge_method("dare", source="Yu et al. 2023, arXiv:2311.03099")
def dare(slices: Sequence[Slice], *, drop_rate: float = 0.5, lambda_: float = 1.0) -> Entries:
    """Return ``lambda * sum_i alpha_i DARE(delta_i)``: drop at random, rescale, add.

    The default drop rate is that of the released script of Personality Vector (arXiv:2509.19727).
    """
    kept = [drop_and_rescale(s.delta, drop_rate, s.uniform()) for s in slices]
    return scaled(lambda_, weighted_sum(slices, kept))


@merge_method("dare_ties", source="Yu et al. 2023, arXiv:2311.03099, before TIES, arXiv:2306.01708")
def dare_ties(
    slices: Sequence[Slice],
    *,
    drop_rate: float = 0.5,
    election: Literal["mass", "count"] = "mass",
    consensus: Literal["mean", "sum"] = "mean",
    lambda_: float = 1.0,
) -> Entries:
    """DARE each delta, then elect signs and average as TIES does, without trimming.

    Deviations: the released code of DARE trims as well; mergekit's default is ``consensus: sum``.
    """
    weighted = [s.alpha * drop_and_rescale(s.delta, drop_rate, s.uniform()) for s in slices]
    return scaled(lambda_, agreeing(weighted, elect(weighted, election), consensus))


def _check_window(options: Mapping[str, OptionValue]) -> None:
    middle, half = float(options["drop_rate"]), float(options["epsilon"]) / 2
    if middle < half or middle + half >= 1.0:
        raise RecipeError(
            "della: drop_rate -/+ epsilon / 2 must stay in [0, 1), "
            f"here it is {middle - half:g} to {middle + half:g}"
        )


def _check_shares(options: Mapping[str, OptionValue]) -> None:
    beta, gamma = options["beta"], options["gamma"]
    if float(beta) + float(gamma) >= 1.0:
        raise RecipeError(f"breadcrumbs: beta + gamma must be below 1, got {beta} + {gamma}")


@merge_method(
    "della", source="Deep et al. 2024, arXiv:2406.11617", check=_check_window, ranks_rows=True
)
def della(
    slices: Sequence[Slice],
    *,
    drop_rate: float = 0.5,
    epsilon: float = 0.2,
    election: Literal["mass", "count"] = "mass",
    consensus: Literal["mean", "sum"] = "mean",
    lambda_: float = 1.0,
) -> Entries:
    """Drop small entries more often than large ones, rescale, elect signs and average.

    Within a row of ``n`` entries, the one of rank ``r`` (0 the largest magnitude) is dropped with
    probability ``p_r = drop_rate - epsilon / 2 + epsilon * r / (n - 1)`` and otherwise divided by
    ``1 - p_r``.

    Deviations: the paper's ``r / n`` makes the mean of ``p_r`` a little less than ``drop_rate``.
    mergekit's ``epsilon`` is half of this one, and it rescales by the L1 norm of the tensor.
    """
    weighted = []
    for s in slices:
        rates = drop_rates(s.delta, s.columns, drop_rate, epsilon)
        weighted.append(s.alpha * drop_and_rescale(s.delta, rates, s.uniform()))
    return scaled(lambda_, agreeing(weighted, elect(weighted, election), consensus))


@merge_method(
    "breadcrumbs", source="Davari and Belilovsky 2023, arXiv:2312.06795", check=_check_shares
)
def breadcrumbs(
    slices: Sequence[Slice], *, beta: float = 0.85, gamma: float = 0.01, lambda_: float = 1.0
) -> Entries:
    """Return ``lambda * sum_i alpha_i m_i delta_i``, without the outliers of both ends.

    The mask ``m_i`` leaves out the smallest share ``beta`` and the largest share ``gamma`` of the
    magnitudes of each tensor: of the largest at least one, unless ``gamma`` is 0. mergekit's
    ``density`` is ``1 - beta - gamma``.
    """
    kept = []
    for s in slices:
        low = s.threshold(complement(beta), "per_tensor")
        high = s.threshold(gamma, "per_tensor") if gamma else inf
        # Whatever the larger threshold keeps are the outliers.
        kept.append(trimmed(s.delta, low) - trimmed(s.delta, max(low, high)))
    return scaled(lambda_, weighted_sum(slices, kept))


def weighted_sum(slices: Sequence[Slice], deltas: Sequence[Entries]) -> Entries:
    """Return ``sum_i alpha_i delta_i``, summed in the order given."""
    total = slices[0].alpha * deltas[0]
    for s, delta in zip(slices[1:], deltas[1:], strict=True):
        total += s.alpha * delta
    return total


def complement(share: float) -> float:
    """Return ``1 - share`` as one would write it: of 0.9 it is 0.1, not 0.09999999999999998."""
    return round(1.0 - share, 12)


def scaled(factor: float, delta: Entries) -> Entries:
    """Return ``factor * delta``; the tensor itself where the factor is 1."""
    return delta if factor == 1.0 else factor * delta


def elect(weighted: Sequence[Entries], election: Literal["mass", "count"]) -> Entries:
    """Return, per entry, a number that has the elected sign: the sum of the terms or of signs."""
    votes = weighted if election == "mass" else [term.sign() for term in weighted]
    total = votes[0].clone()
    for vote in votes[1:]:
        total += vote
    return total


def agreeing(
    weighted: Sequence[Entries], elected: Entries, consensus: Literal["mean", "sum"]
) -> Entries:
    """Return the mean (or sum) over the terms that have the elected sign; 0 where none."""
    total, count = agreement(weighted, elected)
    return total if consensus == "sum" else total.div_(count.clamp_(min=1.0))


def drop_and_rescale(
    delta: Entries, drop_rate: float | Entries, drawn: Float32[Tensor, " entries"]
) -> Entries:
    """Zero each entry with probability ``drop_rate``; divide survivors by ``1 - drop_rate``.

    The expectation over masks is the input.

    Args:
        delta: float64. Not modified.
        drop_rate: ``p`` in [0, 1), one for all entries or one for each.
        drawn: Uniform in [0, 1); an entry is dropped where it is below ``p``.

    Source:
        DARE, arXiv:2311.03099: ``(1 - m) * delta / (1 - p)``, ``m ~ Bernoulli(p)``. mergekit's
        ``rescale`` matches the L1 norm of each tensor instead.
    """
    # A tensor, since a GPU would multiply by the reciprocal of a number.
    kept = torch.as_tensor(1.0 - drop_rate, dtype=torch.float64, device=delta.device)
    return torch.where(drawn >= drop_rate, delta / kept, 0.0)


def drop_rates(delta: Entries, columns: int, drop_rate: float, epsilon: float) -> Entries:
    """Return DELLA's probability of each entry, by the rank of its magnitude in its row."""
    if delta.numel() == 0:
        return delta
    rows = delta.abs().reshape(-1, columns)
    order = rows.argsort(dim=1, descending=True, stable=True)
    share = torch.linspace(-0.5, 0.5, columns, dtype=torch.float64, device=delta.device)
    if columns == 1:
        share.zero_()
    rates = torch.empty_like(rows).scatter_(1, order, share.expand_as(rows))
    return (drop_rate + epsilon * rates).reshape(-1)


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "density": ("in (0, 1]", lambda value: 0.0 < value <= 1.0),
    "drop_rate": ("in [0, 1)", lambda value: 0.0 <= value < 1.0 - 2.0**-24),
    "epsilon": ("in [0, 1)", lambda value: 0.0 <= value < 1.0),
    "beta": ("in [0, 1)", lambda value: 0.0 <= value < 1.0),
    "gamma": ("in [0, 1)", lambda value: 0.0 <= value < 1.0),
}


_ANY: tuple[str, Callable[[float], bool]] = ("a finite number", lambda value: abs(value) < inf)


def _checked(method: str, name: str, value: OptionValue, annotation: object) -> OptionValue:
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            choices = " or ".join(map(str, get_args(annotation)))
            raise RecipeError(f"{method}: {name} must be {choices}, got {value!r}")
        return value
    wanted, holds = _RANGES.get(name, _ANY)
    if isinstance(value, bool | str) or not -1e300 < value < 1e300 or not holds(float(value)):
        raise RecipeError(f"{method}: {name} must be {wanted}, got {value!r:.40}")
    return float(value)
