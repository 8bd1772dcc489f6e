"""`torchrun ... -m align train CONFIG.toml [--section.key value ...]`: align, or continue to, one run, top-down.

The top level imports nothing heavy: `--help` and `--dry-run` answer at once, without torch.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.config import AlignConfig
from align.inputs import open_inputs
from job import config as configs
from job.directory import RunDirectory
from job.errors import InputError
from job.launch import quick_imports
from job.stop import StopRequest

if TYPE_CHECKING:
    from align.trainer import Trainer
    from job.track import Tracker

log = logging.getLogger("align")

DESCRIPTION = """Align a molecule encoder and a protein encoder to a language model, with DeepSpeed ZeRO.

Start it once per device, with torchrun (or srun, one task per GPU); the same command continues a run that stopped.

  torchrun --nproc-per-node 8 -m align train configs/biomedgpt-10b.toml
  python -m align train configs/biomedgpt-10b.toml --dry-run   what would happen: sizes, steps, epochs, checkpoints
  ... --tune.mode encoders --parallel.stage 2                  any key of the file, overridden
"""


def main(arguments: Sequence[str]) -> int:
    """Parse the config, then plan or train."""
    words = [word for word in arguments if word != "--dry-run"]
    try:
        config = configs.parse(AlignConfig, words, "python -m align train", DESCRIPTION)
    except InputError as error:
        error.everywhere = True  # every rank reads the same file
        raise
    if len(words) < len(arguments):
        from align.dry_run import describe

        print(describe(config))
        return 0
    return train(config)


def train(config: AlignConfig) -> int:
    """Run, or continue, the run that `config` describes; the exit status is 0 when it is complete or was asked to stop.

    Raises `InputError` for whatever a user can mend.
    """
    with quick_imports():
        from align import engine
        from align.trainer import Trainer
        from parallel import ranks
        from parallel.loop import loop, plot
        from parallel.run import enter, start_tracking
        from parallel.watchdog import Watchdog

    run = RunDirectory(Path(config.directory))
    with ranks.explain_lost_contact(config.parallel.timeout_seconds), contextlib.ExitStack() as resources:
        engine.join(config.parallel.timeout_seconds, config.train.seed, config.train.deterministic)
        inputs = ranks.together(lambda: open_inputs(config))  # refused, it leaves no directory
        attempt = enter(run, resources, log)
        stop = StopRequest(run.stop_file)
        trainer = Trainer(config, inputs, run, attempt)
        tracker = start_tracking(run, attempt, config, trainer.steps, resources, log)
        if tracker:
            log.info(_banner(trainer, tracker))
        watchdog = Watchdog(run, attempt, trainer.rank, config.health)
        resources.callback(watchdog.close)
        loop(trainer, tracker, stop, watchdog, log, lambda: _log_answers(trainer, tracker))
        if ranks.is_logging_rank():
            plot(run, log)
    engine.shutdown()
    return 0


def _log_answers(trainer: Trainer, tracker: Tracker | None) -> None:
    """Generate answers; on the logging rank, to console, samples.jsonl and W&B."""
    rows = trainer.answers()
    if not (tracker and rows):
        return
    try:
        with open(trainer.run.path / "samples.jsonl", "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise InputError(f"cannot write {trainer.run.path / 'samples.jsonl'}: {error.strerror}") from None
    tracker.log_table("val/samples", rows, trainer.progress.tokens)
    for row in rows:
        log.info("answer to %s: %s", row["id"], row["answer"] or "(nothing)")


def _banner(trainer: Trainer, tracker: Tracker) -> str:
    import torch

    config, world = trainer.config, trainer.world
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({os.cpu_count()} cores)"
    epochs = trainer.order.epochs(trainer.steps * config.train.global_batch)
    sets = dict(zip(trainer.order.names, trainer.order.sets))
    offload = "" if config.parallel.offload == "none" else f", {config.parallel.offload} on the host"
    lines = [
        f"run {trainer.run.path}, attempt {trainer.attempt}, {world} x {device}",
        f"ZeRO stage {config.parallel.stage}{offload}; global batch {config.train.global_batch} questions in "
        f"micro-batches of at most {config.data.token_budget:,} tokens",
        f"trained ({config.tune.mode}): "
        + ", ".join(f"{part} {trained:,} of {trained + rest:,}" for part, (trained, rest) in trainer.sizes.items()),
        "data: " + ", ".join(f"{name} ({len(sets[name]):,} questions, {epochs[name]:.2f} epochs)" for name in sets),
        f"steps: {trainer.progress.step:,} of {trainer.steps:,} done",
    ]
    if tracker.url:
        lines.append(f"W&B: {tracker.url}")
    return "\n".join(lines)
