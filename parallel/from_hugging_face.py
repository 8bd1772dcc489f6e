"""Hugging Face weights become a Megatron distributed checkpoint, a few tensors at a time.

torch.distributed.checkpoint does the bookkeeping: a planner says what will be written before any tensor is read, and
makes each piece when it is asked for; a writer puts it in a file, hashes it on the way, and forgets it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from job.errors import InputError
from job.files import HashingWriter
from parallel.prefetch import TwoBuffers, prefetched
from parallel.safetensors_stream import SafetensorsReader
from parallel.shape import ModelShape
from parallel.weights import Weight, megatron_shape, merge, part_shapes, weights

# A new file is begun beyond this size: export checks one file while it writes what came from the one before.
_FILE_BYTES = 1 << 30

# Derived from the config, yet stored by some old checkpoints.
_IGNORED_SUFFIX = "rotary_emb.inv_freq"


def check_weights(reader: SafetensorsReader, shape: ModelShape) -> None:
    """Compare what a model directory holds with what its config asks for.

    Raises `InputError` naming missing weights, wrong shapes, weights that the config does not know, and parts of one
    stored tensor that differ in dtype. Reads no data, except where both tied embeddings are stored.
    """
    wanted = {
        name: expected
        for weight in weights(shape)
        for name, expected in zip(weight.hugging_face, part_shapes(weight, shape), strict=True)
    }
    if missing := [name for name in wanted if name not in reader.tensors]:
        raise InputError(f"{reader.directory} lacks {_some(missing)}, which its config.json asks for; copy it again")
    for name, expected in wanted.items():
        if reader.tensors[name].shape != expected:
            found = list(reader.tensors[name].shape)
            raise InputError(
                f"{reader.directory}: {name} has shape {found}, but config.json makes it {list(expected)}; "
                "config and weights belong to different models"
            )
    extra = [name for name in reader.tensors if name not in wanted and not name.endswith(_IGNORED_SUFFIX)]
    if shape.tied_embeddings and "lm_head.weight" in extra:
        if not torch.equal(reader.load("lm_head.weight"), reader.load("model.embed_tokens.weight")):
            raise InputError(
                f"{reader.directory}: config.json ties the embeddings, but lm_head.weight differs from "
                "model.embed_tokens.weight; set tie_word_embeddings to false"
            )
        extra.remove("lm_head.weight")
    if extra:
        raise InputError(f"{reader.directory} holds {_some(extra)}, which a {shape.family} model does not have")
    for weight in weights(shape):
        if len({reader.tensors[name].dtype for name in weight.hugging_face}) > 1:
            raise InputError(f"{reader.directory}: {_some(list(weight.hugging_face))} differ in dtype; convert them")


def write_weights(
    reader: SafetensorsReader, shape: ModelShape, tensor_parallel: int, directory: Path, advance: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """Write all weights into `directory` in torch's distributed checkpoint format, cut for `tensor_parallel` ranks.

    `advance` is told the bytes of each piece written. Returns size and SHA-256 of the data files by name. Needs no
    process group; memory holds two tensors of the checkpoint at a time.
    """
    writer = _StreamingWriter(directory, advance)
    planner = _StreamingPlanner(reader, tensor_parallel)
    state = {weight.megatron: (weight, shape) for weight in weights(shape)}
    checks_wanted = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # the manifest's SHA-256 is the stronger check, and is paid anyway
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            checkpoint.save(state, storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as error:  # torch's wrapping of what happened; it is no Exception
        raise next(iter(error.failures.values()))[0] from None
    finally:
        torch.serialization.set_crc32_options(checks_wanted)
    return writer.files


class _StreamingPlanner(DefaultSavePlanner):
    """Plans from names and shapes alone; reads and merges a weight when its first piece is asked for."""

    def __init__(self, reader: SafetensorsReader, tensor_parallel: int) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._reader = reader
        self._tensor_parallel = tensor_parallel
        self._whole: tuple[str, torch.Tensor] | None = None
        self._whole_buffers = TwoBuffers()
        self._piece_buffers = TwoBuffers()
        self._part_buffers = TwoBuffers()

    def create_local_plan(self) -> SavePlan:
        """One write item per piece; pieces of a weight follow each other."""
        self.plan = SavePlan(
            [item for weight, shape in self.state_dict.values() for item in self._pieces(weight, shape)]
        )
        return self.plan

    def _pieces(self, weight: Weight, shape: ModelShape) -> Iterator[WriteItem]:
        size = torch.Size(megatron_shape(weight, shape))
        dtype = self._reader.tensors[weight.hugging_face[0]].dtype
        offset = [0] * len(size)
        for index, length in enumerate(self._cuts(weight, size)):
            lengths = list(size)
            if weight.tensor_dimension is not None:
                lengths[weight.tensor_dimension] = length
            chunk = ChunkStorageMetadata(torch.Size(offset), torch.Size(lengths))
            yield WriteItem(
                MetadataIndex(weight.megatron, offset, index),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, TensorProperties(dtype=dtype), size),
            )
            if weight.tensor_dimension is not None:
                offset[weight.tensor_dimension] += length

    def _cuts(self, weight: Weight, size: torch.Size) -> list[int]:
        """Lengths of the pieces along the tensor-parallel dimension: what each rank will read is whole pieces."""
        if weight.tensor_dimension is None:
            return [size[0]]
        # a rank's part of the merged gate and up projections is a part of each
        count = self._tensor_parallel * (2 if weight.kind == "gate_up" else 1)
        return [size[weight.tensor_dimension] // count] * count

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        """The piece itself, contiguous and with storage of its own size; valid until the piece after the next."""
        assert write_item.tensor_data is not None
        name, chunk = write_item.index.fqn, write_item.tensor_data.chunk
        if self._whole is None or self._whole[0] != name:
            self._whole = None  # let go of the last weight before the next is read
            self._whole = name, self._merged(*self.state_dict[name])
        piece = self._whole[1]
        for dimension, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            piece = piece.narrow(dimension, start, length)
        if not piece.is_contiguous():
            piece = self._piece_buffers.take(tuple(piece.shape), piece.dtype).copy_(piece)
        if piece.untyped_storage().nbytes() != piece.nbytes:
            # torch.save writes all of a tensor's storage; through numpy the same memory becomes one of the piece alone
            own = torch.from_numpy(piece.view(-1).view(torch.uint8).numpy())
            piece = own.view(piece.dtype).view(piece.shape)
        return piece

    def _merged(self, weight: Weight, shape: ModelShape) -> torch.Tensor:
        names, size = weight.hugging_face, megatron_shape(weight, shape)
        whole = self._whole_buffers.take(size, self._reader.tensors[names[0]].dtype)
        if len(names) == 1 and self._reader.tensors[names[0]].shape == size:
            return self._reader.load(names[0], whole)
        return merge(weight, map(self._load_part, names), shape, whole)

    def _load_part(self, name: str) -> torch.Tensor:
        info = self._reader.tensors[name]
        return self._reader.load(name, self._part_buffers.take(info.shape, info.dtype))


class _StreamingWriter(checkpoint.FileSystemWriter):
    """torch's writer, except that it keeps no tensor: the stock one holds all of a file's until the file is closed."""

    def __init__(self, directory: Path, advance: Callable[[int], None]) -> None:
        super().__init__(directory)
        self.files: dict[str, dict[str, Any]] = {}
        self._advance = advance

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the items in order; a result says in which file, where and how long each is."""
        results: list[WriteResult] = []
        for number, items in enumerate(_file_groups(plan.items)):
            name = f"__0_{number}.distcp"
            with open(Path(self.path) / name, "wb") as handle:
                stream: Any = HashingWriter(handle)
                for item, tensor in prefetched(planner.resolve_data, items):
                    offset = stream.tell()
                    torch.save(tensor, stream)
                    length = stream.tell() - offset
                    results.append(WriteResult(item.index, length, _StorageInfo(name, offset, length)))
                    self._advance(length)
                stream.flush()
                os.fsync(handle.fileno())
            self.files[name] = {"sha256": stream.hexdigest(), "bytes": stream.bytes_written}
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future


def _file_groups(items: list[WriteItem]) -> Iterator[list[WriteItem]]:
    """Items in order, those of one file together."""
    group: list[WriteItem] = []
    size = 0
    for item in items:
        assert item.tensor_data is not None
        group.append(item)
        size += item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
        if size >= _FILE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
