"""Which plots a report has: all tasks together, each benchmark beside what was published, and tasks by subject."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.reports.evaluation import Evaluation
from eval.reports.plots import BASELINE, PUBLISHED, Group, draw
from eval.reports.published import PublishedRow
from eval.results import SHARES, Metric
from eval.trust.statistics import mean_metric

_FEWEST_OF_A_SUBJECT = 5


def draw_overviews(evaluation: Evaluation) -> list[Path]:
    """All tasks together, one plot per first metric; bits per byte beside the loss."""
    wanted = list(dict.fromkeys(map(evaluation.first_metric, evaluation.tasks)))
    wanted += ["bits_per_byte"] if evaluation.suite == "perplexity" else []
    files = []
    for metric in wanted:
        groups = [
            Group(task, _points(evaluation, task, metric))
            for task in evaluation.tasks
            if metric in (evaluation.first_metric(task), "bits_per_byte")
        ]
        files.append(_file(evaluation, metric))
        draw(files[-1], f"{evaluation.suite}: {metric}, 95 % intervals over test items", metric, groups)
    return files


def draw_beside_published(
    evaluation: Evaluation, tasks: Sequence[str], metrics: Sequence[str], rows: Sequence[PublishedRow]
) -> Path:
    """Our tasks of one benchmark and the published rows, by the first of the metrics that was published."""
    metric = next(name for name in metrics if any(name in row.values for row in rows))
    groups = [Group(task, _points(evaluation, task, metric)) for task in tasks]
    groups += [
        Group(f"{row.model} ({row.setting})", {PUBLISHED: Metric(row.values[metric])})
        for row in rows
        if metric in row.values
    ]
    file = _file(evaluation, f"{tasks[0]}-published")
    draw(file, f"{metric}: ours and published", metric, groups)
    return file


def draw_subjects(evaluation: Evaluation, task: str) -> Path | None:
    """The mean score by subject, where the items of a task have two or more."""
    groups: dict[str, dict[str, Metric]] = {}
    sizes: dict[str, int] = {}
    shares = evaluation.first_metric(task) in SHARES
    for model in evaluation.of_task(task):
        scores: dict[str, list[float]] = {}
        for item in evaluation.items(model, task):
            if item.get("subject") and item.get("score") is not None:
                scores.setdefault(str(item["subject"]), []).append(float(item["score"]))
        for subject, values in scores.items():
            sizes[subject] = len(values)
            groups.setdefault(subject, {})[model] = mean_metric(np.array(values), share=shares)
    shown = sorted((name for name in groups if sizes[name] >= _FEWEST_OF_A_SUBJECT), key=lambda n: (-sizes[n], n))
    if len(shown) < 2:
        return None
    file = _file(evaluation, f"{task}-subjects")
    lines = [Group(f"{name} ({sizes[name]})", groups[name]) for name in shown]
    metric = evaluation.first_metric(task)
    draw(file, f"{task}: {metric} by subject (items)", metric, lines)
    return file


def _points(evaluation: Evaluation, task: str, metric: str) -> dict[str, Metric]:
    """By series the values of models and baselines, as far as they have this metric."""
    found = evaluation.of_task(task)
    points = {model: result.metrics[metric] for model, result in found.items() if metric in result.metrics}
    for name, baseline in evaluation.a_result(task).baselines.items():
        if metric in baseline:
            points[f"{BASELINE}{name}"] = baseline[metric]
    return points


def _file(evaluation: Evaluation, name: str) -> Path:
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return evaluation.directory / "plots" / f"{plain}.png"
