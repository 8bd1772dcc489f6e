"""How far a command that moves many bytes has come: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich import progress as rich_progress
from rich.console import Console
from rich.table import Column

_SECONDS_BETWEEN_LINES = 15.0


class ByteProgress:
    """A context manager around the work, on stderr: `start` each phase, `advance` it by every piece done."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        one_line = Column(no_wrap=True)
        columns = (
            rich_progress.TextColumn("{task.description}", table_column=one_line),
            rich_progress.BarColumn(bar_width=20, table_column=one_line),
            rich_progress.DownloadColumn(table_column=one_line),
            rich_progress.TransferSpeedColumn(table_column=one_line),
            rich_progress.TimeRemainingColumn(table_column=one_line),
            rich_progress.TextColumn(
                "{task.fields[note]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
            ),
        )
        self._bar = rich_progress.Progress(*columns, console=console, expand=True) if console.is_terminal else None
        self._phase: rich_progress.TaskID | None = None
        self._name, self._total, self._done, self._skipped, self._shown = "", 0, 0, 0, True

    def __enter__(self) -> ByteProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None and not self._shown:
            self._print_line("")

    def start(self, name: str, total: int) -> None:
        """Begin the next phase, of `total` bytes."""
        if not self._bar and not self._shown:
            self._print_line("")
        self._name, self._total, self._done, self._skipped, self._shown = name, total, 0, 0, False
        self._note = ""
        self._started = self._printed = time.monotonic()
        if self._bar:
            self._phase = self._bar.add_task(name, total=total, note="")
        else:
            print(f"{name} {total / 1e6:,.1f} MB", file=sys.stderr, flush=True)

    def advance(self, count: int, note: str = "", skipped: bool = False) -> None:
        """Another `count` bytes are done; `skipped` ones were there already and say nothing of the rate."""
        self._note = note or self._note  # parts of a piece have none: the last whole one's stays
        self._done += count
        self._skipped += count if skipped else 0
        self._shown = False
        if self._bar and self._phase is not None:
            self._bar.update(self._phase, advance=count, note=self._note)
        elif time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._print_line(self._note)

    def _print_line(self, note: str) -> None:
        self._printed, self._shown = time.monotonic(), True
        seconds = max(self._printed - self._started, 1e-6)
        rate = (self._done - self._skipped) / seconds
        left = ""
        if self._done < self._total and rate > 0:
            remaining = int((self._total - self._done) / rate)
            left = f" | {remaining // 3600}h{remaining // 60 % 60:02d}m{remaining % 60:02d}s left"
        print(
            f"{self._name}: {self._done / 1e6:,.1f} of {self._total / 1e6:,.1f} MB | {rate / 1e6:,.1f} MB/s{left}"
            + (f" | {note}" if note else ""),
            file=sys.stderr,
            flush=True,
        )
