"""The results of one run: one SQLite file that survives interruption and says what made it."""

from personality_vector.study.results.store import Results
from personality_vector.study.results.tables import Answer, Measure, Table

__all__ = ["Answer", "Measure", "Results", "Table"]
