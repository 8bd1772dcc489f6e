"""How far a command that moves many bytes has come: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_SECONDS_BETWEEN_LINES = 10.0


class ByteProgress:
    """A context manager around the work; `advance` it by every piece. Shows on stderr."""

    def __init__(self, description: str, total: int) -> None:
        self._description = description
        self._total = total
        self._done = 0
        console = Console(stderr=True)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bar = (
            Progress(TextColumn("{task.description}"), *columns, console=console) if console.is_terminal else None
        )

    def __enter__(self) -> ByteProgress:
        self._start = self._last_line = time.monotonic()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._description, total=self._total)
        return self

    def advance(self, count: int) -> None:
        """Another `count` bytes are done."""
        self._done += count
        if self._bar is not None:
            self._bar.advance(self._task, count)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._print_line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        seconds = max(self._last_line - self._start, 1e-6)
        print(
            f"{self._description}: {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB "
            f"in {seconds:.0f} s ({self._done / 1e6 / seconds:,.0f} MB/s)",
            file=sys.stderr,
            flush=True,
        )
