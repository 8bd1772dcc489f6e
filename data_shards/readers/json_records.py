"""JSON records of a file, one a line or one a file, with what is not a record rejected by position."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_shards.articles import Reject, RejectHandler
from data_shards.readers.streams import read_lines, read_whole


class MalformedRecord(Exception):
    """A JSON object that is not the kind of record that it should be."""


def read_records(path: Path, on_reject: RejectHandler) -> Iterator[tuple[str, dict[str, Any]]]:
    """(position, object) of every line (`line 12`, from 1) or, in a `.json` file, of the one document (`file`).

    Blank lines are skipped. Lines that are not UTF-8, not JSON or not an object go to `on_reject`.
    """
    is_document = ".json" in path.suffixes and ".jsonl" not in path.suffixes
    pieces = [("file", read_whole(path))] if is_document else None
    for position, data in pieces or ((f"line {n}", line) for n, line in enumerate(read_lines(path), 1)):
        if not data.strip():
            continue
        try:
            record = json.loads(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            detail = f"byte {error.start} of the record is {data[error.start]:#04x}: not UTF-8; convert the file"
            on_reject(Reject(path.name, position, "wrong_encoding", detail))
        except (json.JSONDecodeError, RecursionError) as error:
            on_reject(Reject(path.name, position, "malformed_json", str(error)))
        else:
            if isinstance(record, dict):
                yield position, record
            else:
                on_reject(Reject(path.name, position, "malformed_record", f"a {type(record).__name__}, not an object"))
