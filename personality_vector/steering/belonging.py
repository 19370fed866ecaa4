"""What belongs together: a vector and its model, and two models of one residual stream."""

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from personality_vector.checkpoint import Checkpoint, is_sampled
from personality_vector.errors import BaseMismatchError, TensorMismatchError
from personality_vector.steering.layers import resolved
from personality_vector.subject.models import decoder_blocks, hidden_size, text_config

log = logging.getLogger(__name__)


def require_made_from(
    what: object,
    model: str,
    checkpoint: Checkpoint,
    remedy: str = "use it with the model that it was extracted from",
) -> None:
    """Check that something was extracted from this model.

    What an earlier version extracted names its model by a sample of the weights; that sample is
    compared, with a warning.

    Args:
        what: Its file or label, for the message.
        model: Hex digest of the fingerprint of the model it came from; "" where that is unknown,
            and nothing is refused.
        checkpoint: The model that it is to be used with.
        remedy: What would be right.

    Raises:
        BaseMismatchError: It was extracted from another one.
    """
    if not model:
        return
    found = checkpoint.digest_like(model)
    if model != found:
        earlier = " by an earlier version" if is_sampled(model) else ""
        raise BaseMismatchError(
            f"{what}: was extracted{earlier} from model {model[:12]}, but {checkpoint.path} is "
            f"model {found[:12]}; {remedy}"
        )
    if is_sampled(model):
        log.warning(
            "%s: was extracted by an earlier version; of the model %s only a sample of the "
            "weights was recorded, and that is the same",
            what,
            checkpoint.path,
        )


def require_width(what: object, width: int, checkpoint: Checkpoint) -> None:
    """Check that a vector is as wide as the residual stream of a model, before it is loaded.

    Raises:
        BaseMismatchError: config.json says another width.
    """
    config = checkpoint.config.get("text_config", checkpoint.config)
    stream = config.get("hidden_size", config.get("n_embd", width))
    if stream != width:
        raise BaseMismatchError(
            f"{what}: is {width} wide, but the residual stream of {checkpoint.path} is {stream} "
            "wide; use it with the model that it was extracted from"
        )


def block_numbers(layers: Sequence[int], checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return 0-based layers in the order given, before the model is loaded; ``-1`` is the last.

    Where config.json does not say how many blocks there are, none is returned.

    Raises:
        ModelError: The model has no such block.
        DataError: No layer is given, or one twice.
    """
    config = checkpoint.config.get("text_config", checkpoint.config)
    counts = [
        config[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config
    ]
    return resolved(layers, int(counts[0])) if counts else ()


def require_one_stream(base: nn.Module, tuned: nn.Module) -> None:
    """Check that two models have the same depth, width and vocabulary.

    Raises:
        TensorMismatchError: They have not, so that no activation of one can be taken from the
            other's.
    """
    shapes = [_shape(model) for model in (base, tuned)]
    if shapes[0] != shapes[1]:
        one, other = (
            f"{_name(model)} has {layers} blocks of width {width} and a vocabulary of {words}"
            for model, (layers, width, words) in zip((base, tuned), shapes, strict=True)
        )
        raise TensorMismatchError(
            f"{one}, {other}; only a model and what was fine-tuned from it can be subtracted"
        )


def _shape(model: nn.Module) -> tuple[int, int, int]:
    return len(decoder_blocks(model)), hidden_size(model), int(text_config(model).vocab_size)


def _name(model: Any) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__
