"""Fusion: combining steering vectors into one, by the methods of a merge."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from personality_vector.checkpoint import Fingerprint
from personality_vector.delta import Delta, TensorSource, digest, whole
from personality_vector.errors import DataError, NonFiniteError, RecipeError
from personality_vector.merging.formula import Formula, Options
from personality_vector.merging.merged import Merged
from personality_vector.merging.methods import METHODS, find_method
from personality_vector.merging.summands import alpha_by_tensor
from personality_vector.merging.terms import Term

Scale = Literal["raw", "unit", "equal"]
"""How the vectors are scaled before they are fused; see :func:`fuse`."""

Rows = Float64[Tensor, "vectors hidden"]

_USUAL: Options = {"scale": "raw", "seed": 0}
"""What a label leaves out."""

_ROUNDING = 1e-12
"""A sum of weights that is smaller than this, relative to their size, counts as 0."""


@runtime_checkable
class Vector(Protocol):
    """Describes what a fusion needs of a steering vector, which is a dataclass."""

    @property
    def model(self) -> str:
        """Digest of the model that the directions belong to."""

    @property
    def label(self) -> str:
        """Name for messages."""

    @property
    def layers(self) -> tuple[int, ...]:
        """0-based decoder blocks, ascending."""

    def cosine(self, other: Any, layer: int, /) -> float:
        """Return the cosine to another vector; refuse another model, width or set of layers."""

    def combined(
        self, others: Sequence[Any], directions: Mapping[int, Tensor], label: str, /
    ) -> "Vector":
        """Return new directions as a vector that names the origins of this one and the others."""

    def __getitem__(self, layer: int, /) -> Tensor:
        """Return the direction at a layer, float32."""


V = TypeVar("V", bound=Vector)


@dataclass(frozen=True, slots=True)
class Share:
    """Says how much of the fused direction comes from one vector.

    Attributes:
        label: Label of the vector.
        weight: Its weight.
        layer: 0-based decoder block; ``None`` stands for all layers as one long vector.
        norm: Norm of the vector before scaling, in the unit of the activation.
        share: ``<w_i v_i, f> / sum_j <w_j v_j, f>`` with ``f`` the fused direction and ``v_i``
            after scaling. The shares of all vectors sum to 1; for a sum or a mean the denominator
            is a multiple of ``<f, f>``.
        cosine: Cosine of the angle between the scaled vector and the fused direction.
    """

    label: str
    weight: float
    layer: int | None
    norm: float
    share: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Fused(Generic[V]):
    """Holds a fused vector and the share that each vector has in it.

    Attributes:
        vector: The fused vector.
        shares: A share of each vector, in the order given, for each layer and finally overall.
    """

    vector: V
    shares: tuple[Share, ...]

    @property
    def overall(self) -> tuple[Share, ...]:
        """The shares over all layers together."""
        return tuple(share for share in self.shares if share.layer is None)


def fuse(  # noqa: PLR0913  (what is fused, how long, by which method, and its name)
    vectors: Sequence[V],
    weights: Sequence[float] | None = None,
    *,
    scale: Scale = "raw",
    method: str = "mean",
    options: Options | None = None,
    seed: int = 0,
    label: str = "",
) -> Fused[V]:
    """Return one steering vector made of several.

    Arithmetic is float64, with one rounding to float32 at the end. The order of the vectors does
    not change a bit. A vector of weight 0 changes nothing.

    Args:
        vectors: Vectors of one model, with directions for the same layers.
        weights: A weight for each vector; by default 1.
        scale: ``raw`` takes vectors as they are, so that the longest one dominates a mean;
            ``unit`` gives each direction the norm 1; ``equal`` gives the directions of a layer the
            mean of their norms, weighted by ``|w_i|``, so that the result keeps the unit of the
            activation.
        method: ``mean``, ``sum_i w_i v_i / sum_i w_i``; or a method of a merge, whose alphas are
            the weights: ``task_arithmetic`` is the plain sum, ``ties`` a mean over the vectors
            that agree in sign, ``dare`` a sum. What such a method calls a tensor is the direction
            of a layer, and ``trim: global`` of TIES trims over all layers at once.
        options: Options of the method, such as ``{"density": 0.2}``.
        seed: Seed of random masks, which depend on it, the vector, its layer and the entry.
        label: By default a formula of what was done.

    Raises:
        BaseMismatchError: The vectors are of different models.
        TensorMismatchError: They differ in width or layers.
        DataError: There are none, their number is not that of the weights, the weights of a mean
            sum to 0, all weights are 0, or a fused direction is.
        NonFiniteError: A weight or a fused direction is NaN or infinite.
        RecipeError: The method or an option is unknown.

    Source:
        BILLY, Pai et al., arXiv:2510.10157: ``v = (1 / N) sum_i v_i``, raw, where a persona that
        is given twice has weight 2. ``equal`` is the normalisation of the code of CAA, Rimsky et
        al. 2023, arXiv:2312.06681, each vector to the mean norm of its layer; deviation: theirs
        is not weighted, which for equal weights is the same. Trimming depends on the basis of the
        residual stream, which nothing singles out: TIES on directions is offered, not advised.
    """
    require_one_space(vectors)
    given = _checked(weights if weights is not None else [1.0] * len(vectors), vectors)
    formula, alphas = _bound(method, options or {}, given)
    rows = {layer: _scaled(vectors, layer, given, scale) for layer in vectors[0].layers}
    settings = {"scale": scale, **(options or {}), "seed": seed}
    unusual = {n: value for n, value in settings.items() if _USUAL.get(n) != value}
    called = label or _formula(vectors, given, method, unusual)
    fused = _combined(vectors, rows, alphas, formula, seed)
    every = settings if method == "mean" else {"scale": scale, **formula.options, "seed": seed}
    how = _formula(vectors, given, method, every)
    written = {layer: direction.float() for layer, direction in fused.items()}
    for layer, direction in written.items():
        if not direction.any():
            raise DataError(
                f"{called}, layer {layer}: the fused direction is zero, so it points nowhere; "
                "the vectors cancel, or the method keeps nothing of this layer"
            )
    vector: Any = vectors[0].combined(vectors[1:], written, called)
    vector = replace(vector, estimator=f"{how} of {vector.estimator}")
    return Fused(vector, tuple(_shares(vectors, given, rows, fused)))


@dataclass(frozen=True)
class _Directions(TensorSource):
    """Presents directions as the tensors of a delta, named by layer, so that a merge reads them."""

    directions: Mapping[str, Float64[Tensor, " hidden"]]

    @property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(direction.shape) for name, direction in self.directions.items()}

    @property
    def _origins(self) -> tuple[()]:
        return ()

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        return self.directions[name][part]


def require_one_space(vectors: Sequence[Vector]) -> None:
    """Refuse vectors of several models, widths or sets of layers; see :func:`fuse`."""
    if not vectors:
        raise DataError("a fusion needs at least one steering vector")
    layers = sorted({layer for vector in vectors for layer in vector.layers})
    for vector in vectors:
        for layer in layers:
            vectors[0].cosine(vector, layer)  # refuses another model, width or set of layers


def _checked(weights: Sequence[float], vectors: Sequence[Vector]) -> Float64[Tensor, " vectors"]:
    if len(weights) != len(vectors):
        raise DataError(f"{len(weights)} weights for {len(vectors)} vectors: give one for each")
    given = torch.tensor(weights, dtype=torch.float64)
    if not torch.isfinite(given).all():
        raise NonFiniteError(f"the weights must be finite numbers, got {list(weights)}")
    if not given.any():
        raise DataError("all weights are 0, so there is nothing to fuse")
    return given


def _bound(
    method: str, options: Options, weights: Float64[Tensor, " vectors"]
) -> tuple[Formula, Float64[Tensor, " vectors"]]:
    """Return a method with its options fixed, and the alphas to give it."""
    if method != "mean":
        if method not in METHODS:
            raise RecipeError(f"unknown method {method!r}; known are mean, {', '.join(METHODS)}")
        return find_method(method).bind(options), weights
    if options:
        raise RecipeError(f"mean takes no options; got {', '.join(options)}")
    total = math.fsum(weights)
    if abs(total) < _ROUNDING * math.fsum(weights.abs()):
        raise DataError(
            f"the weights {weights.tolist()} sum to 0, so there is no mean; "
            "the method task_arithmetic takes their sum"
        )
    return find_method("task_arithmetic").bind({}), weights / total


def _scaled(
    vectors: Sequence[Vector],
    layer: int,
    weights: Float64[Tensor, " vectors"],
    scale: Scale,
) -> Rows:
    """Return the directions of a layer, float64, scaled as ``scale`` says."""
    rows = torch.stack([vector[layer] for vector in vectors]).double()
    if scale != "raw":
        norms = rows.norm(dim=1)
        mean = math.fsum(weights.abs() * norms) / math.fsum(weights.abs())
        rows *= ((mean if scale == "equal" else 1.0) / norms)[:, None]
    return rows


def _combined(
    vectors: Sequence[Vector],
    rows: Mapping[int, Rows],
    alphas: Float64[Tensor, " vectors"],
    formula: Formula,
    seed: int,
) -> dict[int, Float64[Tensor, " hidden"]]:
    """Return the merge of the vectors at each layer, with the vectors as deltas of one base."""
    terms = []
    for place, (vector, alpha) in enumerate(zip(vectors, alphas.tolist(), strict=True)):
        source = _Directions({str(layer): row[place] for layer, row in rows.items()})
        base = Fingerprint(vector.model, len(rows), sum(row.shape[1] for row in rows.values()))
        numbers = (vector[layer].contiguous().numpy().tobytes().hex() for layer in vector.layers)
        identity = digest("directions", *map(str, vector.layers), *numbers)
        delta = Delta(source, base, identity, vector.label)
        terms.append(Term(delta, alpha, alpha_by_tensor(alpha, source.names), place))
    merged = Merged(tuple(terms), formula, seed)
    return {
        int(name): merged.part(name, whole(merged, name)) for name in sorted(merged.names, key=int)
    }


def _shares(
    vectors: Sequence[Vector],
    weights: Float64[Tensor, " vectors"],
    rows: Mapping[int, Rows],
    fused: Mapping[int, Float64[Tensor, " hidden"]],
) -> Iterator[Share]:
    given = {layer: torch.stack([v[layer] for v in vectors]).double() for layer in fused}
    places: dict[int | None, list[int]] = {layer: [layer] for layer in fused}
    for place, layers in {**places, None: list(fused)}.items():
        direction = torch.cat([fused[layer] for layer in layers])
        long = torch.cat([rows[layer] for layer in layers], dim=1)
        inner = long @ direction
        shares = weights * inner / (weights * inner).sum()
        cosines = inner / (long.norm(dim=1) * direction.norm())
        norms = torch.cat([given[layer] for layer in layers], dim=1).norm(dim=1)
        columns = (column.tolist() for column in (weights, norms, shares, cosines))
        for vector, weight, *numbers in zip(vectors, *columns, strict=True):
            yield Share(vector.label, weight, place, *numbers)


def _formula(
    vectors: Sequence[Vector],
    weights: Float64[Tensor, " vectors"],
    method: str,
    settings: Options,
) -> str:
    """Return what is done, such as ``mean(a, 2 * b; scale unit)``."""
    parts = [
        vector.label if weight == 1 else f"{weight:.15g} * {vector.label}"
        for vector, weight in zip(vectors, weights.tolist(), strict=True)
    ]
    more = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{method}({', '.join(parts)}{'; ' if more else ''}{more})"
