"""Rows of data files, each with the place where it stands, for messages."""

import csv
import io
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from personality_vector.errors import DataError
from personality_vector.files.reading import parse_json, read_bytes
from personality_vector.recipes.schema import Recipe, sentence

_MOST_BYTES = 1 << 28
Row = TypeVar("Row", bound=Recipe)


def raw_rows(file: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a JSONL file, or of a CSV file with a header: place to row.

    UTF-8, with or without a byte order mark; blank lines of JSONL are skipped.

    Raises:
        DataError: The file cannot be read, or a line is not a JSON object.
    """
    try:
        content = read_bytes(file, _MOST_BYTES).removeprefix(b"\xef\xbb\xbf")
        if file.suffix == ".csv":
            reader = csv.DictReader(io.StringIO(content.decode(), newline=""))
            return {f"{file} line {reader.line_num}": row for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    numbered = {
        f"{file} line {n}": line for n, line in enumerate(content.split(b"\n"), 1) if line.strip()
    }
    return {place: _parsed(place, line) for place, line in numbered.items()}


def read_rows(file: Path, kind: type[Row]) -> dict[str, Row]:
    """Return the rows of a file by their schema: place to row.

    Raises:
        DataError: The file cannot be read, or a row does not fit the schema.
    """
    rows = {}
    for place, row in raw_rows(file).items():
        try:
            rows[place] = kind.model_validate(row)
        except ValidationError as error:
            raise DataError(f"{place}: {sentence(kind, error)}") from error
    return rows


def _parsed(place: str, line: bytes) -> dict[str, Any]:
    try:
        row = parse_json(line.decode())
    except ValueError as error:  # also of text that is not UTF-8
        raise DataError(f"{place}: is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: should be one JSON object")
    return row
