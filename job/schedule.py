"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from job.training import ScheduleConfig


def learning_rate(step: int, steps: int, peak: float, schedule: ScheduleConfig) -> float:
    """Learning rate of step `step` (the first is 1) of a run of `steps`.

    Warm-up is linear, reaching the peak at its last step. Then: "constant" stays; "linear" and "cosine" fall to
    `schedule.minimum x peak` at the last step (cosine as in SGDR, Loshchilov & Hutter 2017); "warmup-stable-decay"
    stays and falls linearly over the last `schedule.decay` steps (Hu et al. 2024, MiniCPM). With equal arguments,
    equal to megatron-core's OptimizerParamScheduler.
    """
    warmup, decay = _length(schedule.warmup, steps), _length(schedule.decay, steps)
    if step <= warmup:
        return peak * step / warmup
    floor = peak * schedule.minimum
    if schedule.style == "constant":
        return peak
    if schedule.style == "warmup-stable-decay":
        begin = max(warmup, steps - decay)
        progress = (step - begin) / max(1, steps - begin)
        return peak if step <= begin else max(floor, peak - (peak - floor) * progress)
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    share = 1.0 - progress if schedule.style == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return floor + (peak - floor) * share


def warm_up_warning(steps: int, schedule: ScheduleConfig) -> str | None:
    """What to tell the user of a run of `steps` that ends before its warm-up does; None for any other run."""
    warmup = _length(schedule.warmup, steps)
    if warmup <= steps:
        return None
    return (
        f"schedule.warmup is {warmup:,} steps, but the run has only {steps:,}: the learning rate ends at "
        f"{steps / warmup:.0%} of optimizer.lr"
    )


def _length(value: float, steps: int) -> int:
    """A number of steps, given as such or, below 1, as a share of the run."""
    return round(value * steps) if value < 1 else int(value)
