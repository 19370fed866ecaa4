"""The parts of a merge method: what is kept of each delta, and how the kept parts are combined.

A method is written once. Both its forms follow from :class:`Kept` and :class:`Vote`: the operations
of torch below, for any device, and the loop of :mod:`personality_vector.merging.loop`, compiled for
the CPU. The methods themselves are the rows of :mod:`personality_vector.merging.methods`.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce
from math import inf
from typing import Literal, NamedTuple, get_args, get_origin

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from personality_vector.errors import RecipeError
from personality_vector.merging.terms import Slice
from personality_vector.numeric.kernels import agreement, trimmed

OptionValue = float | int | str | bool
Options = Mapping[str, OptionValue]
Entries = Float64[Tensor, " entries"]


@dataclass(frozen=True, slots=True)
class Kept:
    """Says which entries of a slice stay: by magnitude, and then by chance.

    Attributes:
        low: Entries of a smaller float32 magnitude are left out.
        high: Entries of this float32 magnitude or a larger one are left out.
        drop_rate: The probability that an entry is left out; the others are divided by its
            complement. Or a function that returns one for each entry, which has no compiled form.
    """

    low: float = 0.0
    high: float = inf
    drop_rate: float | Callable[[], Entries] = 0.0

    def of(self, s: Slice) -> Entries:
        """Return the entries of the slice, with 0 for those that are left out."""
        delta = trimmed(s.delta, self.low) if self.low > 0.0 else s.delta
        if self.high < inf:
            delta = delta - trimmed(delta, self.high)
        if callable(self.drop_rate):
            return drop_and_rescale(delta, self.drop_rate(), s.uniform())
        return drop_and_rescale(delta, self.drop_rate, s.uniform()) if self.drop_rate else delta


@dataclass(frozen=True, slots=True)
class Vote:
    """Combines terms that are scaled by alpha into one delta, entry by entry.

    Attributes:
        over: ``all`` adds up all terms; ``mean`` and ``sum`` take those that have the elected
            sign, and give 0 where none has it or where the vote ends in a tie.
        by_count: Whether the sign is elected by the number of terms, not by their mass.
    """

    over: Literal["all", "mean", "sum"] = "all"
    by_count: bool = False

    def __call__(self, weighted: Sequence[Entries]) -> Entries:
        """Return the one delta; the terms are not modified."""
        if self.over == "all":
            return reduce(torch.add, weighted)
        votes = [term.sign() for term in weighted] if self.by_count else weighted
        total, count = agreement(weighted, reduce(torch.add, votes))
        return total if self.over == "sum" else total.div_(count.clamp_(min=1.0))


@dataclass(frozen=True)
class Combine(ABC):
    """A method with its options fixed: a pure function from the slices of all terms to a delta.

    Attributes:
        name: Name of the method.
        source: Its citation.
        options: Every option with its value.
    """

    name: str
    source: str
    options: Options

    @abstractmethod
    def __call__(self, slices: Sequence[Slice], /) -> Tensor:
        """Return the merged delta, float64."""


Consensus = Callable[[Sequence[Entries]], Entries]
"""From the terms scaled by alpha to one delta. A :class:`Vote` has a compiled form."""


@dataclass(frozen=True)
class Formula(Combine):
    """``lambda * consensus(alpha_1 * kept(delta_1), ...)``: a row of the table, options fixed.

    Attributes:
        keep: From a slice to what stays of it; it looks at no entry.
        consensus: How the terms are combined.
        lambda_: Factor on the result.
    """

    keep: Callable[[Slice], Kept]
    consensus: Consensus
    lambda_: float = 1.0

    def __call__(self, slices: Sequence[Slice]) -> Entries:
        """Return ``lambda * consensus(alpha_1 * kept_1, ...)``, by operations of torch."""
        kept = list(map(self.keep, slices))
        weighted = [s.alpha * k.of(s) for s, k in zip(slices, kept, strict=True)]
        return scaled(self.consensus(weighted), lambda_=self.lambda_)


@dataclass(frozen=True, slots=True)
class Sparsification:
    """Says what is kept of each delta.

    Attributes:
        keep: From a slice and the options, its keyword-only parameters, to what stays of it.
        neutral: The options under which everything stays.
        fault: From the options to what is wrong with them together, if anything.
        ranks_rows: Whether rows that are cut would change what is kept.
    """

    keep: Callable[..., Kept]
    neutral: Options = field(default_factory=dict)
    fault: Callable[[Options], str | None] = lambda _: None
    ranks_rows: bool = False


@dataclass(frozen=True)
class MergeMethod:
    """A row of the table: ``lambda * consensus(alpha_i * kept(delta_i))``.

    Attributes:
        name: Its name in a recipe.
        source: Its citation.
        sparsify: What is kept of each delta.
        consensus: From the options, its keyword-only parameters, to how the terms are combined. Of
            one term it returns that term.
    """

    name: str
    source: str
    sparsify: Sparsification
    consensus: Callable[..., Consensus]

    @cached_property
    def options(self) -> dict[str, inspect.Parameter]:
        """Every option by name: the parameter behind it, with its default and its type."""
        return _options(self.sparsify.keep) | _options(self.consensus) | _options(scaled)

    def bind(self, given: Options) -> Formula:
        """Return the method with its options fixed.

        Raises:
            RecipeError: An option is unknown to this method or has an impossible value.
        """
        for name in given:
            if name not in self.options:
                other = {"density": "drop_rate", "drop_rate": "density"}.get(name)
                hint = f" ({other} = 1 - {name})" if other in self.options else ""
                raise RecipeError(f"{self.name} takes {', '.join(self.options)}; got {name}{hint}")
        values = {
            name: _checked(self.name, name, given.get(name, option.default), option.annotation)
            for name, option in self.options.items()
        }
        if fault := self.sparsify.fault(values):
            raise RecipeError(f"{self.name}: {fault}")
        keep, consensus = self.sparsify.keep, self.consensus
        return Formula(
            self.name,
            self.source,
            values,
            partial(keep, **_arguments(keep, values)),
            consensus(**_arguments(consensus, values)),
            float(values["lambda"]),
        )


class Range(NamedTuple):
    """The numbers that an option may have; the annotation of its parameter names one.

    Attributes:
        wanted: In words.
        holds: Whether a number is one of them.
    """

    wanted: str
    holds: Callable[[float], bool]


_ANY = Range("a finite number", lambda value: abs(value) < inf)


def _checked(method: str, name: str, value: OptionValue, annotation: object) -> OptionValue:
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            choices = " or ".join(map(str, get_args(annotation)))
            raise RecipeError(f"{method}: {name} must be {choices}, got {value!r}")
        return value
    (allowed,) = getattr(annotation, "__metadata__", (_ANY,))
    if isinstance(value, bool | str) or not -1e300 < value < 1e300 or not allowed.holds(value):
        raise RecipeError(f"{method}: {name} must be {allowed.wanted}, got {value!r:.40}")
    return float(value)


def _options(function: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a function by the names that they have in a recipe."""
    found = inspect.signature(function).parameters.values()
    # ``lambda`` is a keyword of Python: the parameter is ``lambda_``, the option ``lambda``.
    return {one.name.rstrip("_"): one for one in found if one.kind is one.KEYWORD_ONLY}


def _arguments(function: Callable[..., object], values: Options) -> dict[str, OptionValue]:
    return {option.name: values[name] for name, option in _options(function).items()}


def scaled(delta: Entries, *, lambda_: float = 1.0) -> Entries:
    """Return ``lambda * delta``; the tensor itself where lambda is 1."""
    return delta if lambda_ == 1.0 else lambda_ * delta


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
