"""The inner loops of a merge, over flat tensors that fit a cache.

Each has one meaning and two forms: a loop that numba compiles for the CPU, and operations of torch
for any other device. Both give the same bits, but for the sums of :func:`projection`, which are
added up in another order.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Float32, Float64, Int64
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from personality_vector.compiled import compiled, compiled_sum

_BLOCK = 1024
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
    _difference(_bits(tuned), _bits(base), out.numpy())
    return out


def is_finite(entries: Float[Tensor, " entries"]) -> bool:
    """Return whether no entry is NaN or infinite."""
    integer, exponent = _EXPONENT[entries.dtype]
    bits = entries.view(integer)
    if not entries.is_cpu:
        return not bool(((bits & exponent) == exponent).any())
    return not _any_holds(bits.numpy(), bits.numpy().dtype.type(exponent))


def trimmed(delta: Float64[Tensor, " entries"], threshold: float) -> Float64[Tensor, " entries"]:
    """Return ``delta`` with 0 for every entry whose float32 magnitude is below ``threshold``."""
    if not delta.is_cpu:
        return torch.where(delta.abs().float() >= threshold, delta, 0.0)
    out = torch.empty_like(delta)
    _trim(delta.numpy(), np.float32(threshold), out.numpy())
    return out


def agreement(
    weighted: Sequence[Float64[Tensor, " entries"]], elected: Float64[Tensor, " entries"]
) -> tuple[Float64[Tensor, " entries"], Float64[Tensor, " entries"]]:
    """Return, per entry, the sum and the number of the terms whose sign is that of ``elected``.

    Where ``elected`` is 0, and for terms that are 0, nothing is added or counted.
    """
    total, count = torch.zeros_like(elected), torch.zeros_like(elected)
    for term in weighted:
        if elected.is_cpu:
            _agree(term.numpy(), elected.numpy(), total.numpy(), count.numpy())
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
) -> int:
    """Add to ``counts`` a histogram of float32 magnitudes, by their bits, on the CPU.

    The bits of a non-negative float32, read as a whole number, order as the floats do.

    Args:
        entries: Of a delta, float64; or, with ``base``, of a fine-tuned model in bfloat16.
        base: What they are to be compared with.
        low: The bits that the first bin begins with; smaller magnitudes are not counted.
        shift: A bin holds ``2 ** shift`` patterns of bits.
        counts: One for each bin.

    Returns:
        How many magnitudes lie above the last bin.
    """
    pair = (entries, entries) if base is None else (_bits(entries), _bits(base))
    arrays = (part.numpy() if isinstance(part, Tensor) else part for part in pair)
    return int(_count(*arrays, low, shift, counts.numpy()))


def rounded(values: Float64[Tensor, " entries"], dtype: torch.dtype) -> Float[Tensor, " entries"]:
    """Return ``values`` rounded once, to the nearest of ``dtype``, ties to even.

    ``values.to(torch.bfloat16)`` rounds twice, since torch goes by way of float32.
    """
    if dtype in (torch.float32, torch.float64):
        return values.to(dtype)
    if dtype == torch.bfloat16 and values.is_cpu:
        out = torch.empty(values.shape, dtype=dtype)
        _round(values.numpy(), _bits(out))
        return out
    return to_odd(values).to(dtype)


def to_odd(values: Float64[Tensor, " entries"]) -> Float32[Tensor, " entries"]:
    """Return float32 that is exact, or else cut off and made odd in its last bit.

    What is rounded to odd can be rounded again, to a narrower dtype, as if it were the first time.

    Source:
        Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums".
    """
    near = values.float()
    back = near.double()
    bits = near.view(torch.int32) - (back.abs() > values.abs()).int()
    return (bits | (back != values).int()).view(torch.float32)


def projection(
    base: Float64[Tensor, " entries"],
    change: Float64[Tensor, " entries"],
    written: Float[Tensor, " entries"],
) -> tuple[float, float, float]:
    """Return ``<base, base>``, ``<change, change>`` and ``<written - base, change>`` in float64."""
    if written.is_cpu and written.dtype == torch.bfloat16:
        of_base, of_change, along = _project(base.numpy(), change.numpy(), _bits(written))
        return of_base, of_change, along
    made = written.double() - base
    return float(base.dot(base)), float(change.dot(change)), float(made.dot(change))


def _bits(entries: Tensor) -> Any:
    return entries.view(torch.uint16).numpy()


@intrinsic  # type: ignore[untyped-decorator]
def float_of(_context: Any, _bits: Any) -> Any:
    """Return the float32 that 32 bits stand for."""

    def generate(_c: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.bitcast(given[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(_context: Any, _float: Any) -> Any:
    """Return the 32 bits of a float32."""

    def generate(_c: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.bitcast(given[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@compiled
def wide(bits: Any) -> Any:
    """Return a bfloat16, given as its bits, in float64."""
    return np.float64(float_of(np.uint32(bits) << np.uint32(16)))


def entry_of(term: Any, base: Any) -> Any:
    """Return an entry of a delta: ``term`` itself, or the difference if ``term`` is bits."""


@overload(entry_of, strict=False)  # type: ignore[untyped-decorator]
def _entry_of(term: Any, base: Any) -> Any:
    if isinstance(term, types.Float):
        return lambda term, base: term  # noqa: ARG005
    if isinstance(base, types.Float):
        return lambda term, base: wide(term) - base
    return lambda term, base: wide(term) - wide(base)


@compiled
def _difference(tuned: Any, base: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = wide(tuned[i]) - wide(base[i])


@compiled
def _any_holds(bits: Any, exponent: Any) -> bool:
    # An exponent of all ones is that of NaN and infinity; as whole numbers these are the largest.
    largest = exponent & ~exponent
    for i in range(bits.size):
        largest = max(largest, bits[i] & exponent)
    return bool(largest == exponent)


@compiled
def _trim(delta: Any, threshold: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = delta[i] if np.float32(abs(delta[i])) >= threshold else 0.0


@compiled
def _agree(term: Any, elected: Any, total: Any, count: Any) -> None:
    for i in range(total.size):
        agrees = term[i] * elected[i] > 0.0
        total[i] += term[i] if agrees else 0.0
        count[i] += 1.0 if agrees else 0.0


@compiled
def _count(entries: Any, base: Any, low: int, shift: int, counts: Any) -> Any:
    places, found = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.uint32)
    least, by, bins = np.int32(low), np.int32(shift), np.int32(counts.size)
    above = 0
    for first in range(0, entries.size, _BLOCK):
        size, number = min(_BLOCK, entries.size - first), np.int64(0)
        for i in range(size):
            bits = bits_of(np.float32(abs(entry_of(entries[first + i], base[first + i]))))
            places[i] = (np.int32(bits) - least) >> by
        for i in range(size):
            above += places[i] >= bins
        # Written whether or not it counts: a branch would be guessed wrong half of the time.
        for i in range(size):
            found[number] = places[i]
            number += np.uint32(places[i]) < np.uint32(bins)
        for i in range(number):
            counts[found[i]] += 1
    return above


@compiled
def nearest_bfloat16(value: Any) -> Any:
    """Return the bits of the bfloat16 that is nearest to a float64; see :func:`to_odd`."""
    near = np.float32(value)
    back = np.float64(near)
    bits = bits_of(near) - np.uint32(abs(back) > abs(value))
    bits |= np.uint32(back != value)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + even) >> np.uint32(16))


@compiled
def _round(values: Any, out: Any) -> None:
    for i in range(out.size):
        out[i] = nearest_bfloat16(values[i])


@compiled_sum
def _project(base: Any, change: Any, written: Any) -> tuple[float, float, float]:
    of_base = of_change = along = 0.0
    for i in range(base.size):
        of_base += base[i] * base[i]
        of_change += change[i] * change[i]
        along += (wide(written[i]) - base[i]) * change[i]
    return of_base, of_change, along
