"""Layers by number: ``-1`` is the last block, and a layer is named once."""

from collections.abc import Sequence

from personality_vector.errors import DataError, ModelError


def resolved(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Return 0-based layers of a model of ``count`` blocks, in the order given.

    Raises:
        ModelError: The model has no such block.
        DataError: No layer is given, or one twice.
    """
    for layer in layers:
        if not -count <= layer < count:
            raise ModelError(no_such_layer(layer, count))
    found = tuple(layer % count for layer in layers)
    require_distinct(found, layers)
    return found


def require_distinct(found: Sequence[int], given: Sequence[int] | None = None) -> None:
    """Check that there are layers, and each of them once.

    Args:
        found: 0-based.
        given: As they were named, for the message.

    Raises:
        DataError: No layer is given, or one twice.
    """
    if not found:
        raise DataError("no layer is given; name at least one decoder block, such as 12")
    if len(set(found)) < len(found):
        named = list(found if given is None else given)
        raise DataError(f"layers {named} name the same block twice; name each once")


def no_such_layer(layer: int, count: int) -> str:
    """Return the message about a layer that a model of ``count`` blocks has not."""
    return f"layer {layer} does not exist: this model has {count} blocks, 0 to {count - 1}"
