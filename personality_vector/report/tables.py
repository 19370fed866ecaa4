"""Tables of results as texts, for the terminal and for the report."""

import math
import sys
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its heading, and whether it holds words rather than numbers."""

    name: str
    is_text: bool


def table_of(frame: pd.DataFrame) -> tuple[list[list[str]], list[Column]]:
    """Return the cells of a table as texts, and its columns."""
    columns = [
        Column(str(name).replace("_", " "), frame[name].dtype.kind not in "fi") for name in frame
    ]
    return [[text_of(value) for value in row] for row in frame.itertuples(index=False)], columns


def text_of(value: object) -> str:
    """Return a cell: three digits of a number, a dash where there is none.

    >>> text_of(0.12345), text_of(float("nan"))
    ('0.123', '-')
    """
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.3g}"


def print_frame(title: str, frame: pd.DataFrame, *, if_empty: str = "no rows") -> None:
    """Print a table on stdout, or ``if_empty`` where it has no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if frame.empty:
        sys.stdout.write(f"{title}: {if_empty}\n")
        return
    rows, columns = table_of(frame)
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(Text(column.name), justify="left" if column.is_text else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Wide enough to keep numbers whole where the output is not a terminal.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(table)
