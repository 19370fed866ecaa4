"""Deltas: fine-tuned minus base, tensor by tensor, and their algebra."""

from personality_vector.delta.delta import Delta, digest
from personality_vector.delta.layers import block_of, layer_of, module_of
from personality_vector.delta.lora import is_adapter
from personality_vector.delta.opening import open_delta, open_fine_tune
from personality_vector.delta.provenance import matched, require_not_swapped
from personality_vector.delta.record import DeltaRecord, Total, read_record
from personality_vector.delta.sources import (
    Difference,
    Restricted,
    TensorSource,
    require_finite,
    whole,
)
from personality_vector.delta.storage import is_saved_delta, verify

__all__ = [
    "Delta",
    "DeltaRecord",
    "Difference",
    "Restricted",
    "TensorSource",
    "Total",
    "block_of",
    "digest",
    "is_adapter",
    "is_saved_delta",
    "layer_of",
    "matched",
    "module_of",
    "open_delta",
    "open_fine_tune",
    "read_record",
    "require_finite",
    "require_not_swapped",
    "verify",
    "whole",
]
