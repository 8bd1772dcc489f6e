"""One step of reading ahead, so that reading and merging overlap with hashing and writing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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
