"""Rows of data files and of data sets on the Hub, each with the place where it stands."""

import codecs
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import ValidationError

from personality_vector.errors import CheckpointError, DataError, foreign, some
from personality_vector.files.header import require_no_pointer
from personality_vector.files.reading import parse_json, read_bytes
from personality_vector.recipes.schema import DATA_ENDINGS, Recipe, sentence

_MOST_BYTES, _MOST_ROWS, _MOST_IN_CELL = 1 << 28, 4_000_000, 1 << 20
_END = "<the end of this file>"
Row = TypeVar("Row", bound=Recipe)
Rows = Iterator[tuple[str, dict[str, Any]]]


class HubData(NamedTuple):
    """A data set on the Hub, by its id; the other parts are those that ``datasets`` knows."""

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        return self.name


def raw_rows(source: Path | HubData) -> dict[str, dict[str, Any]]:
    """Return the rows of a data file, or of a data set on the Hub: place to row.

    JSONL, a JSON array of objects, CSV or TSV with a header, or Parquet. Texts are UTF-8, with or
    without a byte order mark, or UTF-16 with one; blank lines of JSONL are skipped. A cell of NaN
    is empty. Nothing in the data is run.

    Raises:
        DataError: The source cannot be read, is too large, or holds a row that is not an object.
    """
    return {place: without_nan(row) for place, row in _each(source)}


def without_nan(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with ``None`` for NaN, which pandas puts into empty cells."""
    return {key: None if value != value else value for key, value in row.items()}


def first_row(source: Path | HubData) -> tuple[str, dict[str, Any]] | None:
    """Return the first row and its place, a blank one if all are; ``None`` if there is no row.

    Raises:
        DataError: The source cannot be read.
    """
    first = None
    for found in _each(source):
        if not is_blank(found[1]):
            return found
        first = first or found
    return first


def read_rows(source: Path | HubData, kind: type[Row]) -> dict[str, Row]:
    """Return the rows of a source by their schema: place to row.

    Raises:
        DataError: The source cannot be read, or a row does not fit the schema.
    """
    return {place: fitted(place, row, kind) for place, row in raw_rows(source).items()}


def fitted(place: str, row: dict[str, Any], kind: type[Row]) -> Row:
    """Return a row by its schema.

    Raises:
        DataError: It does not fit the schema.
    """
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        needed = {name for name, field in kind.model_fields.items() if field.is_required()}
        fits = needed <= row.keys() <= kind.model_fields.keys()
        found = "" if fits else f"; {keys_of(row)}"
        raise DataError(f"{place}: {sentence(kind, error)}{found}") from error


def is_blank(row: dict[str, Any]) -> bool:
    """Return whether no cell of a row holds anything, as below the last row of a spreadsheet."""
    filled = (value.strip() if isinstance(value, str) else value for value in row.values())
    return bool(row) and not any(filled)


def keys_of(row: dict[str, Any]) -> str:
    """Return which keys a row has, for a message about a row of another shape."""
    return f"this row has the keys {some(map(str, row), 12)}" if row else "this row has no keys"


def _each(source: Path | HubData) -> Rows:
    if isinstance(source, HubData):
        return _of_hub(source)
    if source.is_dir():
        inside = some(file.name for file in source.iterdir() if file.suffix in DATA_ENDINGS)
        there = f", such as {inside}" if inside else ""
        raise DataError(f"{source}: is a directory; give one data file{there}")
    content = _content(source)
    ending, begin = source.suffix.lower(), content.lstrip()[:1]
    if ending == ".parquet":
        rows = _of_parquet(source, content)
    elif ending in (".csv", ".tsv"):
        rows = iter(_of_table(source, content, "\t" if ending == ".tsv" else ","))
    elif begin == b"[":
        rows = _of_array(source, content)
    elif ending in DATA_ENDINGS or begin in (b"{", b""):
        rows = _of_lines(source, content)
    else:
        raise DataError(
            f"{source}: is not a data file of a known kind; its name should end with "
            f"{', '.join(DATA_ENDINGS)}"
        )
    return rows


def _content(file: Path) -> bytes:
    """Return the content of a file, if it is a text in UTF-8 without a byte order mark."""
    try:
        content = read_bytes(file, _MOST_BYTES)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    try:
        require_no_pointer(file, content)
    except CheckpointError as error:
        raise DataError(str(error)) from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        with foreign(DataError, f"{file}: cannot be read as UTF-16; save it as UTF-8"):
            content = content.decode("utf-16").encode()
    return content.removeprefix(codecs.BOM_UTF8)


def _of_lines(file: Path, content: bytes) -> Rows:
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            place = f"{file} line {number}"
            try:
                row = parse_json(line.decode())
            except UnicodeDecodeError as error:
                raise DataError(f"{place}: is not UTF-8: {error}; save it as UTF-8") from error
            except ValueError as error:
                _require_not_whole(file, content)
                raise DataError(f"{place}: is not JSON: {error}") from error
            yield place, _object(place, row)


def _require_not_whole(file: Path, content: bytes) -> None:
    """Refuse a file of one JSON object on many lines, which is not a row."""
    with suppress(ValueError):
        keys = some(map(str, parse_json(content.decode())), 12)
        raise DataError(
            f"{file}: is one JSON object with the keys {keys}; give the rows as a JSON array of "
            "objects, or one object on each line"
        )


def _of_array(file: Path, content: bytes) -> Rows:
    try:
        rows = parse_json(content.decode())
    except ValueError as error:
        raise DataError(f"{file}: is not a JSON array: {error}") from error
    for number, row in enumerate(rows, 1):
        place = f"{file} row {number}"
        yield place, _object(place, row)


def _object(place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{place}: should be one JSON object, not {json.dumps(row):.40}")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: holds half of a surrogate pair, not a character") from error
    return row


def _of_table(file: Path, content: bytes, delimiter: str) -> list[tuple[str, dict[str, Any]]]:
    usual = csv.field_size_limit(_MOST_IN_CELL)
    rows: list[tuple[str, dict[Any, Any]]] = []
    try:
        # A quote that is never closed would swallow the last line.
        text = f"{content.decode()}\n{_END}" if content.strip() else _END
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = [name.strip() for name in reader.fieldnames or [""]]
        reader.fieldnames = names
        rows.extend((f"{file} line {reader.line_num}", row) for row in reader)
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: cannot be read: {error}; save it as UTF-8") from error
    except csv.Error as error:
        if "field limit" not in str(error):
            raise DataError(f"{file}: cannot be read: {error}") from error
        before = rows[-1][0] if rows else f"{file} line 1"
        raise DataError(
            f"{before}: is followed by a cell of more than {_MOST_IN_CELL:,} characters; check "
            "that every quote is closed, or save the data as JSONL"
        ) from error
    finally:
        csv.field_size_limit(usual)
    if names == [_END]:
        return []
    _require_header(file, names, delimiter)
    if not rows or rows.pop()[1][names[0]] != _END:
        raise DataError(f"{file}: cannot be read: a quoted cell is not closed before the end")
    for place, row in rows:
        if any(row.pop(None, ())):
            raise DataError(
                f"{place}: has more cells than the {len(names)} of the header; a cell with "
                f"{delimiter!r} in its text must be quoted"
            )
    return rows


def _require_header(file: Path, names: list[str], delimiter: str) -> None:
    if names == [""]:
        raise DataError(f"{file}: begins with a blank line; the names of the columns come first")
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        raise DataError(f"{file}: has two columns with the name {some(twice)}; remove one")
    others = [mark for mark in ";\t,|" if mark in names[0] and mark != delimiter]
    if others and not names[1:]:
        raise DataError(
            f"{file}: its columns are separated by {others[0]!r}; save it with {delimiter!r} "
            "between them, or as JSONL or Parquet"
        )


def _of_parquet(file: Path, content: bytes) -> Rows:
    with foreign(DataError, f"{file}: cannot be read as Parquet"):
        from pyarrow import BufferReader, parquet

        table, size, number = parquet.ParquetFile(BufferReader(content)), 0, 0
        _require_bounded(file, table.metadata.num_rows, size)
        for batch in table.iter_batches(batch_size=256, use_threads=False):
            size += batch.nbytes
            _require_bounded(file, number, size)
            for row in batch.to_pylist():
                number += 1
                yield f"{file} row {number}", row


def _of_hub(data: HubData) -> Rows:
    with foreign(DataError, f"{data}: is not a file here, and cannot be loaded from the Hub"):
        import datasets

        name, config, split, revision = data
        found = datasets.load_dataset(name, config, split=split or "train", revision=revision)
        _require_bounded(data, found.num_rows, found.data.nbytes)
        for number, row in enumerate(found, 1):
            yield f"{data} row {number}", row


def _require_bounded(source: Path | HubData, rows: int, size: int) -> None:
    if rows > _MOST_ROWS or size > 4 * _MOST_BYTES:
        raise DataError(
            f"{source}: has more than {_MOST_ROWS:,} rows or {4 * _MOST_BYTES:,} bytes of data; "
            "give a part of it"
        )
