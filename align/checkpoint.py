"""Checkpoints of what an alignment run trains: whole tensors by name, the same from any ZeRO stage and number of ranks.

weights.safetensors      float32, by the model's own names: all that is trained
exp_avg.safetensors      the optimizer's first moments, by the same names
exp_avg_sq.safetensors   its second moments
buffers.safetensors      statistics of trained batch norms
config.toml              of the run
random/rank-00000.pt     state of this rank's random generators
manifest.json            step, data, checksums of these files and of everything frozen; makes the rest count

Tensors are gathered from the ranks, written and read one at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.config import AlignConfig
from align.engine import MOMENTS, Engine, filled_by_first_rank, whole_shape
from align.model import AlignedModel
from job import config as configs
from job.errors import InputError
from job.files import share
from parallel import ranks
from parallel.safetensors_stream import SafetensorsWriter, TensorInfo
from parallel.whole_directory import (
    explained,
    on_first_rank,
    random_state,
    restore_random_state,
    verify_directory,
    write_directory,
)

STAGE = "align checkpoint"
WEIGHTS, BUFFERS, CONFIG = "weights.safetensors", "buffers.safetensors", "config.toml"


def save(path: Path, model: AlignedModel, engine: Engine, config: AlignConfig, content: dict[str, Any]) -> int:
    """Write checkpoint `path`; collective. Returns its size in bytes.

    `content` goes into the manifest, with `inputs`: references to what was read. Raises `InputError` on every rank
    where any cannot write.
    """
    trained = engine.trained

    def fill(directory: Path) -> None:
        ranks.together(lambda: _write_small_files(path, directory, model, config))
        for key, file in ((None, WEIGHTS), *((moment, f"{moment}.safetensors") for moment in MOMENTS)):
            _write_gathered(path, directory / file, trained, _gathered(engine, key))

    shapes = {name: list(whole_shape(parameter)) for name, parameter in trained.items()}
    return write_directory(
        path, fill, STAGE, configs.as_dict(config), content.pop("inputs"), content | {"trained": shapes}
    )


def verify(path: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest, and return that; collective, the work is shared.

    Raises `InputError` on all ranks, naming the damaged file.
    """
    return ranks.together(lambda: verify_directory(path, STAGE))


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a verified checkpoint's weights and buffers into the model, before an engine is made of it; collective.

    Parameters that are partitioned already are filled from rank 0.
    """
    with safe_open(path / WEIGHTS, framework="pt") as file:
        for name, parameter in _trained(model).items():
            partitioned = hasattr(parameter, "ds_id")
            with filled_by_first_rank(parameter), torch.no_grad():
                if not partitioned or dist.get_rank() == 0:
                    parameter.copy_(file.get_tensor(name))
    buffers = dict(model.named_buffers())
    for name, value in load_file(path / BUFFERS).items():
        buffers[name].copy_(value)


def load_optimizer(path: Path, engine: Engine, updates: int) -> None:
    """Put the optimizer's state, after so many updates, into an engine that has made none."""
    for key in MOMENTS:
        with safe_open(path / f"{key}.safetensors", framework="pt") as file:
            for name, parameter in engine.trained.items():
                engine.set_moment(parameter, key, file.get_tensor(name))
    engine.set_updates(updates)


def load_random_state(path: Path, world_size: int) -> None:
    """Restore this rank's generators where the number of ranks is the same: their states belong to ranks."""
    if world_size == dist.get_world_size():
        restore_random_state(torch.load(path / "random" / f"rank-{dist.get_rank():05d}.pt", weights_only=True))


def check_trained(path: Path, body: dict[str, Any], model: nn.Module) -> None:
    """Raise `InputError` where a checkpoint holds other parameters than the model trains, naming the first."""
    found, wanted = body["trained"], {name: list(whole_shape(p)) for name, p in _trained(model).items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"{path} does not fit what this run trains: {name} is {found.get(name, 'absent')} there and "
                f"{wanted.get(name, 'absent')} here; set tune, molecule and protein as they were, or start a new run "
                "directory"
            )


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _gathered(engine: Engine, key: str | None) -> Iterator[tuple[str, Tensor | None]]:
    for name, parameter in engine.trained.items():
        yield name, engine.gather(parameter, key)


def _write_small_files(path: Path, directory: Path, model: AlignedModel, config: AlignConfig) -> None:
    with explained(path):
        (directory / "random").mkdir(exist_ok=True)
        torch.save(random_state(), directory / "random" / f"rank-{dist.get_rank():05d}.pt")
    trained = _trained(model)
    buffers = {name: value.cpu() for name, value in model.trainable_state().items() if name not in trained}

    def write() -> None:
        save_file(buffers, directory / BUFFERS)
        share(directory / BUFFERS)
        configs.save(config, directory / CONFIG)

    on_first_rank(path, write)


def _write_gathered(
    path: Path, file: Path, parameters: dict[str, nn.Parameter], tensors: Iterable[tuple[str, Tensor | None]]
) -> None:
    """Write whole tensors, which arrive on rank 0 while every rank iterates; collective."""
    tensors = iter(tensors)

    def write() -> None:
        infos = [TensorInfo(name, torch.float32, tuple(whole_shape(value))) for name, value in parameters.items()]
        with explained(path), SafetensorsWriter(file, infos) as writer:
            for name, tensor in tensors:
                assert tensor is not None
                writer.write(name, tensor)

    def take_part() -> None:
        try:
            if dist.get_rank() == 0:
                write()
        finally:  # the other ranks gather all, also where this one cannot write
            for _ in tensors:
                pass

    ranks.together(take_part)
