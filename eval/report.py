"""Tables that a person reads."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from job.files import read_json


def write(out: Path) -> None:
    """Write the report beside `results.json`."""


def print_tables(out: Path) -> None:
    """Print one row per task and one column per model, each with the task's first metrics."""
    results = read_json(out / "results.json")["results"]
    table = Table()
    table.add_column("task")
    for model in results:
        table.add_column(model, justify="right")
    for task in next(iter(results.values())):
        cells = [
            ", ".join(f"{name} {metric['value']:,.4f}" for name, metric in found[task]["metrics"].items())
            for found in results.values()
        ]
        table.add_row(task, *cells)
    Console(width=None if sys.stdout.isatty() else 60 + 40 * len(results)).print(table)
