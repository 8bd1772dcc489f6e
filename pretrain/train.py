"""The training loop, top-down: join the mesh, open the data, build or continue the model, step until done."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from data_shards.order import first_difference
from job import config as configs
from job.directory import RunDirectory, RunLock
from job.errors import InputError
from job.stop import StopRequest
from job.track import Tracker
from parallel import checkpoint, mesh, model, optimizer
from parallel.checkpoint_files import MODEL_FOLDER
from parallel.flops import peak_teraflops
from parallel.shape import read_shape
from pretrain.config import PretrainConfig
from pretrain.data import training_batches
from pretrain.inputs import open_inputs
from pretrain.report import console_line, plot_loss
from pretrain.schedule import learning_rate
from pretrain.step import run_schedule
from pretrain.validate import validate

from megatron.core.distributed import finalize_model_grads

log = logging.getLogger("pretrain")


@dataclass
class Progress:
    """How far a run is; what a checkpoint's manifest keeps of it."""

    step: int = 0
    samples: int = 0
    tokens: int = 0


class Trainer:
    """Everything that a step needs, built once."""

    def __init__(self, config: PretrainConfig, run: RunDirectory, attempt: int) -> None:
        self.config, self.run, self.attempt = config, run, attempt
        self.layout, self.device, self.progress = config.parallel, mesh.device(), Progress()
        inputs = mesh.together(lambda: open_inputs(config, dist.get_world_size()))
        self.hugging_face, self.references = inputs.hugging_face, inputs.references
        self.shape, self.order, self.validation = inputs.shape, inputs.order, inputs.validation
        self.micro_batches, self.steps = inputs.micro_batches, inputs.steps
        self.parts = self._build()
        self._restore()

    def _build(self) -> checkpoint.Model:
        train, settings = self.config.train, self.config.optimizer
        torch.use_deterministic_algorithms(train.deterministic)
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[train.precision]
        config = model.transformer_config(
            self.shape, self.layout, dtype, recompute=train.recompute, deterministic=train.deterministic
        )
        chunks = model.build(self.shape, config, self.config.data.sequence_length)
        if train.compile and self.device.type == "cuda":
            for layer in (layer for chunk in chunks for layer in chunk.decoder.layers):
                layer.compile(dynamic=False)
        wrapped = optimizer.wrap(config, chunks, settings.overlap)
        adamw = optimizer.build(
            config,
            wrapped,
            betas=(settings.beta1, settings.beta2),
            epsilon=settings.epsilon,
            weight_decay=settings.weight_decay,
            overlap=settings.overlap,
        )
        config.finalize_model_grads_func = finalize_model_grads
        return checkpoint.Model(wrapped, adamw)

    def _restore(self) -> None:
        """Continue from the newest checkpoint that is whole, or start from the model that the config names."""
        damaged: list[tuple[Path, str]] = []
        found, expected = _from_first_rank(self.run.checkpoint_directories(), self.run.latest.exists())
        for path in found:
            try:
                body = checkpoint.verify(path)
            except InputError as error:
                log.warning("%s; trying the checkpoint before it", error)
                damaged.append((path, str(error)))
                continue
            mesh.everywhere(lambda path=path, body=body: self._check_continuation(path, body))  # type: ignore[misc]
            checkpoint.load(path, self.parts, self.layout)
            self.progress = Progress(body["step"], body["consumed_samples"], body["consumed_tokens"])
            log.info("continuing from %s: step %d, %d tokens", path, self.progress.step, self.progress.tokens)
            mesh.together(lambda path=path: self._tidy(path, [other for other, _ in damaged]))  # type: ignore[misc]
            return
        if damaged or expected:
            why = damaged[0][1] if damaged else f"{self.run.latest} names one, but there is none"
            raise InputError(
                f"no checkpoint in {self.run.checkpoints} is whole ({why}); restore one from a copy, or start again in "
                "a new run directory",
                everywhere=True,
            )
        start = Path(self.config.model.path)
        checkpoint.verify(start)
        checkpoint.load(start, checkpoint.Model(self.parts.chunks, None), self.layout)
        self.parts.optimizer.reload_model_params()  # type: ignore[union-attr]
        log.info("starting from %s: %s parameters", start, f"{self.shape.parameters:,}")

    def _check_continuation(self, path: Path, body: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint of another model or other data."""
        if not {"step", "consumed_samples", "consumed_tokens", "data"} <= body.keys():
            raise InputError(f"{path} is not a checkpoint of a pretraining run; move it out of {path.parent}")
        if read_shape(path / MODEL_FOLDER) != self.shape:
            raise InputError(
                f"{path} holds another model than model.path {self.config.model.path}; name the model that this run "
                "was started with, or a new run directory"
            )
        if difference := first_difference(body["data"], self.order.fingerprint()):
            raise InputError(
                f"{path} was trained on other data: {difference}; restore that data, or start a new run directory"
            )

    def _tidy(self, continued: Path, damaged: list[Path]) -> None:
        """On the first rank: move damaged checkpoints out of the way, and let `latest` name the one in use."""
        if mesh.is_logging_rank():
            for path in damaged:
                try:
                    log.warning("moved to %s", self.run.set_aside(path))
                except OSError as error:
                    raise InputError(f"cannot move the damaged checkpoint {path}: {error.strerror}") from None
            if not self.run.latest.exists() or self.run.latest.read_text().strip() != continued.name:
                self.run.point_latest(continued)

    def step(self) -> dict[str, float]:
        """One optimizer step; returns its metrics. Raises `InputError` before a non-finite step reaches the weights."""
        train, adamw = self.config.train, self.parts.optimizer
        assert adamw is not None
        for chunk in self.parts.chunks:
            chunk.zero_grad_buffer()
        adamw.zero_grad()
        batches = _Timed(
            training_batches(self.order, self.progress.samples, train.global_batch, train.micro_batch, self.device)
        )
        loss, tokens = run_schedule(
            self.parts.chunks,
            batches,
            self.micro_batches,
            train.micro_batch,
            self.config.data.sequence_length,
            forward_only=False,
        )
        norm = optimizer.gradient_norm(adamw)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise InputError(
                f"step {self.progress.step + 1}: loss {loss} and gradient norm {norm} are not both finite; the weights "
                f"are untouched. The batch held samples {self.progress.samples} to "
                f"{self.progress.samples + train.global_batch - 1}",
                everywhere=True,
            )
        peak = self.config.optimizer.lr
        rate = learning_rate(self.progress.step + 1, self.steps, peak, self.config.schedule)
        optimizer.set_rates(adamw, rate, self.config.optimizer.weight_decay)
        optimizer.update(adamw, norm, self.config.optimizer.clip)
        self.progress.step += 1
        self.progress.samples += train.global_batch
        self.progress.tokens += tokens
        return {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/lr": rate,
            "train/tokens": self.progress.tokens,
            "perf/data_wait_s": batches.seconds,
        }

    def validate(self) -> dict[str, float]:
        """Validation loss and perplexity of every source."""
        train = self.config.train
        return validate(
            self.parts.chunks, self.validation, self.layout, train.micro_batch, train.validate_samples, self.device
        )

    def save(self) -> dict[str, float]:
        """Write a checkpoint, point `latest` at it, drop those that retention does not keep; returns its metrics."""
        began = time.monotonic()
        path = self.run.checkpoint(self.progress.step)
        content = {
            "config": configs.as_dict(self.config),
            "inputs": self.references,
            "step": self.progress.step,
            "consumed_samples": self.progress.samples,
            "consumed_tokens": self.progress.tokens,
            "optimizer": True,
            "data": self.order.fingerprint(),
        }
        size = checkpoint.save(path, self.parts, self.layout, self.hugging_face, content)
        mesh.together(lambda: self.run.point_latest(path) if mesh.is_logging_rank() else None)
        if mesh.is_logging_rank():
            self._drop_old_checkpoints()
        seconds = time.monotonic() - began
        return {"checkpoint/stall_s": seconds, "checkpoint/write_s": seconds, "checkpoint/bytes": float(size)}

    def _drop_old_checkpoints(self) -> None:
        keep = self.config.checkpoint
        for path in self.run.complete_checkpoints()[keep.keep :] if keep.keep else []:
            if not (keep.keep_every_steps and int(path.name.removeprefix("step-")) % keep.keep_every_steps == 0):
                with contextlib.suppress(OSError):  # it is tried again after the next checkpoint
                    self.run.remove_checkpoint(path)


def train(config: PretrainConfig) -> int:
    """Run, or continue, the run that `config` describes; the exit status is 0 when it is complete or was asked to stop.

    Raises `InputError` for whatever a user can mend.
    """
    run = RunDirectory(Path(config.directory))
    with mesh.explain_lost_contact(config.parallel), contextlib.ExitStack() as resources:
        mesh.initialize(config.parallel, config.train.seed)
        attempt = _enter(run, resources)
        resources.push(_log_error)
        stop = StopRequest(run.stop_file)
        trainer = Trainer(config, run, attempt)
        tracker = None
        if mesh.is_logging_rank():
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
            print(_banner(trainer, tracker), flush=True)
        _loop(trainer, tracker, stop)
        if mesh.is_logging_rank():
            _plot(run)
    mesh.shutdown()
    return 0


def _loop(trainer: Trainer, tracker: Tracker | None, stop: StopRequest) -> None:
    config, progress = trainer.config, trainer.progress
    meter = _Meter(trainer)
    if config.train.validate_at_start and progress.step == 0:
        _log_validation(trainer, tracker)
    saved_step, saved_at = progress.step, time.monotonic()
    while progress.step < trainer.steps:
        began = time.monotonic()
        values = trainer.step()
        meter.add(time.monotonic() - began, values["perf/data_wait_s"])
        last = progress.step == trainer.steps
        if tracker and (progress.step % config.train.log_every == 0 or last):
            values |= meter.take()
            samples = {
                "first_sample": progress.samples - config.train.global_batch,
                "last_sample": progress.samples - 1,
            }
            epochs = {f"train/epoch/{name}": value for name, value in trainer.order.epochs(progress.samples).items()}
            tracker.log(progress.step, values | epochs, **samples)
            print(console_line(progress.step, trainer.steps, values, meter.seconds_left(progress.step)), flush=True)
        if last or (config.train.validate_every and progress.step % config.train.validate_every == 0):
            _log_validation(trainer, tracker)
        stopping, minutes_due = _agree(
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
                print(f"stopping as asked ({stop.reason or 'by another rank'}): checkpoint at step {saved_step}")
            return
    if tracker:
        print(f"done: {progress.step:,} steps, {progress.tokens:,} tokens, checkpoint {trainer.run.latest}", flush=True)


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
        print(f"validation at step {trainer.progress.step:,} | " + " | ".join(pairs), flush=True)


class _Meter:
    """Time and throughput between two console lines."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._world = dist.get_world_size()
        on_cuda = torch.cuda.is_available()
        self._peak = peak_teraflops(torch.cuda.get_device_name()) if on_cuda else None
        self._flops = trainer.shape.flops_per_token(trainer.config.data.sequence_length)
        self._step_seconds: list[float] = []
        self._waits: list[float] = []
        self._began, self._first_step = time.monotonic(), trainer.progress.step
        self._busy = 0.0

    def add(self, seconds: float, waited: float) -> None:
        """One step took `seconds`, `waited` of them for data."""
        self._step_seconds.append(seconds)
        self._waits.append(waited)
        self._busy += seconds

    def take(self) -> dict[str, float]:
        """Metrics since the last call."""
        mean = sum(self._step_seconds) / len(self._step_seconds)
        rate = self._trainer.config.tokens_per_step / mean / self._world
        values = {
            "perf/step_s": mean,
            "perf/data_wait_s": sum(self._waits) / len(self._waits),
            "perf/tokens_per_sec_per_device": rate,
            "perf/tflops_per_device": rate * self._flops / 1e12,
            "perf/goodput": self._busy / max(time.monotonic() - self._began, 1e-9),
        }
        if self._peak:
            values["perf/mfu"] = values["perf/tflops_per_device"] / self._peak
        if torch.cuda.is_available():
            values["mem/allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
            values["mem/reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
        self._step_seconds.clear()
        self._waits.clear()
        return values

    def seconds_left(self, step: int) -> float:
        """At the pace of this attempt so far, everything included."""
        pace = (time.monotonic() - self._began) / max(1, step - self._first_step)
        return pace * (self._trainer.steps - step)


class _Timed:
    """An iterator that knows how long its consumer has waited for it."""

    def __init__(self, items: Any) -> None:
        self._items = iter(items)
        self.seconds = 0.0

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> Any:
        began = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - began


def _enter(run: RunDirectory, resources: contextlib.ExitStack) -> int:
    """Lock the run directory on rank 0, number the attempt, and give each rank its log; collective."""
    problem, attempt = None, [0]
    if mesh.is_logging_rank():
        try:
            resources.callback(RunLock(run).release)
            run.remove_leftovers()
            attempt = [run.next_attempt()]
            run.log_file(attempt[0], 0).parent.mkdir(parents=True)
            run.stop_file.unlink(missing_ok=True)
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = f"run directory {run.path} cannot be written: {error.strerror}; choose another with 'directory'"
    mesh.raise_together(problem)
    dist.broadcast_object_list(attempt, src=0)
    handlers: list[logging.Handler] = [mesh.together(lambda: _log_file(run, attempt[0]))]
    if mesh.is_logging_rank():
        handlers.append(logging.StreamHandler(sys.stdout))
        handlers[1].setLevel(logging.INFO)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers, force=True)
    logging.getLogger("megatron").setLevel(logging.WARNING)
    log.setLevel(logging.DEBUG)
    return attempt[0]


def _log_file(run: RunDirectory, attempt: int) -> logging.Handler:
    path = run.log_file(attempt, dist.get_rank())
    try:
        return logging.FileHandler(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _log_error(kind: Any, error: BaseException | None, traceback: Any) -> None:
    """Keep what ended this rank in its log file, traceback included; the console gets one sentence."""
    if error is not None:
        log.debug("ended by an error", exc_info=error)


def _plot(run: RunDirectory) -> None:
    try:
        print(f"loss plot: {plot_loss(run)}", flush=True)
    except OSError as error:  # the run itself is complete
        log.warning("no loss plot: %s", error)


def _agree(*flags: bool) -> list[bool]:
    """Each flag, true on all ranks where it is true on any; collective."""
    votes = torch.tensor([float(flag) for flag in flags], device=mesh.device())
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def _from_first_rank(*values: Any) -> Any:
    """Rank 0's values on every rank: shared file systems do not show a new file everywhere at once."""
    box = [values]
    dist.broadcast_object_list(box, src=0)
    return box[0]


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
