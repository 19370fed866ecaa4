"""Studies: designs, the worker that measures them, and the store that keeps the results.

The package can be called: ``pv.study(...)`` is :func:`study.study.study`.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *given: Any, **how: Any) -> Any:
        """Return a study of interventions, strengths, measures and seeds on one base."""
        from personality_vector.study.study import study

        return study(*given, **how)


sys.modules[__name__].__class__ = _Room
