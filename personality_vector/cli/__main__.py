"""``python -m personality_vector.cli``: the same as ``pvec``."""

from personality_vector.cli.main import main

main()
