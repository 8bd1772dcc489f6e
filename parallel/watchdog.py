"""Ends a rank whose steps no longer finish: one that hangs, or waits for another that does.

A collective that waits too long ends with an error after `parallel.timeout_seconds`, which has to allow for the slowest
checkpoint and validation. Steps are far more regular, so that a hang shows much sooner against their median.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

from job.directory import RunDirectory
from job.state import change_state
from job.training import HealthConfig

EXIT_CODE = 75
"""of a rank that ended itself because of a hang (EX_TEMPFAIL of sysexits.h: try again)"""

_STEPS_BEFORE = 3  # steps without which a median says nothing; the first compile, and fill caches
_REMEMBERED = 101


class Watchdog:
    """A thread that ends its process when no step has finished within the limit.

    Before it does, it writes the stacks of all threads to `stacks-rank-00000.txt` beside the rank's log, and the reason
    to `state.json`. It looks away before the first steps have finished, and within `paused()`. USR2 writes the stacks
    too, without ending anything.
    """

    def __init__(self, run: RunDirectory, attempt: int, rank: int, settings: HealthConfig) -> None:
        self._run, self._rank, self._settings = run, rank, settings
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._since: float | None = None
        self._lock, self._closed = threading.Lock(), threading.Event()
        path = run.log_file(attempt, rank).with_name(f"stacks-rank-{rank:05d}.txt")
        self._stacks = path.open("a", encoding="utf-8")
        faulthandler.register(signal.SIGUSR2, file=self._stacks, all_threads=True)
        if settings.hang_factor > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def step(self, seconds: float) -> None:
        """A step has finished, which took so long."""
        with self._lock:
            self._seconds.append(seconds)
            self._since = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Look away while something takes as long as it takes: a validation, a checkpoint."""
        with self._lock:
            self._since = None
        try:
            yield
        finally:
            with self._lock:
                self._since = time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()
        faulthandler.unregister(signal.SIGUSR2)
        self._stacks.close()

    def limit(self) -> float:
        """Seconds that a step may take now; infinite before the first few have finished."""
        if len(self._seconds) < _STEPS_BEFORE:
            return float("inf")
        median = statistics.median(self._seconds)
        return max(self._settings.hang_minimum_seconds, self._settings.hang_factor * median)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._settings.hang_minimum_seconds / 4)):
            with self._lock:
                since, limit = self._since, self.limit()
            if since is not None and time.monotonic() - since > limit:
                self._end(time.monotonic() - since, limit)

    def _end(self, seconds: float, limit: float) -> None:
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        self._stacks.flush()
        usual = statistics.median(self._seconds)
        reason = (
            f"no step for {seconds:.0f} s, though one takes {usual:.2g} s: a rank hangs (limit {limit:.0f} s, by "
            f"health.hang_factor and health.hang_minimum_seconds). Stacks: {self._stacks.name}"
        )
        print(f"error (rank {self._rank}): {reason}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):  # another rank may be writing it, or the disk may be what hangs
            change_state(self._run, status="failed", reason=reason)
        os._exit(EXIT_CODE)
