"""The config of a pretraining run: one TOML file, one section per concern. Imports no torch, so --help is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from job.config import Count
from job.directory import check_directory
from job.training import (
    TRAINING_RANGES,
    AdamWConfig,
    CheckpointConfig,
    HealthConfig,
    ScheduleConfig,
    TrackingConfig,
    check_exactly_one,
    check_ranges,
)
from parallel.layout import Layout


@dataclass
class ModelConfig:
    """The model that training starts from."""

    path: str = ""
    """checkpoint directory made by `python -m parallel import` (or `create`, for random weights)"""


@dataclass
class SourceConfig:
    """One corpus."""

    path: str
    """directory made by `python -m data_shards build`"""
    name: str = ""
    """how metrics call it; unset: the directory's name"""
    weight: float | None = None
    """share of the samples; unset for all sources: in proportion to their tokens"""


@dataclass
class DataConfig:
    """What is read, and how it is cut into samples."""

    sources: list[SourceConfig] = field(default_factory=list)
    """the corpora, mixed by weight"""
    sequence_length: int = 2048
    """tokens of one sample"""
    seed: int = 1234
    """seed of the document order"""


@dataclass
class TrainConfig:
    """How long and how big."""

    tokens: Count | None = None
    """train for this many tokens (give one of tokens, epochs, steps)"""
    epochs: float | None = None
    """train for this many passes over the tokens of all sources"""
    steps: int | None = None
    """train for this many optimizer steps"""
    global_batch: int = 192
    """samples of one optimizer step, over all devices"""
    micro_batch: int = 1
    """samples that one device computes at a time"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: weights and activations in bfloat16, main weights, gradients and optimizer in float32"""
    recompute: Literal["none", "selective", "full"] = "none"
    """activations computed again in the backward pass: saves memory, costs up to a third more time"""
    compile: bool = False
    """compile each layer with torch.compile (GPUs only)"""
    deterministic: bool = False
    """bit-equal reruns on GPUs too, at some cost in speed (CPU runs always are)"""
    seed: int = 1234
    """seed of everything random in the model"""
    log_every: int = 1
    """steps between console lines and metrics rows"""
    validate_every: int = 0
    """steps between validations, besides the one at the end (0: only at the end)"""
    validate_samples: int = 0
    """validation samples per source (0: all of them)"""
    validate_at_start: bool = False
    """also validate before the first step: the loss of the model that training starts from"""


@dataclass
class OptimizerConfig(AdamWConfig):
    """AdamW."""

    overlap: bool = False
    """hide gradient reduction and weight gathering behind computation (data parallel over more than one device)"""


# key, smallest value, and what it must stay below (None: no limit)
_RANGES = (
    ("data.sequence_length", 1, None),
    ("train.tokens", 1, None),
    ("train.micro_batch", 1, None),
    ("train.validate_samples", 0, None),
    *TRAINING_RANGES,
)


@dataclass
class PretrainConfig:
    """A pretraining run."""

    directory: str = ""
    """run directory: made on the first start, continued on every later one"""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: Layout = field(default_factory=Layout)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_directory(self.directory, "the run is to live")
        if not self.model.path:
            raise ValueError("key 'model.path' is missing: name the checkpoint directory to start from")
        if not self.data.sources:
            raise ValueError("key 'data.sources' is missing: name at least one shard directory")
        check_exactly_one(self, "train.tokens", "train.epochs", "train.steps")
        check_ranges(self, _RANGES)

    def steps(self, corpus_tokens: int) -> int:
        """Optimizer steps of the run; `corpus_tokens` is what all sources hold together."""
        if self.train.steps is not None:
            return self.train.steps
        tokens = self.train.tokens if self.train.tokens is not None else (self.train.epochs or 0.0) * corpus_tokens
        return max(1, math.ceil(tokens / self.tokens_per_step))

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.train.global_batch * self.data.sequence_length
