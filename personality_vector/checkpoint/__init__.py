"""Checkpoints on disk: a lazy reader, an atomic sharded writer, fingerprints."""

from personality_vector.checkpoint.digests import Fingerprint, content_of, is_sampled
from personality_vector.checkpoint.directory import LOCK, AtomicDirectory, locked
from personality_vector.checkpoint.header import DTYPES, TensorPlan, read_header
from personality_vector.checkpoint.reader import Checkpoint, read_json
from personality_vector.checkpoint.writer import ShardWriter, parse_size

__all__ = [
    "DTYPES",
    "LOCK",
    "AtomicDirectory",
    "Checkpoint",
    "Fingerprint",
    "ShardWriter",
    "TensorPlan",
    "content_of",
    "is_sampled",
    "locked",
    "parse_size",
    "read_header",
    "read_json",
]
