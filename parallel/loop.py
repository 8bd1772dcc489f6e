"""The training loop that all runs share: step until done or asked to stop; log, validate and save when it is time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from job.directory import RunDirectory
from job.errors import InputError
from job.report import console_line, plot_loss
from job.state import Status, change_state
from job.stop import StopRequest
from job.track import Tracker
from parallel import ranks
from parallel.meter import Meter
from parallel.watchdog import Watchdog


@dataclass
class Progress:
    """How far a run is; what a checkpoint's manifest keeps of it."""

    step: int = 0
    samples: int = 0
    tokens: int = 0


class NonFiniteStep(InputError):
    """A loss or gradient that is not finite, noticed before it reached the weights."""


class Order(Protocol):
    """The order of the training data."""

    def epochs(self, n: int) -> dict[str, float]:
        """How often the first n samples have gone through each source."""


class Trainer(Protocol):
    """A run's state and its verbs. `config` has sections `train` and `checkpoint`."""

    config: Any
    run: RunDirectory
    progress: Progress
    meter: Meter
    steps: int

    @property
    def validation(self) -> Iterable[str]:
        """Names of the sources that `validate` measures."""

    @property
    def order(self) -> Order:
        """Of the samples."""

    def step(self) -> dict[str, float]:
        """One optimizer step; returns its metrics. Raises `NonFiniteStep`."""

    def validate(self) -> dict[str, float]:
        """Loss and perplexity of every source of `validation`."""

    def save(self) -> dict[str, float]:
        """Write a checkpoint; returns its metrics."""


def loop(
    trainer: Trainer,
    tracker: Tracker | None,
    stop: StopRequest,
    watchdog: Watchdog,
    log: logging.Logger,
    after_validation: Callable[[], None] = lambda: None,
) -> None:
    """Train to the last step, or until asked to stop; collective. `tracker` is there on the logging rank only.

    Raises `InputError` where a loss is not finite.
    """
    config, progress = trainer.config, trainer.progress

    def note(status: Status, reason: str | None = None) -> None:
        if tracker:
            change_state(
                trainer.run,
                status=status,
                step=progress.step,
                steps=trainer.steps,
                tokens=progress.tokens,
                checkpoint=saved_step,
                reason=reason,
            )

    def validate() -> None:
        with watchdog.paused():
            _log_validation(trainer, tracker, log)
            after_validation()

    saved_step = progress.step or None
    note("running")
    if config.train.validate_at_start and progress.step == 0:
        validate()
    saved_at, logged_samples = time.monotonic(), progress.samples
    while progress.step < trainer.steps:
        began = time.monotonic()
        try:
            values = trainer.step()
        except NonFiniteStep:
            if tracker:
                batch = {
                    "first_sample": progress.samples,
                    "last_sample": progress.samples + config.train.global_batch - 1,
                }
                tracker.log(progress.step + 1, {"health/nonfinite": 1, "train/tokens": progress.tokens}, **batch)
            raise
        watchdog.step(time.monotonic() - began)
        last = progress.step == trainer.steps
        if tracker and (progress.step % config.train.log_every == 0 or last):
            values |= trainer.meter.take()
            samples = {"first_sample": logged_samples, "last_sample": progress.samples - 1}
            logged_samples = progress.samples
            epochs = {f"train/epoch/{name}": value for name, value in trainer.order.epochs(progress.samples).items()}
            tracker.log(progress.step, values | epochs, **samples)
            left = trainer.meter.seconds_left(progress.step)
            log.info(console_line(progress.step, trainer.steps, values, left))
        if last or (config.train.validate_every and progress.step % config.train.validate_every == 0):
            validate()
        stopping, minutes_due = ranks.agree(
            stop.requested(),
            bool(config.checkpoint.every_minutes)
            and time.monotonic() - saved_at >= 60 * config.checkpoint.every_minutes,
        )
        steps_due = config.checkpoint.every_steps and progress.step % config.checkpoint.every_steps == 0
        if last or stopping or minutes_due or steps_due:
            with watchdog.paused():
                written = trainer.save()
            saved_step, saved_at = progress.step, time.monotonic()
            note("running")
            if tracker:
                tracker.log(progress.step, written | {"train/tokens": progress.tokens})
        if stopping and not last:
            stop.requested()  # another rank may have seen the stop file a moment earlier: look again, to name it
            if tracker:
                log.info("stopping as asked (%s): checkpoint at step %d", stop.reason or "by another rank", saved_step)
            note("stopped", stop.reason or "asked on another rank")
            return
    note("complete")
    if tracker:
        where = trainer.run.checkpoint(progress.step)
        log.info(f"done: {progress.step:,} steps, {progress.tokens:,} tokens, checkpoint {where}")


def _log_validation(trainer: Trainer, tracker: Tracker | None, log: logging.Logger) -> None:
    values = trainer.validate()
    for name, value in values.items():
        if not math.isfinite(value):  # and so is the model: no checkpoint of it may push out a good one
            raise InputError(f"step {trainer.progress.step}: {name} is {value}; nothing was saved", everywhere=True)
    if tracker and values:
        tracker.log(trainer.progress.step, values | {"train/tokens": trainer.progress.tokens})
        pairs = [
            f"{source} loss {values[f'val/loss/{source}']:.4f} perplexity {values[f'val/perplexity/{source}']:.2f}"
            for source in trainer.validation
            if f"val/loss/{source}" in values
        ]
        log.info(f"validation at step {trainer.progress.step:,} | " + " | ".join(pairs))


def plot(run: RunDirectory, log: logging.Logger) -> None:
    """Draw the run's losses, and say where."""
    try:
        log.info("loss plot: %s", plot_loss(run))
    except OSError as error:  # the run itself is complete
        log.warning("no loss plot: %s", error)
