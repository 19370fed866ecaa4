"""Checkpoints on disk: a lazy reader, a sharded writer, fingerprints."""

from personality_vector.checkpoint.fingerprint import Fingerprint, is_sampled
from personality_vector.checkpoint.folder import read_json, read_manifest
from personality_vector.checkpoint.names import (
    Kind,
    beginning,
    canonical,
    canonical_names,
    counterparts,
    embeddings_of,
    is_buffer,
    kind,
    untied,
)
from personality_vector.checkpoint.reader import Checkpoint, is_hub_id, locate, revision_of
from personality_vector.checkpoint.tensors import (
    DTYPES,
    FLOATS,
    NAMES,
    TensorEntry,
    TensorPlan,
    read_header,
)
from personality_vector.checkpoint.writer import ShardWriter, parse_size

__all__ = [
    "DTYPES",
    "FLOATS",
    "NAMES",
    "Checkpoint",
    "Fingerprint",
    "Kind",
    "ShardWriter",
    "TensorEntry",
    "TensorPlan",
    "beginning",
    "canonical",
    "canonical_names",
    "counterparts",
    "embeddings_of",
    "is_buffer",
    "is_hub_id",
    "is_sampled",
    "kind",
    "locate",
    "parse_size",
    "read_header",
    "read_json",
    "read_manifest",
    "revision_of",
    "untied",
]
