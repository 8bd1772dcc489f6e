"""What a run reads, opened and checked against each other. No torch: a dry run refuses what the run would."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.mixture import Source, TrainingOrder
from data_shards.order import ValidationWindows, first_difference
from data_shards.validation import validation_sources
from job import manifest
from job.errors import InputError
from job.files import sha256_file
from parallel.checkpoint_files import MODEL_FOLDER, STAGE
from parallel.shape import ModelShape, read_shape
from pretrain.config import DataConfig, PretrainConfig


@dataclass(frozen=True)
class Inputs:
    """The opened inputs of a run, and the sizes that follow from them."""

    hugging_face: Path
    """config and tokenizer of the model"""
    shape: ModelShape
    order: TrainingOrder
    validation: dict[str, ValidationWindows]
    """by the name that metrics use"""
    micro_batches: int
    """of one step on each data-parallel rank"""
    steps: int
    """of the whole run"""
    references: list[dict[str, str]]
    """the manifests of corpora and model, as a checkpoint's manifest names them"""


def open_inputs(config: PretrainConfig, world_size: int) -> Inputs:
    """Read manifests and sizes; raises `InputError` where something is missing, damaged, or does not fit the rest."""
    model = Path(config.model.path)
    _check_model(model)
    hugging_face = model / MODEL_FOLDER
    shape = read_shape(hugging_face)
    config.parallel.check(shape, config.data.sequence_length)
    micro_batches = config.parallel.micro_batches(config.train.global_batch, config.train.micro_batch, world_size)
    order = _open_order(config.data, shape, hugging_face)
    validation = validation_sources(
        {source.name: source.directory for source in order.sources}, config.data.sequence_length
    )
    steps = config.steps(sum(order.tokens().values()))
    references = [manifest.reference(path) for path in (*(source.directory for source in order.sources), model)]
    return Inputs(hugging_face, shape, order, validation, micro_batches, steps, references)


def check_continuation(path: Path, body: dict[str, Any], config: PretrainConfig, inputs: Inputs) -> None:
    """Refuse, by an `InputError`, to go on from the checkpoint `path` (manifest `body`) of another model or data."""
    if not {"step", "consumed_samples", "consumed_tokens", "data"} <= body.keys():
        raise InputError(f"{path} is not a checkpoint of a pretraining run; move it out of {path.parent}")
    if read_shape(path / MODEL_FOLDER) != inputs.shape:
        raise InputError(
            f"{path} holds another model than model.path {config.model.path}; name the model that this run was started "
            "with, or a new run directory"
        )
    if difference := first_difference(body["data"], inputs.order.fingerprint()):
        raise InputError(
            f"{path} was trained on other data: {difference}; restore that data, or start a new run directory"
        )


def _check_model(path: Path) -> None:
    if (path / "config.json").is_file():
        raise InputError(
            f"model.path {path} is a Hugging Face directory; make a checkpoint of it with "
            f"`python -m parallel import {path} CKPT_DIR` and name that"
        )
    if (path / "checkpoints").is_dir():
        raise InputError(
            f"model.path {path} is a run directory; name one of its checkpoints, such as one in {path / 'checkpoints'}"
        )
    if not path.is_dir():
        raise InputError(
            f"model.path {path} does not exist; `python -m parallel import HF_DIR CKPT_DIR` makes such a directory"
        )
    manifest.read(path, STAGE)


def _open_order(config: DataConfig, shape: ModelShape, hugging_face: Path) -> TrainingOrder:
    """Open the corpora; raises `InputError` where they do not fit the model."""
    sources = [
        Source(source.name or Path(source.path).resolve().name, Path(source.path), source.weight)
        for source in config.sources
    ]
    order = TrainingOrder(sources, config.sequence_length, config.seed)
    if order.tokenizer.vocab_size > shape.vocabulary:
        raise InputError(
            f"the shards were tokenised with {order.tokenizer.path} ({order.tokenizer.vocab_size} tokens), but the "
            f"model has only {shape.vocabulary}: build the shards with the model's own tokenizer"
        )
    files = [hugging_face / name for name in ("tokenizer.model", "tokenizer.json") if (hugging_face / name).is_file()]
    if files and order.tokenizer.sha256 not in map(sha256_file, files):
        raise InputError(
            f"the shards were tokenised with {order.tokenizer.path}, which is not the model's tokenizer ({files[0]}): "
            "build the shards with the model's own"
        )
    if config.sequence_length > shape.positions:
        raise InputError(
            f"data.sequence_length {config.sequence_length} is more than the model's {shape.positions} positions"
        )
    return order
