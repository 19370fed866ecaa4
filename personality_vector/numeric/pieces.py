"""Large tensors, a piece at a time."""

from collections.abc import Iterator

_PIECE = 1 << 22


def pieces(count: int) -> Iterator[slice]:
    """Yield slices that cover ``count`` entries, four million at a time.

    A whole tensor in float64, or as random bits, would take many times its memory.
    """
    for start in range(0, count, _PIECE):
        yield slice(start, min(start + _PIECE, count))
