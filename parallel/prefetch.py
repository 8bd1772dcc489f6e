"""One step of reading ahead, so that reading and merging overlap with hashing and writing, in memory used again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def prefetched(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """Each item with `function(item)`, in order; the next result is made in a thread while the caller uses one.

    At most two results exist at a time. What `function` raises is raised here, at its item.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = None
        for item in items:
            following = item, thread.submit(function, item)
            if waiting is not None:
                result = waiting[0], waiting[1].result()
                waiting = following
                yield result
                del result
            else:
                waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


class TwoBuffers:
    """Memory for results of a `prefetched` function: two buffers in turn, since two results exist at a time.

    Fresh memory for every tensor costs more than the copy into it, for the kernel clears each page first.
    """

    def __init__(self) -> None:
        self._buffers = [torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.uint8)]

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, valid until the call after the next."""
        size = math.prod(shape) * dtype.itemsize
        self._buffers.reverse()
        if self._buffers[0].nbytes < size:
            self._buffers[0] = torch.empty(0, dtype=torch.uint8)  # let go of the small one first
            self._buffers[0] = torch.empty(size, dtype=torch.uint8)
        return self._buffers[0][:size].view(dtype).view(shape)
