"""The training loop, top-down: join the mesh, build or continue the run, step until done or asked to stop."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import torch
import torch.distributed as dist

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from job.directory import RunDirectory
from job.stop import StopRequest
from job.track import Tracker
from parallel import mesh, ranks
from parallel.loop import loop, plot
from parallel.run import enter, start_tracking
from parallel.watchdog import Watchdog
from pretrain.config import PretrainConfig
from pretrain.inputs import open_inputs
from pretrain.trainer import Trainer

log = logging.getLogger("pretrain")


def train(config: PretrainConfig) -> int:
    """Run, or continue, the run that `config` describes; the exit status is 0 when it is complete or was asked to stop.

    Raises `InputError` for whatever a user can mend.
    """
    run = RunDirectory(Path(config.directory))
    with ranks.explain_lost_contact(config.parallel.timeout_seconds), contextlib.ExitStack() as resources:
        mesh.initialize(config.parallel, config.train.seed)
        inputs = ranks.together(lambda: open_inputs(config, dist.get_world_size()))  # refused, it leaves no directory
        attempt = enter(run, resources, log)
        logging.getLogger("megatron").setLevel(logging.WARNING)
        stop = StopRequest(run.stop_file)
        trainer = Trainer(config, inputs, run, attempt)
        tracker = start_tracking(run, attempt, config, trainer.steps, resources, log)
        if tracker:
            log.info(_banner(trainer, tracker))
        watchdog = Watchdog(run, attempt, dist.get_rank(), config.health)
        resources.callback(watchdog.close)
        loop(trainer, tracker, stop, watchdog, log)
        if ranks.is_logging_rank():
            plot(run, log)
    mesh.shutdown()
    return 0


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
    if trainer.order.masked:
        lines.append(f"loss masks: of {', '.join(trainer.order.masked)}, only targets whose mask is 1 count")
    if tracker.url:
        lines.append(f"W&B: {tracker.url}")
    return "\n".join(lines)
