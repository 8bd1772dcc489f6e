"""The training loop, top-down: join the mesh, build or continue the run, step until done or asked to stop."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from job import config as configs
from job.directory import RunDirectory
from job.errors import InputError
from job.report import console_line, plot_loss
from job.stop import StopRequest
from job.track import Tracker
from parallel import mesh, ranks
from parallel.run import enter
from pretrain.config import PretrainConfig
from pretrain.trainer import NonFiniteStep, Trainer

log = logging.getLogger("pretrain")


def train(config: PretrainConfig) -> int:
    """Run, or continue, the run that `config` describes; the exit status is 0 when it is complete or was asked to stop.

    Raises `InputError` for whatever a user can mend.
    """
    run = RunDirectory(Path(config.directory))
    with ranks.explain_lost_contact(config.parallel.timeout_seconds), contextlib.ExitStack() as resources:
        mesh.initialize(config.parallel, config.train.seed)
        attempt = enter(run, resources, log)
        logging.getLogger("megatron").setLevel(logging.WARNING)
        stop = StopRequest(run.stop_file)
        trainer = Trainer(config, run, attempt)
        tracker = None
        if ranks.is_logging_rank():
            configs.save(config, run.config)
            tracking = config.tracking
            tracker = Tracker(
                run,
                attempt,
                configs.as_dict(config),
                project=tracking.project,
                name=tracking.name,
                mode=tracking.mode,
            )
            resources.callback(tracker.close)
            log.info(_banner(trainer, tracker))
        _loop(trainer, tracker, stop)
        if ranks.is_logging_rank():
            _plot(run)
    mesh.shutdown()
    return 0


def _loop(trainer: Trainer, tracker: Tracker | None, stop: StopRequest) -> None:
    config, progress = trainer.config, trainer.progress
    if config.train.validate_at_start and progress.step == 0:
        _log_validation(trainer, tracker)
    saved_step, saved_at, logged_samples = progress.step, time.monotonic(), progress.samples
    while progress.step < trainer.steps:
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
            _log_validation(trainer, tracker)
        stopping, minutes_due = ranks.agree(
            stop.requested(),
            bool(config.checkpoint.every_minutes)
            and time.monotonic() - saved_at >= 60 * config.checkpoint.every_minutes,
        )
        steps_due = config.checkpoint.every_steps and progress.step % config.checkpoint.every_steps == 0
        if last or stopping or minutes_due or steps_due:
            written = trainer.save()
            saved_step, saved_at = progress.step, time.monotonic()
            if tracker:
                tracker.log(progress.step, written | {"train/tokens": progress.tokens})
        if stopping and not last:
            if tracker:
                log.info("stopping as asked (%s): checkpoint at step %d", stop.reason or "by another rank", saved_step)
            return
    if tracker:
        where = trainer.run.checkpoint(progress.step)
        log.info(f"done: {progress.step:,} steps, {progress.tokens:,} tokens, checkpoint {where}")


def _log_validation(trainer: Trainer, tracker: Tracker | None) -> None:
    values = trainer.validate()
    for name, value in values.items():
        if not math.isfinite(value):  # and so is the model: no checkpoint of it may push out a good one
            raise InputError(f"step {trainer.progress.step}: {name} is {value}; nothing was saved", everywhere=True)
    if tracker and values:
        tracker.log(trainer.progress.step, values | {"train/tokens": trainer.progress.tokens})
        pairs = [
            f"{source} loss {values[f'val/loss/{source}']:.4f} perplexity {values[f'val/perplexity/{source}']:.2f}"
            for source in trainer.validation
        ]
        log.info(f"validation at step {trainer.progress.step:,} | " + " | ".join(pairs))


def _plot(run: RunDirectory) -> None:
    try:
        log.info("loss plot: %s", plot_loss(run))
    except OSError as error:  # the run itself is complete
        log.warning("no loss plot: %s", error)


def _banner(trainer: Trainer, tracker: Tracker) -> str:
    config, world = trainer.config, dist.get_world_size()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({os.cpu_count()} cores)"
    epochs = trainer.order.epochs(trainer.steps * config.train.global_batch)
    lines = [
        f"run {trainer.run.path}, attempt {trainer.attempt}, {world} x {device}",
        f"layout: {config.parallel.describe(world)}; global batch {config.train.global_batch} x "
        f"{config.data.sequence_length} tokens in {trainer.micro_batches} micro-batches of {config.train.micro_batch}",
        f"model: {trainer.shape.family}, {trainer.shape.parameters:,} parameters, {config.train.precision}",
        "data: "
        + ", ".join(
            f"{name} ({tokens:,} tokens, {epochs[name]:.2f} epochs)" for name, tokens in trainer.order.tokens().items()
        ),
        f"steps: {trainer.progress.step:,} of {trainer.steps:,} done",
    ]
    if tracker.url:
        lines.append(f"W&B: {tracker.url}")
    return "\n".join(lines)
