"""A checkpoint reader that puts stored bytes where they belong, without torch.load's copy of every tensor."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import IO

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from job.errors import InputError
from parallel.prefetch import TwoBuffers
from parallel.safe_reader import SafeMetadataReader


class DirectReader(SafeMetadataReader):
    """torch's reader, except that a piece wanted whole is read from the file straight into its place.

    Loaded under FakeTensorMode, a tensor tells dtype, strides and where its bytes lie without their being read
    (https://docs.pytorch.org/docs/stable/notes/serialization.html). What is not wanted whole takes torch's way.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._buffers = TwoBuffers()

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the planner's tensors; raises `InputError` where a file ends early."""
        rest = []
        for name in {self.storage_data[item.storage_index].relative_path for item in plan.items}:
            items = [item for item in plan.items if self.storage_data[item.storage_index].relative_path == name]
            with open(Path(self.path) / name, "rb") as handle:
                rest += [item for item in items if not self._read_directly(handle, item, planner)]
        return super().read_data(dataclasses.replace(plan, items=rest), planner)

    def _read_directly(self, handle: IO[bytes], item: ReadItem, planner: LoadPlanner) -> bool:
        if item.type is not LoadItemType.TENSOR:
            return False
        place: _StorageInfo = self.storage_data[item.storage_index]
        with FakeTensorMode():
            stored = torch.load(self._slice_file(handle, place), weights_only=True)
        target = planner.resolve_tensor(item).detach()
        whole = stored.shape == target.shape and not any(item.storage_offsets) and stored.storage_offset() == 0
        if not (whole and stored.is_contiguous() and stored.dtype == target.dtype):
            return False
        landing = target if target.is_contiguous() else self._buffers.take(tuple(target.shape), target.dtype)
        handle.seek(place.offset + stored.untyped_storage()._checkpoint_offset)
        wanted = landing.view(-1).view(torch.uint8).numpy()
        if handle.readinto(wanted) != wanted.nbytes:  # type: ignore[attr-defined]
            raise InputError(f"{handle.name} ends within {item.storage_index.fqn}; copy the checkpoint again")
        if landing is not target:
            target.copy_(landing)
        planner.commit_tensor(item, target)
        return True
