"""Checkpoints on disk: a lazy reader, an atomic sharded writer, fingerprints."""

from personality_vector.checkpoint.directory import AtomicDirectory
from personality_vector.checkpoint.fingerprint import Fingerprint
from personality_vector.checkpoint.reader import Checkpoint
from personality_vector.checkpoint.writer import ShardWriter, TensorPlan, parse_size

__all__ = [
    "AtomicDirectory",
    "Checkpoint",
    "Fingerprint",
    "ShardWriter",
    "TensorPlan",
    "parse_size",
]
