"""mergekit's generalised task arithmetic in mergekit's own conventions, on our engine.

Eight methods are a choice of entries to keep in each delta, and whether a sign is elected. They
follow mergekit 0.1.5 operation by operation in its dtype, with these choices where it is arbitrary
or random: of equal magnitudes the first entries are kept, and random masks are those of our
counter-based generator.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.merging.formula import Combine
from personality_vector.merging.mergekit.masks import Keep, Trim, Whole, keeper
from personality_vector.merging.mergekit.recipe import Scalar
from personality_vector.merging.mergekit.settings import Parameter, Values
from personality_vector.merging.terms import Slice

_SMALL = 1e-7
"""An L1 norm below it is not rescaled."""


@dataclass(frozen=True, slots=True)
class Convention:
    """One of the eight methods: what is kept of a delta, whether signs are elected, defaults."""

    trim: Trim
    elects: bool
    normalize: bool
    rescale: bool

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What the method takes, with mergekit's defaults."""
        own = {"outliers": ("gamma", 0.01), "ranked": ("epsilon", 0.15)}.get(self.trim)
        return (
            Parameter("normalize", self.normalize, kind="truth"),
            Parameter("rescale", self.rescale, kind="truth"),
            Parameter("int8_mask", default=False, kind="truth"),
            Parameter("lambda", 1.0),
            Parameter("weight", scope="tuned"),
            Parameter("density", 1.0, "tuned"),
            *([Parameter(*own, "tuned")] if own else []),
        )


CONVENTIONS: Mapping[str, Convention] = {
    "task_arithmetic": Convention("nothing", elects=False, normalize=False, rescale=False),
    "ties": Convention("magnitude", elects=True, normalize=True, rescale=False),
    "dare_linear": Convention("random", elects=False, normalize=False, rescale=True),
    "dare_ties": Convention("random", elects=True, normalize=False, rescale=True),
    "breadcrumbs": Convention("outliers", elects=False, normalize=False, rescale=False),
    "breadcrumbs_ties": Convention("outliers", elects=True, normalize=False, rescale=False),
    "della": Convention("ranked", elects=True, normalize=True, rescale=True),
    "della_linear": Convention("ranked", elects=False, normalize=False, rescale=True),
}


@dataclass(frozen=True, slots=True)
class Precision:
    """The dtypes of one tensor: of all checkpoints, of mergekit's arithmetic, and as written."""

    stored: torch.dtype
    dtype: torch.dtype
    written: torch.dtype

    @property
    def narrows(self) -> bool:
        """Whether mergekit rounds what it reads."""
        return torch.promote_types(self.stored, self.dtype) != self.dtype


@dataclass(frozen=True)
class TaskArithmetic(Combine):
    """One of mergekit's conventions with its options fixed.

    Attributes:
        convention: Which.
        models: Of each term, as :attr:`values` names it.
        values: Parameters by tensor.
        precisions: By tensor.
        base: Read again where the dtype is narrower than that of the checkpoints.
    """

    convention: Convention
    models: Sequence[str]
    values: Mapping[str, Values]
    precisions: Mapping[str, Precision]
    base: Checkpoint

    def __call__(self, slices: Sequence[Slice]) -> Float64[Tensor, " entries"]:
        """Return the change of the base that mergekit would write, before its last rounding."""
        name = slices[0].name
        values = self.values[name]
        acting = [s for s in slices if self.models[s.term.position] in values.of]
        if not acting:
            return torch.zeros_like(slices[0].delta)
        acting.sort(key=lambda s: s.term.position)
        dtype = self.precisions[name].dtype
        given = [values.of[self.models[s.term.position]]["weight"] for s in acting]
        weights = torch.tensor(given, dtype=dtype, device=acting[0].delta.device)[:, None]
        weighted = torch.stack([self._sparse(s) for s in acting]) * weights
        return self._change(acting[0], self._mixed(weighted, weights, values.shared))

    def _change(self, s: Slice, mixed: Float[Tensor, " entries"]) -> Float64[Tensor, " entries"]:
        """Return ``mixed`` as a change of the base as it is stored, with mergekit's roundings.

        The last one is left to the engine: it also measures what is lost by it.
        """
        precision = self.precisions[s.name]
        if not precision.narrows and precision.written == precision.dtype:
            return mixed.double()
        base = self._base(s)
        start = base.to(precision.dtype)
        if precision.written == precision.dtype:
            return start.double() + mixed.double() - base
        return (start + mixed).double() - base

    def _mixed(
        self,
        weighted: Float[Tensor, "n entries"],
        weights: Float[Tensor, "n 1"],
        shared: Mapping[str, Scalar],
    ) -> Float[Tensor, " entries"]:
        """Return the sum of the terms (that agree), divided by the sum of weights, times lambda."""
        if self.convention.elects:
            # A sum of zero elects the positive sign.
            elected = torch.where(weighted.sum(dim=0) >= 0, 1.0, -1.0)
            agrees = weighted.sign() == elected
            mixed, divisor = (weighted * agrees).sum(dim=0), (weights * agrees).sum(dim=0)
            divisor[divisor == 0] = 1
        else:
            mixed, divisor = weighted.sum(dim=0), weights.sum(dim=0)
            divisor[divisor.abs() < 1e-8] = 1  # as mergekit: no division by a sum of about zero
        if shared["normalize"]:
            mixed = mixed / divisor
        return mixed if shared["lambda"] == 1 else mixed * shared["lambda"]

    def _sparse(self, s: Slice) -> Float[Tensor, " entries"]:
        """Return what is kept of a term's delta, rescaled."""
        values = self.values[s.name]
        own = values.of[self.models[s.term.position]]
        delta, density = self._delta(s), float(own["density"])
        if self.convention.trim == "nothing" or density >= 1.0:
            return delta
        if density <= 0.0:
            return torch.zeros_like(delta)
        size = math.prod(self.base.entries[s.name].shape)
        keep = keeper(self.convention.trim, own, Whole(size, delta.dtype, self._delta), s)
        kept = delta.to(keep.dtype) * keep.mask(s, delta)
        if values.shared["rescale"]:
            kept = kept * self._scale(s, keep)
        return kept.to(delta.dtype)

    def _scale(self, s: Slice, keep: Keep) -> Float[Tensor, ""]:
        """Return the L1 norm of the tensor over that of what is kept, in mergekit's dtype."""
        before, after = s.survey("mergekit: L1 norms", lambda stream: self._norms(stream(), keep))
        whole, kept = (torch.tensor(norm, dtype=keep.dtype) for norm in (before, after))
        scale = torch.ones_like(kept) if whole < _SMALL or kept < _SMALL else whole / kept
        return scale.to(s.delta.device)

    def _norms(self, slices: Iterable[Slice], keep: Keep) -> tuple[float, float]:
        before = after = 0.0
        for s in slices:
            delta = self._delta(s)
            size = delta.double().abs()
            before += float(size.sum())
            after += float((size * keep.mask(s, delta)).sum())
        return before, after

    def _delta(self, s: Slice) -> Float[Tensor, " entries"]:
        """Return the difference of the two models after each was rounded to mergekit's dtype."""
        precision = self.precisions[s.name]
        if not precision.narrows:
            return s.delta.to(precision.dtype)
        base = self._base(s)
        return (base + s.delta).to(precision.dtype) - base.to(precision.dtype)

    def _base(self, s: Slice) -> Float64[Tensor, " entries"]:
        part = slice(s.start, s.start + s.delta.numel())
        return self.base.part(s.name, part).to(s.delta.device).double()
