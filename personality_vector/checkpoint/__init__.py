"""Checkpoints on disk: a lazy reader, an atomic sharded writer, fingerprints."""

from personality_vector.checkpoint.digests import Fingerprint, content_of, is_sampled
from personality_vector.checkpoint.directory import AtomicDirectory
from personality_vector.checkpoint.header import DTYPES, NAMES, TensorEntry, TensorPlan, read_header
from personality_vector.checkpoint.names import Kind, beginning, canonical, canonical_names, kind
from personality_vector.checkpoint.reader import Checkpoint, read_json, read_manifest
from personality_vector.checkpoint.writer import ShardWriter, parse_size

__all__ = [
    "DTYPES",
    "NAMES",
    "AtomicDirectory",
    "Checkpoint",
    "Fingerprint",
    "Kind",
    "ShardWriter",
    "TensorEntry",
    "TensorPlan",
    "beginning",
    "canonical",
    "canonical_names",
    "content_of",
    "is_sampled",
    "kind",
    "parse_size",
    "read_header",
    "read_json",
    "read_manifest",
]
