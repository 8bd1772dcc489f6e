"""Sections that the config of every training run has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from job.track import Mode


@dataclass
class AdamWConfig:
    """AdamW."""

    lr: float = 2e-5
    """peak learning rate"""
    beta1: float = 0.9
    """decay of the first moment"""
    beta2: float = 0.95
    """decay of the second moment"""
    epsilon: float = 1e-8
    """added to the root of the second moment"""
    weight_decay: float = 0.1
    """decoupled decay of matrices; norms and biases are not decayed"""
    clip: float = 1.0
    """largest norm of the global gradient (0: no clipping)"""


@dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    style: Literal["cosine", "linear", "constant", "warmup-stable-decay"] = "cosine"
    """shape after the warm-up"""
    warmup: float = 0.03
    """steps of linear warm-up; below 1, a share of the run"""
    minimum: float = 0.1
    """learning rate at the end, as a share of the peak (cosine, linear, warmup-stable-decay)"""
    decay: float = 0.1
    """last steps in which warmup-stable-decay falls to the minimum; below 1, a share of the run"""


@dataclass
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = 0
    """steps between checkpoints (0: only by minutes and at the end)"""
    every_minutes: float = 0.0
    """minutes between checkpoints (0: only by steps and at the end)"""
    keep: int = 2
    """newest checkpoints that are kept (0: all)"""
    keep_every_steps: int = 0
    """checkpoints of steps divisible by this are kept for ever (0: none)"""


@dataclass
class TrackingConfig:
    """Weights & Biases; `metrics.jsonl` is always written."""

    project: str = "biomedgpt"
    """project that the W&B run belongs to"""
    name: str | None = None
    """W&B run name; unset: the run directory's name"""
    mode: Mode = "auto"
    """auto: online where W&B finds a key, else offline"""


@dataclass
class HealthConfig:
    """When a run that makes no progress ends itself, to be started again."""

    hang_factor: float = 10.0
    """a step that takes this many times the median step is taken for a hang (0: never)"""
    hang_minimum_seconds: float = 60.0
    """but never before this many seconds"""


# key, smallest value, and what it must stay below (None: no limit)
TRAINING_RANGES: tuple[tuple[str, float, float | None], ...] = (
    ("train.epochs", 1e-9, None),
    ("train.steps", 1, None),
    ("train.global_batch", 1, None),
    ("train.log_every", 1, None),
    ("train.validate_every", 0, None),
    ("optimizer.lr", 0, None),
    ("optimizer.beta1", 0, 1),
    ("optimizer.beta2", 0, 1),
    ("optimizer.epsilon", 0, None),
    ("optimizer.weight_decay", 0, None),
    ("optimizer.clip", 0, None),
    ("schedule.warmup", 0, None),
    ("schedule.minimum", 0, 1 + 1e-9),
    ("schedule.decay", 0, None),
    ("checkpoint.every_steps", 0, None),
    ("checkpoint.every_minutes", 0, None),
    ("checkpoint.keep", 0, None),
    ("checkpoint.keep_every_steps", 0, None),
    ("health.hang_factor", 0, None),
    ("health.hang_minimum_seconds", 1e-9, None),
)


def check_ranges(config: Any, ranges: tuple[tuple[str, float, float | None], ...]) -> None:
    """Raise `ValueError` for the first `section.key` of a config that lies outside its range."""
    for key, low, high in ranges:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value is not None and not (low <= value and (high is None or value < high)):
            raise ValueError(
                f"{key} is {value}; it must be at least {low:g}" + (f" and below {high:g}" if high else "")
            )


def check_exactly_one(config: Any, *keys: str) -> None:
    """Raise `ValueError` unless exactly one `section.key` of a config is set."""
    values = [getattr(getattr(config, section), name) for section, name in (key.split(".") for key in keys)]
    if sum(value is not None for value in values) != 1:
        raise ValueError(f"give exactly one of {', '.join(keys[:-1])} and {keys[-1]}")
