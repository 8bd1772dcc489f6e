"""What a fine-tuning run reports: every seed, mean and spread, the untuned model, and published fine-tuned rows."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.finetuning.instruction_shards import Packed
from eval.reports import published
from job.directory import RunDirectory
from job.track import read_rows


def losses(run: Path) -> dict[str, Any]:
    """Steps of a training run, and the mean loss of their first and last tenth."""
    rows = read_rows(RunDirectory(run).metrics)
    found = [row["train/loss"] for row in rows if "train/loss" in row]
    tenth = max(1, len(found) // 10)
    return {
        "steps": len(found),
        "first_loss": statistics.fmean(found[:tenth]),
        "last_loss": statistics.fmean(found[-tenth:]),
    }


def packing_notes(packed: Packed, unpacked: bool) -> list[str]:
    """What a reader of the scores has to know of how rows became windows."""
    notes = [
        "each row was learnt alone in its window"
        if unpacked
        else f"about {packed.rows / packed.documents:.1f} rows shared a window in training and saw those before them"
    ]
    if packed.cut:
        notes.append(f"{packed.cut:,} training prompts lost their beginning to fit {packed.sequence_length:,} tokens")
    return notes


def summary(task: str, untuned: dict[str, Any], seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """One task: the untuned model, every seed, mean and spread (sample standard deviation over seeds)."""
    by_metric = {
        metric: [result["metrics"][metric]["value"] for result in seeds.values()] for metric in untuned["metrics"]
    }
    return {
        "untuned": untuned["metrics"],
        "seeds": {str(seed): result["metrics"] for seed, result in seeds.items()},
        "mean": {metric: statistics.fmean(values) for metric, values in by_metric.items()},
        "spread": {
            metric: statistics.stdev(values) if len(values) > 1 else None for metric, values in by_metric.items()
        },
        "baselines": untuned["baselines"],
        "failed": {
            name: result["failed"]
            for name, result in {"untuned": untuned, **{f"seed {seed}": one for seed, one in seeds.items()}}.items()
            if result["failed"]
        },
        "notes": untuned["notes"],
        "published": [asdict(row) for row in published.rows(task) if row.setting.startswith("fine-tuned")],
    }


def show(results: dict[str, Any]) -> None:
    """A table per task: untuned, seeds, mean and spread, and published fine-tuned rows."""
    for task, found in results["tasks"].items():
        metrics = list(found["mean"])
        table = Table("model", *metrics, title=f"{task}, fine-tuned", title_justify="left")

        def row(name: str, values: dict[str, Any], table: Table = table, metrics: list[str] = metrics) -> None:
            table.add_row(name, *(f"{values[metric]:.4f}" if metric in values else "" for metric in metrics))

        def measured(values: dict[str, Any]) -> dict[str, float]:
            return {metric: value["value"] for metric, value in values.items()}

        row("untuned", measured(found["untuned"]))
        for seed, values in found["seeds"].items():
            row(f"seed {seed}", measured(values))
        row("mean", found["mean"])
        if len(found["seeds"]) > 1:
            row("spread (standard deviation)", found["spread"])
        for other in found["published"]:
            row(f"published: {other['model']} ({other['setting']})", other["values"])
        Console().print(table)
        for name, sentence in found["failed"].items():
            print(f"not to be used: {name}: {sentence}")
    for note in results["notes"]:
        print(f"note: {note}")
