"""Where the time of a run goes: throughput, utilisation, and the parts of a step."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
import torch.distributed as dist

from parallel.flops import peak_teraflops

Item = TypeVar("Item")


class Meter:
    """Time and throughput between two console lines."""

    def __init__(self, flops_per_token: float, first_step: int, steps: int) -> None:
        self._flops, self._steps = flops_per_token, steps
        self._peak = peak_teraflops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self._began, self._first_step = time.monotonic(), first_step
        self._busy = 0.0
        self._parts: dict[str, float] = {}
        self._count = self._tokens = 0

    def add(self, parts: dict[str, float], tokens: int) -> None:
        """One step: seconds by part, the whole as `step`, and its tokens over all devices."""
        for name, seconds in parts.items():
            self._parts[name] = self._parts.get(name, 0.0) + seconds
        self._count += 1
        self._tokens += tokens
        self._busy += parts["step"]

    def take(self) -> dict[str, float]:
        """Metrics of the steps since the last call: means, and peaks of memory."""
        values = {f"perf/{name}_s": seconds / self._count for name, seconds in self._parts.items()}
        rate = self._tokens / self._parts["step"] / dist.get_world_size()
        values |= {
            "perf/tokens_per_sec_per_device": rate,
            "perf/tflops_per_device": rate * self._flops / 1e12,
            "perf/goodput": self._busy / max(time.monotonic() - self._began, 1e-9),
        }
        if self._peak:
            values["perf/mfu"] = values["perf/tflops_per_device"] / self._peak
        if torch.cuda.is_available():
            values["mem/allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
            values["mem/reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
        self._parts, self._count, self._tokens = {}, 0, 0
        return values

    def seconds_left(self, step: int) -> float:
        """At the pace of this attempt so far, everything included."""
        pace = (time.monotonic() - self._began) / max(1, step - self._first_step)
        return pace * (self._steps - step)


class Timed(Generic[Item]):
    """An iterator that knows how long its consumer has waited for it."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self.seconds = 0.0

    def __iter__(self) -> Timed[Item]:
        return self

    def __next__(self) -> Item:
        began = time.monotonic()
        try:
            return next(self._items)
        finally:
            self.seconds += time.monotonic() - began
