"""A language model's delta in the language part of a VLM, through the whole merge."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
