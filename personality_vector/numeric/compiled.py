"""Every loop that numba compiles for the CPU on its first call, and then keeps on disk.

They lie in one file, because numba compiles a kept function again only when the file of that
function changes, and not when the file of a function inlined into it does. The first call after an
installation takes some seconds longer. The meaning of the loops is explained where they are called:
:mod:`personality_vector.numeric.random`, :mod:`personality_vector.numeric.kernels` and
:mod:`personality_vector.merging.loop`.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
from numba import njit, types
from numba.extending import overload

GOLDEN_GAMMA = 0x9E3779B97F4A7C15  # the constants of splitmix64
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB

BLOCK = 2048
"""Number of entries that go through all steps of a merge together: 100 KB for six terms, which
the inner caches hold."""

Loop = Callable[..., Any]


def compiled(function: Loop, **options: Any) -> Loop:
    """Compile a loop over arrays; while it runs, other threads run too."""
    # A checker of annotations, as in our tests, wraps functions into something that is not a loop.
    loop = inspect.unwrap(function)
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        return cast("Loop", njit(cache=True, **options)(loop))
    except RuntimeError:  # no folder to keep it in can be written
        return cast("Loop", njit(**options)(loop))


@compiled
def wide(bits: Any) -> Any:
    """Return a bfloat16, given as its bits, in float64."""
    return np.float64(np.uint32(bits << 16).view(np.float32))


def entry_of(term: Any, base: Any) -> Any:
    """Return ``term`` itself, or its difference from ``base`` if it is bits; 0 changes nothing."""


@overload(entry_of, strict=False)  # type: ignore[untyped-decorator]
def _entry_of(term: Any, base: Any) -> Any:
    if isinstance(term, types.Float):
        return lambda term, base: term  # noqa: ARG005
    if isinstance(base, types.Float):
        return lambda term, base: wide(term) - base
    return lambda term, base: wide(term) - wide(base)


def is_infinite(entry: Any) -> Any:
    """Return whether bits are those of NaN or infinity; a float64 has been checked before."""


@overload(is_infinite, strict=False)  # type: ignore[untyped-decorator]
def _is_infinite(entry: Any) -> Any:
    if isinstance(entry, types.Integer):
        return lambda entry: (entry & np.uint16(0x7F80)) == np.uint16(0x7F80)
    return lambda entry: False  # noqa: ARG005


@compiled
def widen(term: Any, base: Any, out: Any) -> bool:
    """Write the entries of a term in float64; return whether one is NaN or infinite."""
    bad = False
    for i in range(out.size):
        out[i] = entry_of(term[i], base[i])
        bad |= is_infinite(term[i])
    return bad


@compiled
def any_holds(bits: Any, exponent: Any) -> bool:
    """Return whether any entry has all bits of the exponent set: NaN and infinity."""
    # An exponent of all ones is that of NaN and infinity; as whole numbers these are the largest.
    largest = exponent & ~exponent
    for i in range(bits.size):
        largest = max(largest, bits[i] & exponent)
    return bool(largest == exponent)


@compiled
def add_agreeing(term: Any, elected: Any, total: Any, count: Any) -> None:
    """Add a term to the total, and 1 to the count, where it has the elected sign."""
    for i in range(total.size):
        agrees = term[i] * elected[i] > 0.0
        total[i] += term[i] if agrees else 0.0
        count[i] += 1.0 if agrees else 0.0


@compiled
def count_bits(entries: Any, base: Any, low: int, shift: int, counts: Any) -> Any:
    """Count magnitudes by their bits; return how many lie above, and how many are not finite."""
    places, found = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.uint32)
    least, by, bins = np.int32(low), np.int32(shift), np.int32(counts.size)
    infinite = (np.int32(0x7F800000) - least) >> by
    above = bad = 0
    for first in range(0, entries.size, BLOCK):
        size, number = min(BLOCK, entries.size - first), np.int64(0)
        for i in range(size):
            magnitude = np.float32(abs(entry_of(entries[first + i], base[first + i])))
            places[i] = (magnitude.view(np.int32) - least) >> by
        for i in range(size):
            above += places[i] >= bins
            bad += places[i] >= infinite
        # Written whether or not it counts: a branch would be guessed wrong half of the time.
        for i in range(size):
            found[number] = places[i]
            number += np.uint32(places[i]) < np.uint32(bins)
        for i in range(number):
            counts[found[i]] += 1
    return above, bad


@compiled
def nearest_bfloat16(value: Any) -> Any:
    """Return the bits of the bfloat16 that is nearest to a float64, by way of float32."""
    bits = np.float32(value).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + np.uint32(0x7FFF) + even) >> np.uint32(16))


def nearest(value: Any, out: Any) -> Any:
    """Return a float64 as ``out`` holds numbers: as floats, or as the bits of a bfloat16."""


@overload(nearest, strict=False)  # type: ignore[untyped-decorator]
def _nearest(value: Any, out: Any) -> Any:  # noqa: ARG001
    if isinstance(out.dtype, types.Float):
        return lambda value, out: value  # noqa: ARG005
    return lambda value, out: nearest_bfloat16(value)  # noqa: ARG005


@compiled
def round_all(values: Any, out: Any) -> None:
    """Write float64 as the nearest float32, or as the bits of the nearest bfloat16."""
    for i in range(out.size):
        out[i] = nearest(values[i], out)


@partial(compiled, fastmath={"reassoc"})  # the order of the sum is left to the compiler
def project(base: Any, change: Any, written: Any) -> tuple[float, float, float]:
    """Return the inner products of base and base, change and change, change and change made."""
    of_base = of_change = along = 0.0
    for i in range(written.size):
        of_base += base[i] * base[i]
        of_change += change[i] * change[i]
        along += (entry_of(written[i], 0.0) - base[i]) * change[i]
    return of_base, of_change, along


@compiled
def sum_all(base: Any, change: Any, written: Any) -> tuple[float, float, float]:
    """Write base and change, rounded once, block by block; return the inner products."""
    scratch = np.empty((2, BLOCK))
    of_base = of_change = along = 0.0
    for first in range(0, base.size, BLOCK):
        here = slice(first, min(first + BLOCK, base.size))
        weights, merged = scratch[0, : here.stop - first], scratch[1, : here.stop - first]
        for j in range(weights.size):
            weights[j] = entry_of(base[first + j], 0.0)
        np.add(weights, change[here], merged)
        round_all(merged, written[here])
        squares = project(weights, change[here], written[here])
        of_base, of_change = of_base + squares[0], of_change + squares[1]
        along += squares[2]
    return of_base, of_change, along


@compiled
def mixed(key: Any, index: Any) -> Any:
    """Return the 24 random bits of one entry of a stream, in a compiled loop."""
    bits = np.uint64(index + 1) * np.uint64(GOLDEN_GAMMA) + key
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(MIX_1)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(MIX_2)
    bits ^= bits >> np.uint64(31)
    return bits >> np.uint64(40)


@compiled
def draw(key: Any, start: int, drawn: Any) -> None:
    """Write uniform numbers from the entry ``start`` on."""
    for i in range(drawn.size):
        drawn[i] = np.float32(mixed(key, start + i)) * np.float32(2.0**-24)


@compiled
def merge_all(base: Any, terms: Any, numbers: Any, change: Any, written: Any) -> Any:
    """Merge a base and terms; return inner products, and a term that is not finite, or -1.

    ``change`` takes the whole change in float64; or, where ``written`` takes the merged entries as
    bits, a block of it at a time.
    """
    scratch, bad = np.empty((len(terms) + 3, BLOCK)), -1
    of_base = of_change = along = 0.0
    for first in range(0, base.size, BLOCK):
        here = slice(first, min(first + BLOCK, base.size))
        part = change[here] if written is None else change[: here.stop - first]
        bad = max(bad, _block(base, terms, here, numbers, scratch, part))
        if written is not None:
            weights, merged = scratch[-1, : part.size], scratch[0, : part.size]
            np.add(weights, part, merged)
            round_all(merged, written[here])
            squares = project(weights, part, written[here])
            of_base, of_change = of_base + squares[0], of_change + squares[1]
            along += squares[2]
    return of_base, of_change, along, bad


@compiled
def _block(base: Any, terms: Any, here: Any, numbers: Any, scratch: Any, change: Any) -> Any:
    """Write the base in float64 and the change of some entries; return a term not finite, or -1."""
    alphas, low, high, keys, start, rate, kept, consensus, by_count, lambda_ = numbers
    size, count, bad = here.stop - here.start, len(terms), -1
    # Rows of whole arrays, since only those are known to be contiguous, which makes loops fast.
    weights = scratch[-1, :size]
    for j in range(size):
        weights[j] = entry_of(base[here.start + j], 0.0)
    if consensus == 0 and rate == 0 and low.max() <= 0.0 and high.min() == np.inf:
        bad = _add_scaled(terms, here, weights, alphas, change)
    else:
        for i in range(count):
            out = scratch[i, :size]
            if widen(terms[i, here], weights, out):
                bad = i
            _trim(out, low[i], high[i])
            _drop(out, keys[i], start + here.start, rate, kept)
            _scale(out, alphas[i])
        if consensus == 0:
            change[:] = scratch[0, :size]
            for i in range(1, count):
                change += scratch[i, :size]
        else:
            _agree(scratch, count, consensus == 1, by_count, change)
    _scale(change, lambda_)
    return bad


@compiled
def _add_scaled(terms: Any, here: Any, weights: Any, alphas: Any, total: Any) -> Any:
    """Write the weighted sum of what nothing is left out of, without a copy of each term."""
    bad = -1
    for i in range(len(terms)):
        term, alpha, is_bad = terms[i, here], alphas[i], False
        for j in range(total.size):
            entry = entry_of(term[j], weights[j])
            total[j] = alpha * entry if i == 0 else total[j] + alpha * entry
            is_bad |= is_infinite(term[j])
        if is_bad:
            bad = i
    return bad


@compiled
def _scale(out: Any, factor: Any) -> None:
    if factor != 1.0:
        for j in range(out.size):
            out[j] *= factor


@compiled
def _trim(out: Any, low: Any, high: Any) -> None:
    if low <= 0.0 and high == np.inf:
        return
    for j in range(out.size):
        magnitude = np.float32(abs(out[j]))
        out[j] = out[j] if (magnitude >= low) & (magnitude < high) else 0.0


@compiled
def _drop(out: Any, key: Any, start: Any, rate: Any, kept: Any) -> None:
    if rate == 0:
        return
    for j in range(out.size):
        out[j] = out[j] / kept if mixed(key, start + j) >= rate else 0.0


@compiled
def _agree(weighted: Any, count: Any, is_mean: Any, by_count: Any, total: Any) -> None:
    elected, agreed = weighted[-2], weighted[-3]
    elected[:], agreed[:], total[:] = 0.0, 0.0, 0.0
    for i in range(count):
        for j in range(total.size):
            elected[j] += np.sign(weighted[i, j]) if by_count else weighted[i, j]
    for i in range(count):
        add_agreeing(weighted[i], elected, total, agreed)
    if is_mean:
        for j in range(total.size):
            total[j] /= max(agreed[j], 1.0)
