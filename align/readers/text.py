"""What the readers of published files share: rejected rows, files by their names, tables by their columns."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from align.questions import Question
from data_shards.articles import Reject, RejectHandler
from data_shards.readers.streams import read_lines, read_whole
from job.errors import InputError


class Row(NamedTuple):
    """A question as it was read, and where."""

    question: Question
    position: str
    """Within its file: `line 12`, `entry 3`."""


Reader = Callable[[Path, RejectHandler], Iterator[Row]]
"""Reads one file. Malformed rows go to the handler; a malformed file raises `InputError`."""


def short_hash(*parts: str) -> str:
    """16 hex digits that stand for these texts: the id of a row whose file gives it none."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def suffix_of(path: Path) -> str:
    """The suffix that tells the format, without `.gz` or `.zst`: `a.sdf.gz` -> `.sdf`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_json_file(path: Path, kind: type, shape: str) -> Any:
    """The whole JSON document of a file, which must be a `kind`; raises `InputError` where it is not (`shape` says what
    it should be).
    """
    try:
        content = json.loads(read_whole(path).decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(content, kind):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, but {shape} is needed")
    return content


def read_json_rows(path: Path, on_reject: RejectHandler) -> Iterator[tuple[str, dict[str, Any]]]:
    """(position, object) of every line of a `.jsonl` file, or of every item of the list in a `.json` file."""
    if suffix_of(path) == ".json":
        items = read_json_file(path, list, "a list of objects")
        rows: Iterator[tuple[str, Any]] = ((f"item {number}", item) for number, item in enumerate(items))
    else:
        rows = _lines(path, on_reject)
    for position, row in rows:
        if isinstance(row, dict):
            yield position, row
        else:
            on_reject(Reject(path.name, position, "malformed_record", f"a {type(row).__name__}, not an object"))


def _lines(path: Path, on_reject: RejectHandler) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            on_reject(Reject(path.name, f"line {number}", "wrong_encoding", f"byte {error.start} is not UTF-8"))
        except (json.JSONDecodeError, RecursionError) as error:
            on_reject(Reject(path.name, f"line {number}", "malformed_json", str(error)))


def read_table(
    path: Path, on_reject: RejectHandler, delimiter: str, quoted: bool
) -> Iterator[tuple[str, dict[str, str]]]:
    """(position, row by column name) of a table with a header line.

    Args:
        path: plain, `.gz` or `.zst`, UTF-8.
        on_reject: told of rows with more or fewer fields than the header.
        delimiter: between fields.
        quoted: whether a quotation mark opens a field (then a field may hold line breaks) or is a character like any.

    Raises `InputError` where the file has no header or is not UTF-8.
    """
    lines = (_decode(path, number, line) for number, line in enumerate(read_lines(path), 1))
    table = csv.reader(
        lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=quoted
    )
    csv.field_size_limit(1 << 24)
    try:
        header = next(table, None)
        if header is None:
            raise InputError(f"{path} is empty; a table with a header line is needed")
        for fields in table:
            position = f"line {table.line_num}"
            if len(fields) == len(header):
                yield position, dict(zip(header, fields))
            elif fields:
                detail = f"{len(fields)} fields, but the header has {len(header)}"
                on_reject(Reject(path.name, position, "malformed_row", detail))
    except csv.Error as error:
        raise InputError(f"{path} line {table.line_num} is not a row of a table: {error}; mend or remove it") from None


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8") + "\n"
    except UnicodeDecodeError as error:
        raise InputError(f"{path} line {number} is not UTF-8 (byte {error.start}); convert the file") from None


def column(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """The column that goes by one of these names, whatever their case; None where the row has none of them."""
    present = {key.strip().lower(): key for key in row}
    return next((present[name] for name in names if name in present), None)


def need(row: dict[str, Any], names: tuple[str, ...], path: Path) -> str:
    """As `column`; raises `InputError` where the row has none."""
    found = column(row, names)
    if found is None:
        raise InputError(
            f"{path} has no column or key {' or '.join(repr(name) for name in names)}; it has {', '.join(row)}"
        )
    return found
