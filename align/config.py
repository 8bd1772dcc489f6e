"""The config of an alignment run: one TOML file, one section per concern. Imports no torch, so --help is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from align.settings import (
    TRAINS_ENCODERS,
    TRAINS_WHOLE_LANGUAGE_MODEL,
    AlignedSettings,
    LoraSettings,
    MoleculeSettings,
    PromptSettings,
    ProteinSettings,
    Tuning,
)
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


@dataclass
class ModelConfig:
    """What training starts from."""

    language_model: str = ""
    """Hugging Face directory of the language model, such as `python -m parallel export` writes"""
    max_length: int = 2048
    """tokens of a prompt with its structures and its answer; longer answers are cut at their end"""


@dataclass(frozen=True)
class MoleculeConfig(MoleculeSettings):
    """The molecule encoder and its adapter."""

    use: bool = True
    """false: a model that reads no molecules"""
    weights: str | None = None
    """checkpoint of the encoder (.pth, .pt, .safetensors); unset: random weights, which are to be trained"""

    def settings(self) -> MoleculeSettings | None:
        """What the model directory keeps of it."""
        values = {item.name: getattr(self, item.name) for item in fields(MoleculeSettings)}
        return MoleculeSettings(**values) if self.use else None


@dataclass(frozen=True)
class ProteinConfig(ProteinSettings):
    """The protein encoder and its adapter."""

    use: bool = True
    """false: a model that reads no proteins"""
    weights: str | None = None
    """an ESM-2: a fair-esm .pt file or a Hugging Face directory"""

    def settings(self) -> ProteinSettings | None:
        """What the model directory keeps of it."""
        values = {item.name: getattr(self, item.name) for item in fields(ProteinSettings)}
        return ProteinSettings(**values) if self.use else None


@dataclass
class TuneConfig:
    """What is trained."""

    mode: Tuning = "adapters"
    """adapters: only they, as released; encoders: these too; lora: adapters and low-rank updates of the language
    model; language_model: adapters and the language model; all: adapters, encoders and language model"""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """the low-rank updates"""


@dataclass
class SourceConfig:
    """One data set."""

    path: str
    """directory made by `python -m align build`"""
    name: str = ""
    """how metrics call it; unset: the directory's name"""
    weight: float | None = None
    """share of the questions; unset for all sources: in proportion to their sizes"""

    def __post_init__(self) -> None:
        self.name = self.name or Path(self.path).resolve().name

    @property
    def directory(self) -> str:
        """The same as `path`."""
        return self.path


@dataclass
class DataConfig:
    """What is read, and how it is batched."""

    sources: list[SourceConfig] = field(default_factory=list)
    """the data sets, mixed by weight"""
    token_budget: int = 8192
    """padded tokens that one device computes at a time; questions of like length share a micro-batch"""
    seed: int = 1234
    """seed of the order of questions"""
    cache_directory: str | None = None
    """keep the outputs of frozen encoders here, so that they run once and not every epoch"""


@dataclass
class ParallelConfig:
    """ZeRO (Rajbhandari et al. 2020): what the ranks share instead of each holding it."""

    stage: int = 2
    """0: nothing; 1: optimizer states; 2: gradients too; 3: parameters too"""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """keep the optimizer's states (and, at stage 3, the parameters) in the memory of the host"""
    timeout_seconds: float = 600.0
    """a collective that waits longer than this ends the job with a message"""


@dataclass
class TrainConfig:
    """How long and how big."""

    questions: Count | None = None
    """train on this many questions (give one of questions, epochs, steps)"""
    epochs: float | None = None
    """train for this many passes over the questions of all sources"""
    steps: int | None = None
    """train for this many optimizer steps"""
    global_batch: int = 256
    """questions of one optimizer step, over all devices"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """of the language model; in bf16, what is trained keeps float32 weights, and so does the molecule encoder"""
    recompute: bool = False
    """compute the activations of the language model, and of a trained protein encoder, again in the backward pass: less
    memory, up to a third more time"""
    deterministic: bool = False
    """bit-equal reruns on GPUs too, at some cost in speed (CPU runs always are)"""
    seed: int = 1234
    """seed of new weights and of dropout"""
    log_every: int = 1
    """steps between console lines and metrics rows"""
    validate_every: int = 0
    """steps between validations, besides the one at the end (0: only at the end)"""
    validate_questions: int = 0
    """validation questions per source (0: all of them)"""
    validate_at_start: bool = False
    """also validate before the first step"""
    samples: int = 2
    """answers per source that each validation generates, into samples.jsonl and W&B (0: none)"""
    sample_tokens: int = 64
    """longest generated answer"""


# key, smallest value, and what it must stay below (None: no limit)
_RANGES = (
    ("model.max_length", 2, None),
    ("data.token_budget", 1, None),
    ("data.seed", 0, None),
    ("parallel.stage", 0, 4),
    ("parallel.timeout_seconds", 1e-9, None),
    ("train.questions", 1, None),
    ("train.validate_questions", 0, None),
    ("train.samples", 0, None),
    ("train.sample_tokens", 1, None),
    *TRAINING_RANGES,
)


@dataclass
class AlignConfig:
    """An alignment run."""

    directory: str = ""
    """run directory: made on the first start, continued on every later one"""
    model: ModelConfig = field(default_factory=ModelConfig)
    molecule: MoleculeConfig = field(default_factory=MoleculeConfig)
    protein: ProteinConfig = field(default_factory=ProteinConfig)
    prompt: PromptSettings = field(default_factory=PromptSettings)
    tune: TuneConfig = field(default_factory=TuneConfig)
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: AdamWConfig = field(default_factory=AdamWConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        check_directory(self.directory, "the run is to live")
        if not self.model.language_model:
            raise ValueError("key 'model.language_model' is missing: name the Hugging Face directory to start from")
        if not self.data.sources:
            raise ValueError("key 'data.sources' is missing: name at least one directory made by `align build`")
        if not (self.molecule.use or self.protein.use):
            raise ValueError("molecule.use and protein.use are both false: there is nothing to align")
        if self.protein.use and not self.protein.weights:
            raise ValueError(
                "key 'protein.weights' is missing: name an ESM-2, or set protein.use to false for a model without"
            )
        check_exactly_one(self, "train.questions", "train.epochs", "train.steps")
        if self.parallel.offload == "parameters" and self.parallel.stage != 3:
            raise ValueError("parallel.offload = 'parameters' needs parallel.stage = 3")
        if self.parallel.offload == "optimizer" and self.parallel.stage == 0:
            raise ValueError("parallel.offload = 'optimizer' needs parallel.stage = 1, 2 or 3")
        if self.data.cache_directory and self.trains_encoders:
            raise ValueError(
                f"data.cache_directory keeps the outputs of frozen encoders, but tune.mode '{self.tune.mode}' trains "
                "them; unset one of the two"
            )
        if self.trains_encoders and (self.molecule.adapter.standardise or self.protein.adapter.standardise):
            raise ValueError(
                "adapter.standardise measures what a frozen encoder gives, once, but tune.mode "
                f"'{self.tune.mode}' trains the encoders; unset one of the two"
            )
        check_ranges(self, _RANGES)

    def steps(self, questions: int) -> int:
        """Optimizer steps of the run; `questions` is what the training splits of all sources hold together."""
        if self.train.steps is not None:
            return self.train.steps
        wanted = self.train.questions if self.train.questions is not None else (self.train.epochs or 0.0) * questions
        return max(1, math.ceil(wanted / self.train.global_batch))

    def settings(self) -> AlignedSettings:
        """What the model directory keeps of this config."""
        return AlignedSettings(
            self.molecule.settings(), self.protein.settings(), self.prompt, max_length=self.model.max_length
        )

    @property
    def trains_language_model(self) -> bool:
        """Whether DeepSpeed has to know the language model because parts of it are trained."""
        return self.tune.mode == "lora" or self.trains_whole_language_model

    @property
    def trains_whole_language_model(self) -> bool:
        """Whether all weights of the language model change."""
        return self.tune.mode in TRAINS_WHOLE_LANGUAGE_MODEL

    @property
    def trains_encoders(self) -> bool:
        """Whether molecule and protein encoder change."""
        return self.tune.mode in TRAINS_ENCODERS

    @property
    def registers_language_model(self) -> bool:
        """Whether DeepSpeed has to know the language model: parts of it are trained, or its parameters are shared."""
        return self.trains_language_model or self.parallel.stage == 3
