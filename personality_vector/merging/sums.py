"""Base plus change, rounded once: what a merge writes and what a live edit leaves in a model."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from personality_vector.delta.sources import require_finite
from personality_vector.merging.merged import is_one_delta
from personality_vector.merging.rounding import Cast, Squares
from personality_vector.merging.terms import Slice
from personality_vector.numeric.kernels import difference, projection


def added(
    change: Float64[Tensor, " entries"],
    slices: Sequence[Slice],
    base: Float[Tensor, " entries"],
    cast: Cast,
) -> tuple[Float[Tensor, " entries"], Squares]:
    """Return ``base + change`` in float64, rounded once, and the inner products.

    Where the change is exactly that of one delta, the entries are the fine-tuned ones themselves.

    Args:
        change: What the terms amount to, on the device where the sum is computed.
        slices: Of every term that acts; at least one.
        base: The entries that the change is added to, in their dtype.
        cast: How to round.

    Raises:
        NonFiniteError: A sum does not fit the dtype.
    """
    start = base.to(change.device).double()
    written = restored(slices, change, base)
    if written is None or written.dtype != cast.dtype:
        written = cast.rounded(start + change, slices[0].start)
    return written, Squares(*projection(start, change, written))


def restored(
    slices: Sequence[Slice],
    change: Float64[Tensor, " entries"],
    base: Float[Tensor, " entries"],
) -> Float[Tensor, " entries"] | None:
    """Return fine-tuned entries themselves, where the change is exactly that of their delta.

    Args:
        slices: Of all terms.
        change: What they amount to.
        base: The entries that the change is to be added to. Unless they are those that the delta
            was taken from, nothing is restored.
    """
    if not is_one_delta(slices, change):
        return None
    (only,) = slices
    start = base.cpu()
    tuned = only.term.delta.source.tuned_part(only.name, only.part, start)
    if tuned is None or not _is_base_of(only, start, tuned):
        return None
    return tuned.to(change.device)


def _is_base_of(only: Slice, base: Tensor, tuned: Tensor) -> bool:
    """Return whether entries are those that a delta was taken from."""
    ends = only.term.difference
    if ends is None:  # A delta that was saved is rounded to float32.
        return torch.equal(difference(tuned, base).float(), only.delta.cpu().float())
    stored = require_finite(ends.base, only.name, only.part)
    return stored.dtype == base.dtype and torch.equal(stored, base)
