"""Scores as dots with their intervals: ours, baselines, and published ones, told apart at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eval.results import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINE, PUBLISHED = "baseline: ", "published"
"""What names of series begin with that are not models of ours."""
_MOST_GROUPS = 80
_BASELINE_SHAPES = "s^vPX"


@dataclass(frozen=True)
class Group:
    """One labelled line of a plot: a task, a subject, or a published row."""

    label: str
    points: dict[str, Metric]
    """by series: a model's name, or one that begins with `BASELINE` or `PUBLISHED`"""


def draw(file: Path, title: str, axis: str, groups: Sequence[Group]) -> None:
    """Write a PNG with one line per group, from top to bottom, and a legend of the series.

    Args:
        file: to write; its directory is made.
        title: above the plot.
        axis: what the numbers are.
        groups: at most 80 are drawn, and the title says so where there are more.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if len(groups) > _MOST_GROUPS:
        title = f"{title} (first {_MOST_GROUPS} of {len(groups)})"
        groups = groups[:_MOST_GROUPS]
    series = list(dict.fromkeys(name for group in groups for name in group.points))
    models = [name for name in series if not name.startswith((BASELINE, PUBLISHED))]
    baselines = [name for name in series if name.startswith(BASELINE)]
    heights = [max(1.0, 0.35 * len(group.points) + 0.4) for group in groups]
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.28 * sum(heights)))
    top, places = 0.0, []
    for group, height in zip(groups, heights):
        for number, (name, metric) in enumerate(group.points.items()):
            place = top + height * (number + 1) / (len(group.points) + 1)
            _draw_point(axes, name, metric, place, models, baselines)
        places.append(top + height / 2)
        top += height
        axes.axhline(top, color="0.9", linewidth=0.6, zorder=0)
    axes.set_yticks(places, [_shortened(group.label) for group in groups])
    axes.set_ylim(top, 0)
    axes.set_xlabel(axis)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(axis="x", alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    axes.legend(unique.values(), unique.keys(), loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _draw_point(axes: Axes, name: str, metric: Metric, place: float, models: list[str], baselines: list[str]) -> None:
    if name.startswith(PUBLISHED):
        axes.plot(metric.value, place, "D", color="0.45", markersize=5, label=PUBLISHED)
        return
    if name.startswith(BASELINE):
        shape = _BASELINE_SHAPES[baselines.index(name) % len(_BASELINE_SHAPES)]
        axes.plot(metric.value, place, shape, markerfacecolor="none", markeredgecolor="black", label=name)
        return
    colour = f"C{models.index(name) % 10}"
    if metric.low is not None and metric.high is not None:
        axes.plot([metric.low, metric.high], [place, place], color=colour, linewidth=2, alpha=0.6)
    axes.plot(metric.value, place, "o", color=colour, markersize=5, label=name)


def _shortened(label: str, most: int = 60) -> str:
    # A dollar sign would begin a formula.
    return (label if len(label) <= most else label[: most - 1] + "…").replace("$", r"\$")
