"""Progress of a long command: a bar with rate and time left on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich import progress as rich_progress
from rich.table import Column

from data_shards.tasks import Done, Task

_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Phases of known size in bytes. Use as a context manager."""

    def __init__(self) -> None:
        self._bar = (
            rich_progress.Progress(
                rich_progress.TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                rich_progress.BarColumn(bar_width=20, table_column=Column(no_wrap=True)),
                rich_progress.DownloadColumn(table_column=Column(no_wrap=True)),
                rich_progress.TransferSpeedColumn(table_column=Column(no_wrap=True)),
                rich_progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),
                rich_progress.TextColumn(
                    "{task.fields[last]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
                ),
                expand=True,
            )
            if sys.stderr.isatty()
            else None
        )
        self._phase: rich_progress.TaskID | None = None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, name: str, total_bytes: int) -> None:
        """Begin the next phase."""
        self._name, self._total, self._done, self._reused = name, total_bytes, 0, 0
        self._started = self._printed = time.monotonic()
        if self._bar:
            self._phase = self._bar.add_task(name, total=total_bytes, last="")
        else:
            print(f"{name}: {_megabytes(total_bytes)}", file=sys.stderr, flush=True)

    def advance(self, task: Task, done: Done) -> None:
        """Count a finished task."""
        self._done += task.work
        self._reused += task.work if done.reused else 0
        last = task.name + (" (already done)" if done.reused else "")
        if self._bar and self._phase is not None:
            self._bar.update(self._phase, advance=task.work, last=last)
            return
        now = time.monotonic()
        if now - self._printed < _SECONDS_BETWEEN_LINES and self._done < self._total:
            return
        self._printed = now
        rate = (self._done - self._reused) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        print(
            f"{self._name}: {_megabytes(self._done)} of {_megabytes(self._total)} | {rate / 1e6:.1f} MB/s | "
            f"{int(left // 3600)}h{int(left % 3600 // 60):02d}m{int(left % 60):02d}s left | {last}",
            file=sys.stderr,
            flush=True,
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
