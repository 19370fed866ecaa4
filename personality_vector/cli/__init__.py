"""The command line: one file per kind of verb. Nothing here imports torch before a verb runs.

Until a verb runs, and after it has run, Ctrl-C ends the process at once: no work can be lost, and
an import or the end of the interpreter would answer with a traceback.
"""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

_OURS = ("pvec", "personality-vector", "-m", "__main__")


def end_on_interrupt(*_: object) -> NoReturn:
    """End the process with the exit code of an interruption."""
    os.write(2, b"interrupted; nothing half-written is left\n")
    os._exit(130)


# In another program this package leaves its signals alone.
if Path(sys.argv[0] if sys.argv else "").stem in _OURS:
    signal.signal(signal.SIGINT, end_on_interrupt)
