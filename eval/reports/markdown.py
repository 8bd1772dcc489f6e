"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(cell, heads)) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(map(cell, row)) + " |" for row in rows]


def cell(text: str) -> str:
    """Text that neither ends a table's cell nor is taken for markup of HTML, a link or an image."""
    text = " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
    return text.replace("![", "!\\[").replace("](", "]\\(").replace("]:", "]\\:")
