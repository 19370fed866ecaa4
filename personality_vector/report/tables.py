"""Tables of results as texts, for the terminal and for the report."""

import math
import sys

import pandas as pd

_MOST_COLUMNS = 12
"""Of a table in a terminal."""
_FURTHER = ", further columns"


def table_of(frame: pd.DataFrame) -> tuple[list[list[str]], list[tuple[str, bool]]]:
    """Return the cells of a table as texts, and its headings, each with whether numbers follow."""
    is_number = [
        frame[name].dtype.kind in "fi" or any(str(value).endswith("]") for value in frame[name])
        for name in frame
    ]
    headings = [str(name).replace("_", " ") for name in frame]
    rows = [[text_of(value) for value in row] for row in frame.itertuples(index=False)]
    return rows, list(zip(headings, is_number, strict=True))


def with_brackets(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose intervals, ``X low`` and ``X high``, stand in brackets behind ``X``."""
    bounded = [name for name in frame if {f"{name} low", f"{name} high"} <= set(frame)]
    ends = [f"{name} {end}" for name in bounded for end in ("low", "high")]
    texts = {
        name: [
            text_of(value) if pd.isna(low) else f"{text_of(value)} [{low:.3g}, {high:.3g}]"
            for value, low, high in frame[[name, f"{name} low", f"{name} high"]].to_numpy()
        ]
        for name in bounded
    }
    return frame.assign(**texts).drop(columns=ends)


def text_of(value: object) -> str:
    """Return a cell: three digits of a number, a dash where there is none.

    >>> text_of(0.12345), text_of(float("nan"))
    ('0.123', '-')
    """
    if not isinstance(value, float):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.3g}"


def print_frame(title: str, frame: pd.DataFrame, *, if_empty: str = "no rows") -> None:
    """Print a table on stdout, its intervals in brackets, or ``if_empty`` where it has no rows.

    A wide table is printed in parts, each of which begins with its first two columns.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if frame.empty:
        sys.stdout.write(f"{title}: {if_empty}\n")
        return
    frame = with_brackets(frame)
    if len(frame.columns) > _MOST_COLUMNS:
        rest = range(_MOST_COLUMNS, len(frame.columns))
        print_frame(title, frame.iloc[:, :_MOST_COLUMNS])
        more = title.removesuffix(_FURTHER) + _FURTHER
        print_frame(more, frame.iloc[:, [0, 1, *rest]], if_empty=if_empty)
        return
    rows, headings = table_of(frame)
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading, is_number in headings:
        table.add_column(Text(heading), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # Wide enough to keep numbers whole where the output is not a terminal.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
