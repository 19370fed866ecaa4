"""Judges: callables that rate a response for a trait, or say why they cannot."""

from collections.abc import Callable

from personality_vector.judges.scores import Score
from personality_vector.measures.administer import Response
from personality_vector.traits import Trait

Judge = Callable[[Response, Trait], Score]
"""Rates one response for one trait; what it cannot read is unscored, with the reason."""
