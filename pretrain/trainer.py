"""A run's state and its verbs: build or restore, step, validate, save."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from job import config as configs
from job.directory import RunDirectory
from job.schedule import learning_rate
from parallel import checkpoint, model, optimizer, ranks
from parallel.loop import NonFiniteStep, Progress
from parallel.meter import Meter, Timed
from parallel.run import newest_whole, publish
from pretrain.config import PretrainConfig
from pretrain.data import training_batches
from pretrain.inputs import Inputs, check_continuation
from pretrain.step import run_schedule
from pretrain.validate import validate

log = logging.getLogger("pretrain")


class Trainer:
    """Everything that a step needs, built once."""

    def __init__(self, config: PretrainConfig, inputs: Inputs, run: RunDirectory, attempt: int) -> None:
        self.config, self.run, self.attempt = config, run, attempt
        self.layout, self.device, self.progress = config.parallel, ranks.device(), Progress()
        self.inputs, self.hugging_face, self.references = inputs, inputs.hugging_face, inputs.references
        self.shape, self.order, self.validation = inputs.shape, inputs.order, inputs.validation
        self.micro_batches, self.steps = inputs.micro_batches, inputs.steps
        self.parts = self._build()
        self._restore()
        flops = self.shape.flops_per_token(config.data.sequence_length)
        self.meter = Meter(flops, self.progress.step, self.steps)

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
        return checkpoint.Model(wrapped, adamw)

    def _restore(self) -> None:
        """Continue from the newest checkpoint that is whole, or start from the model that the config names."""
        if found := newest_whole(self.run, checkpoint.verify, self._check, log):
            path, body = found
            checkpoint.load(path, self.parts, self.layout)
            self.progress = Progress(body["step"], body["consumed_samples"], body["consumed_tokens"])
            log.info("continuing from %s: step %d, %d tokens", path, self.progress.step, self.progress.tokens)
            return
        start = Path(self.config.model.path)
        checkpoint.verify(start)
        checkpoint.load(start, checkpoint.Model(self.parts.chunks, None), self.layout)
        self.parts.optimizer.reload_model_params()  # type: ignore[union-attr]
        log.info("starting from %s: %s parameters", start, f"{self.shape.parameters:,}")

    def _check(self, path: Path, body: dict[str, Any]) -> None:
        check_continuation(path, body, self.config, self.inputs)

    def step(self) -> dict[str, float]:
        """One optimizer step; returns its metrics. Raises `InputError` before a non-finite step reaches the weights.

        The seconds of its parts go to the meter, by name: waiting for data lies within forward and backward.

        Where loss masks leave out every target of the global batch, there is nothing to learn from: weights and
        optimizer stay as they are (no decay, no momentum), the loss is given as 0, and `health/skipped` says so.
        """
        began = time.monotonic()
        train, adamw = self.config.train, self.parts.optimizer
        assert adamw is not None
        for chunk in self.parts.chunks:
            chunk.zero_grad_buffer()
        adamw.zero_grad()
        batches = Timed(
            training_batches(self.order, self.progress.samples, train.global_batch, train.micro_batch, self.device)
        )
        loss, targets = run_schedule(
            self.parts.chunks,
            batches,
            self.micro_batches,
            train.micro_batch,
            self.config.data.sequence_length,
            forward_only=False,
        )
        computed = time.monotonic()
        norm = optimizer.gradient_norm(adamw)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteStep(
                f"step {self.progress.step + 1}: loss {loss} and gradient norm {norm} are not both finite; the weights "
                f"are untouched. The batch held samples {self.progress.samples} to "
                f"{self.progress.samples + train.global_batch - 1}",
                everywhere=True,
            )
        peak = self.config.optimizer.lr
        rate = learning_rate(self.progress.step + 1, self.steps, peak, self.config.schedule)
        if targets:
            optimizer.set_rates(adamw, rate, self.config.optimizer.weight_decay)
            optimizer.update(adamw, norm, self.config.optimizer.clip)
        elif ranks.is_logging_rank():
            log.warning(
                "step %d is skipped, the weights stay: the loss masks leave out every target of samples %d to %d",
                self.progress.step + 1,
                self.progress.samples,
                self.progress.samples + train.global_batch - 1,
            )
        self.progress.step += 1
        self.progress.samples += train.global_batch
        self.progress.tokens += self.config.tokens_per_step
        ended = time.monotonic()
        self.meter.add(
            {
                "step": ended - began,
                "forward_backward": computed - began,
                "optimizer": ended - computed,
                "data_wait": batches.seconds,
            },
            self.config.tokens_per_step,
        )
        values = {
            "train/loss": loss,
            "train/grad_norm": norm,
            "train/lr": rate,
            "train/tokens": self.progress.tokens,
        }
        if self.order.masked:
            values["train/targets"] = targets
        if not targets:
            values["health/skipped"] = 1
        return values

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
        optimizer.gather_weights(self.parts.chunks)
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
        publish(self.run, path, self.config.checkpoint)
        seconds = time.monotonic() - began
        return {"checkpoint/stall_s": seconds, "checkpoint/write_s": seconds, "checkpoint/bytes": float(size)}
