"""Files, without torch: ranges, digests, safetensors headers, directories that appear whole."""

from personality_vector.files.digests import begin, content_of
from personality_vector.files.directory import AtomicDirectory
from personality_vector.files.header import PLAIN_NAME

__all__ = ["PLAIN_NAME", "AtomicDirectory", "begin", "content_of"]
