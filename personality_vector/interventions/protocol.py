"""The protocol of interventions: applied at a strength for the length of a ``with`` block."""

import math
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from personality_vector.errors import NonFiniteError
from personality_vector.subject.chat import ChatEdit


@runtime_checkable
class Intervention(Protocol):
    """Anything that can be applied to a model at a strength, and taken back."""

    @property
    def label(self) -> str:
        """Name in tables and plots."""

    def applied(self, model: Any, strength: float, /) -> AbstractContextManager[ChatEdit]:
        """Change ``model`` inside a ``with`` block.

        Yields a function that every chat goes through before the model reads it; strength 0 is
        the model as it was, and a chat that is not edited.
        """


def require_finite(label: str, strength: float) -> None:
    """Raise NonFiniteError if a strength is NaN or infinite."""
    if not math.isfinite(strength):
        raise NonFiniteError(f"{label}: the strength must be a finite number, got {strength}")
