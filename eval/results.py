"""What a task hands back, and how `results.json` keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

UNPARSED_LIMIT = 0.05
"""share of answers that could not be read above which a score measures their form, not what is known"""

SHARES = ("accuracy", "exact", "exact_match")
"""first metrics of tasks that are shares of right items: an item's score is 0 or 1, or a mean of such over runs"""


@dataclass(frozen=True)
class Metric:
    """One number with the interval that the choice of test items leaves open."""

    value: float
    low: float | None = None
    """bounds of the 95 % interval, where one was computed"""
    high: float | None = None
    higher_is_better: bool = True
    items: int | None = None
    """how many test items it is over, where that is known"""


@dataclass
class TaskResult:
    """One model on one task.

    Holds nothing that differs between two runs on the same input: no times, no host names.
    """

    task: str
    version: str
    """of the task's definition: prompt, scoring, metrics"""
    metrics: dict[str, Metric]
    """the first is the one that tables show where there is room for one"""
    items: list[dict[str, Any]]
    """per test item, in the order of the data: `id`, what the model gave, and `score`, which the first metric averages
    where it is an average (accuracy: 0 or 1)"""
    made_by: dict[str, Any]
    """what made the numbers apart from the model: checksums of data files and of the prompt, shots, seeds, scoring"""
    baselines: dict[str, dict[str, Metric]] = field(default_factory=dict)
    """the same metrics of something that has learnt nothing: the majority answer, the nearest training row's answer"""
    notes: list[str] = field(default_factory=list)
    """sentences that a reader of the number has to know: a stand-in tokenizer, items left out"""
    failed: str | None = None
    """why the numbers must not be used, where that is so: too many unparsed answers"""

    def to_json(self) -> dict[str, Any]:
        """Everything but the items, which have a file of their own."""
        return {key: value for key, value in asdict(self).items() if key != "items"}

    @classmethod
    def from_json(cls, value: dict[str, Any], items: list[dict[str, Any]]) -> TaskResult:
        """The opposite of `to_json`."""
        metrics = {name: Metric(**metric) for name, metric in value["metrics"].items()}
        baselines = {
            name: {key: Metric(**metric) for key, metric in baseline.items()}
            for name, baseline in value["baselines"].items()
        }
        return cls(**{**value, "metrics": metrics, "baselines": baselines, "items": items})
