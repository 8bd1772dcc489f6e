"""How far a task is, told while it runs: its process counts, the one that shows progress hears of it."""

from __future__ import annotations

from collections.abc import Callable

_done = 0
_listener: Callable[[int], None] | None = None


def listen(listener: Callable[[int], None] | None) -> None:
    """From now on call `listener` with every count that this process reports; None ends that."""
    global _listener
    _listener = listener


def report(count: int) -> None:
    """Another `count` bytes of the task that this process runs are done."""
    global _done
    _done += count
    if _listener is not None:
        _listener(count)


def total() -> int:
    """Bytes reported since this process started."""
    return _done
