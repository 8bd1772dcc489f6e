"""Published numbers beside ours: `published.toml`, by the tasks that they belong to."""

from __future__ import annotations

import functools
import math
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

_FILE = Path(__file__).parent / "published.toml"


@dataclass(frozen=True)
class PublishedRow:
    """What somebody published of one model on one benchmark."""

    model: str
    setting: str
    """as the source states it: zero-shot, fine-tuned"""
    source: str
    """where the numbers were read, as a reader can find it"""
    values: dict[str, float]
    """by metric, in the unit of ours"""


@dataclass(frozen=True)
class _Benchmark:
    tasks: tuple[str, ...]
    rows: tuple[PublishedRow, ...]


def rows(task: str) -> tuple[PublishedRow, ...]:
    """The published rows that belong beside one of our tasks, in the order of the file.

    Rows of the same model, setting and source are one row with the metrics of both.
    """
    merged: dict[tuple[str, str, str], PublishedRow] = {}
    for benchmark in _benchmarks():
        if any(fnmatchcase(task, pattern) for pattern in benchmark.tasks):
            for row in benchmark.rows:
                key = row.model, row.setting, row.source
                values = merged[key].values | row.values if key in merged else row.values
                merged[key] = PublishedRow(*key, values)
    return tuple(merged.values())


@functools.cache
def _benchmarks() -> tuple[_Benchmark, ...]:
    body = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    found = []
    for table in body["benchmark"]:
        published = []
        for model, setting, source, *numbers in table["rows"]:
            values = {
                metric: table["scale"] * number
                for metric, number in zip(table["metrics"], numbers, strict=True)
                if not math.isnan(number)
            }
            published.append(PublishedRow(model, setting, body["sources"][source], values))
        found.append(_Benchmark(tuple(table["tasks"]), tuple(published)))
    return tuple(found)
