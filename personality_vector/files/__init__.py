"""Files, without torch: ranges, digests, safetensors headers, directories that appear whole."""

from personality_vector.files.digests import begin, content_of
from personality_vector.files.directory import AtomicDirectory, write_file
from personality_vector.files.header import PLAIN_NAME
from personality_vector.files.owned import MANIFEST

__all__ = ["MANIFEST", "PLAIN_NAME", "AtomicDirectory", "begin", "content_of", "write_file"]
