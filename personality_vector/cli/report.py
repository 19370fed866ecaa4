"""``pvec report``: the page of a finished or running sweep."""

from pathlib import Path
from typing import Annotated

import typer

from personality_vector.cli import options


def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Directory of a sweep, compare or eval.")
    ],
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the figures and report of a run."""
    from personality_vector.report.page import write_report

    page = write_report(run)
    options.show({"report": str(page)}, as_json=as_json, text=lambda: f"report: {page}")
