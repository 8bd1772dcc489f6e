"""A Megatron distributed checkpoint becomes Hugging Face safetensors, one weight at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from job.errors import InputError
from job.files import write_json
from parallel.checkpoint_files import verify_file
from parallel.direct_reader import DirectReader
from parallel.prefetch import TwoBuffers, prefetched
from parallel.safetensors_stream import INDEX_FILE, SINGLE_FILE, SafetensorsWriter, TensorInfo
from parallel.shape import ModelShape
from parallel.weights import Weight, megatron_shape, part_shapes, split, weights


@dataclass(frozen=True)
class PlannedWeight:
    """One tensor of the checkpoint and the tensors that it becomes."""

    weight: Weight
    stored: torch.dtype
    parts: tuple[TensorInfo, ...]

    @property
    def bytes(self) -> int:
        """Size of the parts together."""
        return sum(part.bytes for part in self.parts)


class CheckpointWeights:
    """The model weights in a checkpoint directory, read through its index; optimizer states beside them are left alone.

    A data file is checked against the manifest just before something is first read from it. Raises `InputError` where
    the checkpoint and the model's config do not fit, or a file is absent or damaged.
    """

    def __init__(self, directory: Path, files: dict[str, dict[str, Any]], shape: ModelShape) -> None:
        self._directory = directory
        self._files = files
        self._buffers = TwoBuffers()
        self._shape = shape
        if ".metadata" in files:
            verify_file(directory, ".metadata", files[".metadata"])
        self._reader = DirectReader(directory)
        index = self._reader.read_metadata()
        self._stored = index.state_dict_metadata
        self._places: dict[str, set[str]] = {}
        for place, information in index.storage_data.items():
            self._places.setdefault(place.fqn, set()).add(information.relative_path)
        needed = [name for weight in weights(shape) for name in sorted(self._places.get(weight.megatron, ()))]
        self._order = list(dict.fromkeys(needed))
        self._checker = ThreadPoolExecutor(max_workers=1)
        self._checks: dict[str, Future[None]] = {}

    def plan(self, dtype: torch.dtype | None) -> list[PlannedWeight]:
        """What an export writes, in its order; `dtype` None keeps each tensor's own."""
        planned = []
        for weight in weights(self._shape):
            stored, expected = self._stored.get(weight.megatron), megatron_shape(weight, self._shape)
            if not isinstance(stored, TensorStorageMetadata):
                raise InputError(f"checkpoint {self._directory} lacks {weight.megatron}, which hf/config.json asks for")
            if tuple(stored.size) != expected:
                raise InputError(
                    f"checkpoint {self._directory}: {weight.megatron} has shape {list(stored.size)}, but "
                    f"hf/config.json makes it {list(expected)}"
                )
            parts = tuple(
                TensorInfo(name, dtype or stored.properties.dtype, part)
                for name, part in zip(weight.hugging_face, part_shapes(weight, self._shape), strict=True)
            )
            planned.append(PlannedWeight(weight, stored.properties.dtype, parts))
        # Wide elements first, so that every tensor of a file is aligned; nearly all models have one dtype only.
        return sorted(planned, key=lambda entry: -entry.parts[0].dtype.itemsize)

    def load(self, planned: PlannedWeight) -> list[torch.Tensor]:
        """The Hugging Face tensors of one weight, in the order and dtype of its parts.

        They may lie in memory that the call after the next uses again.
        """
        key = planned.weight.megatron
        for name in sorted(self._places[key]):
            self._prove(name)
        whole = self._buffers.take(megatron_shape(planned.weight, self._shape), planned.stored)
        checkpoint.load({key: whole}, storage_reader=self._reader, no_dist=True)
        parts = split(planned.weight, whole, self._shape)
        return [part.to(info.dtype) for part, info in zip(parts, planned.parts, strict=True)]

    def _prove(self, name: str) -> None:
        """Wait until a data file is checked; the one that is needed after it is checked meanwhile."""
        following = self._order.index(name) + 1
        for file in self._order[following - 1 : following + 1]:
            if file in self._files and file not in self._checks:
                self._checks[file] = self._checker.submit(verify_file, self._directory, file, self._files[file])
        if name in self._checks:
            self._checks[name].result()


def write_safetensors(
    source: CheckpointWeights,
    planned: list[PlannedWeight],
    directory: Path,
    max_shard_bytes: int,
    advance: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Write the planned weights as `model.safetensors`, or as shards with an index where they exceed one shard.

    `advance` is told the bytes of each tensor written. Returns size and SHA-256 of each file by name.
    """
    shards = _shards(planned, max_shard_bytes)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE_FILE]
    files: dict[str, dict[str, Any]] = {}
    for name, shard in zip(names, shards, strict=True):
        writer = SafetensorsWriter(directory / name, [part for entry in shard for part in entry.parts])
        with writer, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            for entry, tensors in prefetched(source.load, shard):
                for info, tensor in zip(entry.parts, tensors, strict=True):
                    writer.write(info.name, tensor)
                    advance(info.bytes)
        files[name] = writer.checksum
    if len(shards) > 1:
        weight_map = {
            part.name: name
            for name, shard in zip(names, shards, strict=True)
            for entry in shard
            for part in entry.parts
        }
        total = sum(entry.bytes for entry in planned)
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return files


def _shards(planned: list[PlannedWeight], max_bytes: int) -> list[list[PlannedWeight]]:
    """Weights in order, in groups of at most `max_bytes` (a group of one may be larger)."""
    shards: list[list[PlannedWeight]] = [[]]
    size = 0
    for entry in planned:
        if shards[-1] and size + entry.bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.bytes
    return shards
