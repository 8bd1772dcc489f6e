"""Where articles went: per source, what was read, rejected, dropped by reason, and kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

LABELS = {
    "no_pubmed_or_pmc_id": "no PubMed or PMC id",
    "no_text": "no abstract or body",
    "licence": "licence not chosen",
    "too_short": "too short",
    "superseded": "older version",
    "deleted": "deleted by PubMed",
    "retracted": "retracted",
    "retraction_notice": "retraction notice",
    "duplicate_id": "duplicate by id",
    "duplicate_text": "duplicate by text",
    "malformed_xml": "malformed XML",
    "malformed_json": "malformed JSON",
    "malformed_record": "malformed record",
    "missing_field": "missing field",
    "not_an_article": "not an article",
    "unsafe_member": "unsafe archive member",
    "wrong_encoding": "wrong encoding",
    "damaged_file": "damaged file",
}


def check(funnel: dict[str, Any]) -> None:
    """Prove that nothing is lost: read = rejected + dropped + kept. Raises `AssertionError` (a defect of ours)."""
    gone = sum(funnel["rejected"].values()) + sum(funnel["dropped"].values())
    if funnel["read"] != gone + funnel["kept"]:
        raise AssertionError(f"source '{funnel['name']}': {funnel['read']} read, {gone} gone, {funnel['kept']} kept")


def show(funnels: list[dict[str, Any]]) -> None:
    """Print the table; in a log, wide enough that no number is cut."""
    Console(width=None if sys.stdout.isatty() else 60 + 20 * len(funnels)).print(table(funnels))


def table(funnels: list[dict[str, Any]], width_limit: int | None = None) -> Table:
    """The funnel as a table: one column per source and a total, one row per reason that occurs."""
    columns = [*funnels, total(funnels)] if len(funnels) > 1 else funnels
    result = Table(box=box.SIMPLE, title="articles", title_justify="left", width=width_limit)
    result.add_column("")
    for funnel in columns:
        result.add_column(funnel["name"], justify="right")
    result.add_row("read", *[f"{funnel['read']:,}" for funnel in columns])
    for stage in ("rejected", "dropped"):
        for reason in _reasons(funnels, stage):
            cells = [funnel[stage].get(reason, 0) for funnel in columns]
            result.add_row(f"  {LABELS.get(reason, reason)}", *[f"-{count:,}" if count else "" for count in cells])
    result.add_row("kept", *[f"{funnel['kept']:,}" for funnel in columns], style="bold")
    for split in ("train", "validation"):
        result.add_row(f"  {split}", *[f"{funnel['documents'][split]:,}" for funnel in columns])
    for split in ("train", "validation"):
        result.add_row(f"{split} tokens", *[f"{funnel['tokens'][split]:,}" for funnel in columns])
    return result


def total(funnels: list[dict[str, Any]]) -> dict[str, Any]:
    """All sources added up."""

    def added(key: str, inner: str) -> int:
        return sum(funnel[key].get(inner, 0) for funnel in funnels)

    return {
        "name": "total",
        "read": sum(funnel["read"] for funnel in funnels),
        "rejected": {reason: added("rejected", reason) for reason in _reasons(funnels, "rejected")},
        "dropped": {reason: added("dropped", reason) for reason in _reasons(funnels, "dropped")},
        "kept": sum(funnel["kept"] for funnel in funnels),
        "documents": {split: added("documents", split) for split in ("train", "validation")},
        "tokens": {split: added("tokens", split) for split in ("train", "validation")},
    }


def plot(funnels: list[dict[str, Any]], path: Path) -> None:
    """Write the funnel as a picture: a bar per step, from all that was read to what was kept, coloured by source."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [("read", [funnel["read"] for funnel in funnels])]
    for stage in ("rejected", "dropped"):
        for reason in _reasons(funnels, stage):
            steps.append((LABELS.get(reason, reason), [-funnel[stage].get(reason, 0) for funnel in funnels]))
    steps.append(("kept", [funnel["kept"] for funnel in funnels]))
    figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(steps) + 1.2), layout="constrained")
    left = [0.0] * len(steps)
    for number, funnel in enumerate(funnels):
        widths = [abs(counts[number]) for _, counts in steps]
        axes.barh(range(len(steps)), widths, left=left, label=funnel["name"])
        left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(steps)), [label for label, _ in steps])
    axes.invert_yaxis()
    for row, (_, counts) in enumerate(steps):
        axes.annotate(f" {sum(counts):,}", (left[row], row), va="center", fontsize=8)
    axes.margins(x=0.15)
    axes.set_xlabel("articles")
    figure.legend(loc="outside right upper")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _reasons(funnels: list[dict[str, Any]], stage: str) -> list[str]:
    """Reasons that occur, in the order of `LABELS`."""
    found = {reason for funnel in funnels for reason, count in funnel[stage].items() if count}
    return [reason for reason in LABELS if reason in found] + sorted(found - LABELS.keys())
