"""Checkpoints on disk: a lazy reader, an atomic sharded writer, fingerprints."""

from personality_vector.checkpoint.digests import Fingerprint, content_of
from personality_vector.checkpoint.directory import LOCK, AtomicDirectory, locked
from personality_vector.checkpoint.header import TensorPlan, read_header
from personality_vector.checkpoint.reader import Checkpoint, read_json
from personality_vector.checkpoint.writer import ShardWriter, parse_size

__all__ = [
    "LOCK",
    "AtomicDirectory",
    "Checkpoint",
    "Fingerprint",
    "ShardWriter",
    "TensorPlan",
    "content_of",
    "locked",
    "parse_size",
    "read_header",
    "read_json",
]
