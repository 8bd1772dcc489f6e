"""Distributed checkpoints of model, optimizer and random state that are either whole or absent, and load anywhere.

The format is megatron-core's `torch_dist` (torch.distributed.checkpoint files) with one key per layer, the optimizer
in the fully re-shardable layout, so that any tensor x pipeline x data layout reads any other's checkpoint. One is
written to a hidden directory beside its place, synced, checksummed by all ranks together, and renamed;
`manifest.json` inside it is what makes it count.
"""

from __future__ import annotations

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import save as torch_save

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from parallel import optimizer as adamw
from parallel import ranks
from parallel.checkpoint_files import MODEL_FOLDER, STAGE, read_manifest
from parallel.layout import Layout
from parallel.safe_reader import SafeMetadataReader
from parallel.whole_directory import (
    explained,
    random_state,
    restore_random_state,
    verify_directory,
    write_directory,
)

from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelLoadStrategyWrapper,
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.optimizer import MegatronOptimizer

_SHARDING = {
    "distrib_optim_sharding_type": "fully_reshardable",  # the default type is broken without TransformerEngine
    "non_homogeneous_layers": True,  # one key per layer: conversion streams, uneven stages load
    "chained_optim_avoid_prefix": True,
}


class _DirectSave(torch_strategy.TorchDistSaveShardedStrategy):
    """Writes with torch's own file writer in this process.

    megatron-core's writer starts a manager process per rank, which costs seconds per save and is orphaned when a rank
    is killed.
    """

    def save(self, sharded_state_dict: Any, checkpoint_dir: Path) -> None:
        """Write this rank's tensors to `checkpoint_dir`; collective."""
        state, _, _ = torch_strategy._replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        torch_save(
            torch_strategy.mcore_to_pyt_state_dict(state, False),
            storage_writer=FileSystemWriter(checkpoint_dir, thread_count=1),
            planner=torch_strategy.MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


@dataclass
class Model:
    """What a checkpoint holds: the wrapped chunks of this rank and their optimizer (None: weights only)."""

    chunks: list[Any]
    optimizer: MegatronOptimizer | None


def save(path: Path, model: Model, layout: Layout, hugging_face: Path, content: dict[str, Any]) -> int:
    """Write checkpoint `path`; collective. Returns its size in bytes.

    `hugging_face` is the directory whose config and tokenizer travel along; `content` goes into the manifest (step,
    consumed samples and tokens, config, data). Raises `InputError` on every rank where any rank cannot write.
    """
    config, inputs = content.pop("config", {}), content.pop("inputs", [])

    def fill(directory: Path) -> None:
        with explained(path):
            _write_tensors(directory, model)
        ranks.together(lambda: _write_small_files(path, directory, hugging_face))

    return write_directory(path, fill, STAGE, config, inputs, content | {"layout": vars(layout)})


def verify(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest; collective, the work is shared between ranks.

    Returns the manifest. Raises `InputError` on all ranks, naming the damaged file.
    """

    def check() -> dict[str, Any]:
        body = verify_directory(path, STAGE)
        SafeMetadataReader(path).read_metadata()  # refuses a pickle that holds more than checkpoint metadata
        return body

    return ranks.together(check)


def load(path: Path, model: Model, layout: Layout) -> None:
    """Load a verified checkpoint into `model`, from whatever layout wrote it; collective.

    Weights always; the optimizer's state where the checkpoint has one, else the optimizer starts from these weights.
    Random states are restored only where the layout is the same: they belong to ranks.
    """
    body = read_manifest(path)
    has_optimizer = bool(body.get("optimizer")) and model.optimizer is not None
    if has_optimizer:
        adamw.prime(model.optimizer)
    state = _state(model if has_optimizer else Model(model.chunks, None), loading=True)
    strategy = FullyParallelLoadStrategyWrapper(
        get_default_load_sharded_strategy(str(path)), parallel_state.get_data_parallel_group(with_context_parallel=True)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = dist_checkpointing.load(state, str(path), strategy)
    for index, chunk in enumerate(model.chunks):
        missing, unexpected = adamw.unwrap(chunk).load_state_dict(loaded[f"model{index}"], strict=False)
        missing = [key for key in missing if not key.endswith("_extra_state")]
        assert not missing and not unexpected, (missing, unexpected)
    if has_optimizer:
        adamw.load_state(model.optimizer, loaded["optimizer"])
    elif model.optimizer is not None:
        model.optimizer.reload_model_params()
    if body.get("layout") == vars(layout) and body.get("world_size") == dist.get_world_size():
        _restore_random_state(torch.load(path / "random" / f"rank-{dist.get_rank():05d}.pt", weights_only=True))


def _write_tensors(directory: Path, model: Model) -> None:
    """Weights and optimizer, each rank its part; collective."""
    state = _state(model, loading=False)
    strategy = FullyParallelSaveStrategyWrapper(
        _DirectSave("torch_dist", 1, thread_count=1),
        parallel_state.get_data_parallel_group(with_context_parallel=True),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist_checkpointing.save(state, str(directory), strategy, content_metadata=dict(_SHARDING))


def _write_small_files(path: Path, directory: Path, hugging_face: Path) -> None:
    """This rank's random state and, on the first, the model's config and tokenizer."""
    with explained(path):
        (directory / "random").mkdir(exist_ok=True)
        torch.save(_random_state(), directory / "random" / f"rank-{dist.get_rank():05d}.pt")
        if dist.get_rank() == 0:
            (directory / MODEL_FOLDER).mkdir()
            for file in hugging_face.iterdir():
                if file.suffix != ".safetensors":
                    shutil.copyfile(file, directory / MODEL_FOLDER / file.name)


def _state(model: Model, loading: bool) -> dict[str, Any]:
    """The sharded state dictionary of this rank: `model0`, `model1`, ... and, if there is one, `optimizer`."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = _SHARDING | {"dp_cp_group": group}
    state: dict[str, Any] = {}
    for index, chunk in enumerate(model.chunks):
        sharded = adamw.unwrap(chunk).sharded_state_dict(metadata=metadata)
        # `_extra_state` is TransformerEngine's; torch layers have none to keep
        state[f"model{index}"] = {key: entry for key, entry in sharded.items() if not isinstance(entry, ShardedObject)}
    if model.optimizer is not None:
        models = {"model": state["model0"]} if len(model.chunks) == 1 else dict(state)
        state["optimizer"] = model.optimizer.sharded_state_dict(models, is_loading=loading, metadata=metadata)
    return state


def _random_state() -> dict[str, Any]:
    return random_state() | {"model_parallel": tensor_parallel.get_cuda_rng_tracker().get_states()}


def _restore_random_state(state: dict[str, Any]) -> None:
    restore_random_state(state)
    tensor_parallel.get_cuda_rng_tracker().set_states(state["model_parallel"])
