"""Deltas kept as factors and multiplied when used: LoRA adapters, and matrices of low rank."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor
from torch.nn.functional import pad

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta.sources import Combination, Factored, TensorSource, require_finite
from personality_vector.numeric.kernels import difference

CONFIG = "adapter_config.json"
LEFT, RIGHT = ".left", ".right"
"""Endings of the names of the two factors of a matrix of low rank."""

_PREFIX = "base_model.model."


def is_adapter(path: Path) -> bool:
    """Return whether a directory holds a PEFT adapter."""
    return (path / CONFIG).is_file()


@dataclass(frozen=True, slots=True)
class Scaling:
    """Says how the product of two factors becomes a delta."""

    alpha: float
    rank_stabilised: bool
    transposed: bool


@dataclass(frozen=True, slots=True)
class Factors:
    """Two matrices in an adapter's file, and what makes a delta of their product.

    Attributes:
        up: Name of the matrix of shape out x rank.
        down: Name of the one of shape rank x in.
        scaling: What the product is multiplied with.
        transposed: Whether the base stores the transpose.
    """

    up: str
    down: str
    scaling: float
    transposed: bool


def factors_of(name: str, tensors: Checkpoint, how: Scaling) -> Factors:
    """Return the factors of an adapted weight, by its name in the base."""
    module = _PREFIX + name.removesuffix(".weight")
    up, down = f"{module}.lora_B.weight", f"{module}.lora_A.weight"
    rank = tensors.entries[down].shape[0] if down in tensors.entries else 1
    return Factors(
        up, down, scaling_of(how.alpha, rank, rank_stabilised=how.rank_stabilised), how.transposed
    )


def scaling_of(alpha: float, rank: int, *, rank_stabilised: bool) -> float:
    """Return what the product of two factors is multiplied with."""
    return alpha / (math.sqrt(rank) if rank_stabilised else max(rank, 1))


def rows_of_factors(
    factors: Checkpoint, left: str, right: str, part: slice, *, transposed: bool = False
) -> Float64[Tensor, " entries"]:
    """Return the entries ``part`` of ``left @ right``, row-major, multiplied in float64.

    Only the rows of ``left`` that are needed are read; with ``transposed`` the product is that of
    ``(left @ right).T``, of which a row needs all of both.
    """
    if transposed:
        one, other = (_matrix(factors, name) for name in (left, right))
        return rows_of_product(other.T, one.T, part)
    second = _matrix(factors, right)
    rank, columns = second.shape
    first, last = part.start // columns, -(-part.stop // columns)
    rows = require_finite(factors, left, slice(first * rank, last * rank), keep=False)
    beyond = first * columns
    return rows_of_product(
        rows.reshape(-1, rank), second, slice(part.start - beyond, part.stop - beyond)
    )


def rows_of_product(
    left: Float[Tensor, "rows rank"], right: Float[Tensor, "rank columns"], part: slice
) -> Float64[Tensor, " entries"]:
    """Return the entries ``part`` of ``left @ right``, row-major, multiplied in float64."""
    columns = right.shape[1]
    first, last = part.start // columns, -(-part.stop // columns)
    product = left[first:last].double() @ right.double()
    return product.reshape(-1)[part.start - first * columns : part.stop - first * columns]


def _matrix(factors: Checkpoint, name: str) -> Tensor:
    return require_finite(factors, name).reshape(factors.entries[name].shape)


@dataclass(frozen=True)
class LowRank(TensorSource):
    """A saved delta whose matrices are stored as ``left @ right``, float32; other tensors whole."""

    tensors: Checkpoint
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of the tensors by name."""

    @property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self.shapes

    @property
    def _origins(self) -> tuple[Checkpoint, ...]:
        return (self.tensors,)

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return entries of one tensor, multiplying only the rows that they lie in."""
        if name in self.tensors.entries:
            return require_finite(self.tensors, name, part).double()
        return rows_of_factors(self.tensors, name + LEFT, name + RIGHT, part)

    def product(self, name: str) -> Factored | None:
        """Return the two matrices that are stored."""
        if name in self.tensors.entries:
            return None
        left, right = (_matrix(self.tensors, name + half) for half in (LEFT, RIGHT))
        return left.double(), right.double()


@dataclass(frozen=True)
class Adapter(LowRank):
    """A LoRA adapter of PEFT, on a given base; beside factors it may hold copies of tensors.

    Source: LoRA, Hu et al. 2021, arXiv:2106.09685: ``W = W_0 + (alpha / r) B A``; with rank
    stabilisation (arXiv:2312.03732) the factor is ``alpha / sqrt(r)``.
    """

    base: Checkpoint
    scaling: Scaling
    factors: Mapping[str, Factors]
    """By the name of the weight in the base."""
    copies: Mapping[str, str]
    """Names in the adapter's file of tensors that it holds whole, by their names in the base."""

    @property
    def _origins(self) -> tuple[Checkpoint, ...]:
        return self.base, self.tensors

    @property
    def content(self) -> tuple[str, ...]:
        """What its numbers depend on, as digests and texts."""
        models = self.base.fingerprint.digest, self.tensors.fingerprint.digest
        more = () if self.is_plain else (repr(sorted(self.factors.items())), repr(self.copies))
        kept = sorted(self.shapes.keys() - self.factors.keys() - self.copies.keys())
        return "lora", *models, repr(astuple(self.scaling)), *more, *kept

    @property
    def is_plain(self) -> bool:
        """Whether names, ranks and one scaling say everything about it."""
        plain = {name: factors_of(name, self.tensors, self.scaling) for name in self.factors}
        return not self.copies and self.factors == plain and self.shapes.keys() == plain.keys()

    @property
    def rank(self) -> int:
        """The largest rank of a weight."""
        return max(self.tensors.entries[one.down].shape[0] for one in self.factors.values())

    def product(self, name: str) -> Factored | None:
        """Return two factors whose product is the delta of a weight, as the base stores it."""
        if name in self.copies:
            return None
        one = self.factors[name]
        up, down = (_matrix(self.tensors, half) for half in (one.up, one.down))
        left, right = (down.T, up.T) if one.transposed else (up, down)
        return one.scaling * left.double(), right.double()

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return entries of ``scaling * B @ A``, multiplying only the rows that they lie in.

        Of a tensor that is held whole they are ``copy - base``, plus that product if there is one.
        """
        change = None
        if name in self.copies:
            copy = require_finite(self.tensors, self.copies[name], part)
            change = difference(copy, require_finite(self.base, name, part))
        if name in self.factors:
            one = self.factors[name]
            product = one.scaling * rows_of_factors(
                self.tensors, one.up, one.down, part, transposed=one.transposed
            )
            change = product if change is None else change + product
        return torch.zeros(part.stop - part.start).double() if change is None else change


@dataclass(frozen=True, slots=True)
class Stack:
    """A weighted sum of adapters as one product: their factors side by side.

    Attributes:
        terms: Coefficients and adapters that hold nothing but factors.
    """

    terms: Sequence[tuple[float, Adapter]]

    @property
    def rank(self) -> int:
        """The sum of the largest ranks of the adapters."""
        return sum(adapter.rank for _, adapter in self.terms)

    def factors(self, name: str) -> tuple[Float32[Tensor, "out rank"], Float32[Tensor, "rank in"]]:
        """Return the factors of one weight: ``[c1 s1 B1, c2 s2 B2, ...] @ [A1; A2; ...]``.

        Where an adapter has a smaller rank, or does not change the weight, zeros follow.
        """
        product = Combination(tuple(self.terms)).product(name)
        assert product is not None
        left, right = (half.float() for half in product)
        lacking = self.rank - left.shape[1]
        return pad(left, (0, lacking)), pad(right, (0, 0, 0, lacking))


def is_smaller_factored(shape: tuple[int, ...], rank: int) -> bool:
    """Return whether a tensor is a matrix whose factors take less room than itself."""
    return len(shape) == 2 and rank * sum(shape) < math.prod(shape)
