"""What a search for evaluated items in training data has found: a table for console and report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.reports.evaluation import with_interval
from eval.reports.markdown import table_lines
from eval.results import Metric

MOSTLY = 0.8
"""share of an item's runs from which on it is called a copy"""

_HEADS = ("task", "items", "too short", "overlap", "of them copies", "model", "score", "without", "of overlapping")


def _rows(body: dict[str, Any]) -> Iterator[list[str]]:
    for task, found in body["tasks"].items():
        share = f"{found['overlapping']:,} ({found['overlapping'] / found['items']:.1%})"
        facts = [task, f"{found['items']:,}", f"{found['too_short']:,}", share, f"{found['mostly_overlapping']:,}"]
        for model, scores in found["scores"].items():
            cells = [with_interval(Metric(**value)) if value else "-" for value in scores.values()]
            yield [*facts, model, *cells]
            facts = [""] * len(facts)


def _explanation(body: dict[str, Any]) -> list[str]:
    n, searched = body["ngram"], sum(body["texts"])
    lines = [
        f"{searched:,} training texts were searched for runs of {n} words of each item. An item overlaps where one "
        f"such run occurs in them, and is called a copy where {MOSTLY:.0%} of its runs do; one of fewer than {n} "
        "words cannot be looked for. Scores are means over items."
    ]
    if body["not_looked_for"]:
        lines.append(f"Not looked for, since their items keep no text: {', '.join(body['not_looked_for'])}.")
    return lines


def print_table(body: dict[str, Any]) -> None:
    """On the console."""
    table = Table(title="overlap of test items with training data", title_justify="left")
    for head in _HEADS:
        table.add_column(head, justify="left" if head in ("task", "model") else "right")
    for row in _rows(body):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 250).print(table)
    for line in _explanation(body):
        print(line)


def markdown(body: dict[str, Any]) -> list[str]:
    """The report's section: lines of Markdown, from contamination.json."""
    lines = [f"Training data: {', '.join(entry['path'] for entry in body['shards'])}.", ""]
    for line in _explanation(body):
        lines += [line, ""]
    return [*lines, *table_lines(_HEADS, list(_rows(body)))]
