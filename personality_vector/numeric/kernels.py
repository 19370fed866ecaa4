"""The inner loops of a merge, over flat tensors that fit a cache.

Each has two forms: a loop that numba compiles for the CPU, and operations of torch for any other
device. Both give the same bits, except for the sums of :func:`projection`, whose terms are added
in another order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Float64, Int64
from torch import Tensor

from personality_vector.numeric.compiled import (
    add_agreeing,
    any_holds,
    count_bits,
    project,
    round_all,
    sum_all,
    widen,
)

_COMPILED = {torch.bfloat16, torch.float32}

_EXPONENT = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
    torch.float64: (torch.int64, 0x7FF0000000000000),
}


def difference(
    tuned: Float[Tensor, " entries"], base: Float[Tensor, " entries"]
) -> Float64[Tensor, " entries"]:
    """Return ``tuned - base`` in float64: exact unless one is 2**29 times the other."""
    if not tuned.is_cpu or not tuned.dtype == base.dtype == torch.bfloat16:
        return tuned.double() - base.double()
    out = torch.empty(tuned.shape, dtype=torch.float64)
    widen(_bits(tuned), _bits(base), out.numpy())
    return out


def is_finite(entries: Float[Tensor, " entries"]) -> bool:
    """Return whether no entry is NaN or infinite."""
    integer, exponent = _EXPONENT[entries.dtype]
    bits = entries.view(integer)
    if not entries.is_cpu:
        return not bool(((bits & exponent) == exponent).any())
    return not any_holds(bits.numpy(), bits.numpy().dtype.type(exponent))


def trimmed(delta: Float64[Tensor, " entries"], threshold: float) -> Float64[Tensor, " entries"]:
    """Return ``delta`` with 0 for every entry whose float32 magnitude is below ``threshold``."""
    return torch.where(delta.abs().float() >= threshold, delta, 0.0)


def agreement(
    weighted: Sequence[Float64[Tensor, " entries"]], elected: Float64[Tensor, " entries"]
) -> tuple[Float64[Tensor, " entries"], Float64[Tensor, " entries"]]:
    """Return, per entry, the sum and the number of the terms whose sign is that of ``elected``.

    Where ``elected`` is 0, and for terms that are 0, nothing is added or counted.
    """
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for term in weighted:
        if elected.is_cpu:
            add_agreeing(term.numpy(), elected.numpy(), total.numpy(), count.numpy())
        else:
            agrees = term * elected > 0
            total += torch.where(agrees, term, 0.0)
            count += agrees
    return total, count


def count_magnitudes(
    entries: Float[Tensor, " entries"],
    base: BFloat16[Tensor, " entries"] | None,
    low: int,
    shift: int,
    counts: Int64[Tensor, " bins"],
) -> tuple[int, int]:
    """Add to ``counts`` a histogram of float32 magnitudes, by their bits, on the CPU.

    The bits of a non-negative float32, read as a whole number, order as the floats do.

    Args:
        entries: Entries of a delta, float64; or, with ``base``, of a fine-tuned bfloat16 model.
        base: What they are to be compared with.
        low: The bits that the first bin begins with; smaller magnitudes are not counted.
        shift: A bin holds ``2 ** shift`` patterns of bits.
        counts: One for each bin.

    Returns:
        How many magnitudes lie above the last bin, and how many of these are not finite.
    """
    pair = (entries, entries) if base is None else (_bits(entries), _bits(base))
    arrays = (part.numpy() if isinstance(part, Tensor) else part for part in pair)
    above, infinite = count_bits(*arrays, low, shift, counts.numpy())
    return int(above), int(infinite)


def rounded(values: Float64[Tensor, " entries"], dtype: torch.dtype) -> Float[Tensor, " entries"]:
    """Return ``values.to(dtype)``: the nearest of ``dtype``, ties to even, by way of float32.

    So does torch on every device. A sum that is a tie between two bfloat16 numbers but for the
    last bits of float64, as many are when alpha is 0.1 or 0.7, is a tie in float32: which way it
    goes does not depend on the order of the terms.
    """
    if dtype != torch.bfloat16 or not values.is_cpu:
        return values.to(dtype)
    out = torch.empty(values.shape, dtype=dtype)
    round_all(values.numpy(), _bits(out))
    return out


def projection(
    base: Float64[Tensor, " entries"],
    change: Float64[Tensor, " entries"],
    written: Float[Tensor, " entries"],
) -> tuple[float, float, float]:
    """Return ``<base, base>``, ``<change, change>`` and ``<written - base, change>`` in float64."""
    if written.is_cpu and written.dtype in _COMPILED:
        of_base, of_change, along = project(base.numpy(), change.numpy(), _array(written))
        return of_base, of_change, along
    made = written.double() - base
    return float(base.dot(base)), float(change.dot(change)), float(made.dot(change))


def summed(
    base: Float[Tensor, " entries"], change: Float64[Tensor, " entries"], dtype: torch.dtype
) -> tuple[Float[Tensor, " entries"], tuple[float, float, float]]:
    """Return ``base + change``, added in float64 and then :func:`rounded`, and its projection.

    It lies where ``change`` does.
    """
    if change.is_cpu and base.is_cpu and {base.dtype, dtype} <= _COMPILED:
        out = torch.empty(base.shape, dtype=dtype)
        of_base, of_change, along = sum_all(_array(base), change.numpy(), _array(out))
        return out, (of_base, of_change, along)
    start = base.to(change.device).double()
    written = rounded(start + change, dtype)
    return written, projection(start, change, written)


def _array(entries: Tensor) -> Any:
    return _bits(entries) if entries.dtype == torch.bfloat16 else entries.numpy()


def _bits(entries: Tensor) -> Any:
    return entries.view(torch.uint16).numpy()
