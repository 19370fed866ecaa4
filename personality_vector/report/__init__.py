"""The report of a run: its page, figures and tables.

The room is called by its own name: ``pv.report(...)`` is :func:`report.page.write_report`.
"""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *given: Any, **how: Any) -> Any:
        """Return the path of the page, after writing the figures, tables and report of a run."""
        from personality_vector.report.page import write_report

        return write_report(*given, **how)


sys.modules[__name__].__class__ = _Room
