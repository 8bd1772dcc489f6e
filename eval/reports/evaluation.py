"""The directory that a finished evaluation leaves, read again: results and items."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import Metric, TaskResult
from job.errors import InputError
from job.files import read_json

Results = dict[str, dict[str, TaskResult]]
"""by model and task; without items"""


@dataclass(frozen=True)
class Evaluation:
    """An OUT directory, read."""

    directory: Path
    suite: str
    body: dict[str, Any]
    """results.json"""
    results: Results

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks, in order."""
        return list(dict.fromkeys(task for found in self.results.values() for task in found))

    def of_task(self, task: str) -> dict[str, TaskResult]:
        """The results of one task by model."""
        return {model: found[task] for model, found in self.results.items() if task in found}

    def a_result(self, task: str) -> TaskResult:
        """The first model's result of a task, for what all models share: metrics, baselines, settings."""
        return next(iter(self.of_task(task).values()))

    def first_metric(self, task: str) -> str:
        """The metric that stands for a task where there is room for one."""
        return next(iter(self.a_result(task).metrics))

    def count(self, task: str, metric: str | None = None) -> str:
        """How many items a task's metric is over, or all of its items: of a model, or `10-12` where models differ."""
        counts = set()
        for model, result in self.of_task(task).items():
            found = result.metrics.get(metric) if metric is not None else None
            if found is not None and found.items is not None:
                counts.add(found.items)
            else:
                counts.add(sum(1 for _ in self.items(model, task)))
        return "-".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))

    def items(self, model: str, task: str) -> Iterator[dict[str, Any]]:
        """What a model gave on each item of a task; raises `InputError` where the file is missing or damaged."""
        file = self.directory / "items" / model / f"{task}.jsonl"
        try:
            with open(file, encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)
        except OSError as error:
            raise InputError(f"cannot read {file} ({error.strerror}); run the evaluation again") from None
        except ValueError:
            raise InputError(f"{file} is damaged; run the evaluation again, which rewrites it") from None


def read(out: Path) -> Evaluation:
    """Read OUT/results.json; raises `InputError` where it is none of ours."""
    file = out / "results.json"
    if not file.is_file():
        raise InputError(f"{file} does not exist; give the --out directory of a finished `python -m eval`")
    body = read_json(file)
    try:
        results = {
            model: {task: TaskResult.from_json(value, []) for task, value in found.items()}
            for model, found in body["results"].items()
        }
        return Evaluation(out, body["suite"], body, results)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{file} is not the results.json of `python -m eval`; run the evaluation again") from None


def number(value: float) -> str:
    """Four digits or a little more, whatever the size."""
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def with_interval(metric: Metric) -> str:
    """`0.514 [0.499, 0.529]`, or the number alone."""
    if metric.low is None or metric.high is None:
        return number(metric.value)
    return f"{number(metric.value)} [{number(metric.low)}, {number(metric.high)}]"
