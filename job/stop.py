"""Being asked to stop: signals and the file `stop` set a flag; the loop reads it between steps."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

# Slurm sends USR1 or TERM before a limit (as its scripts ask it to); Ctrl-C asks the same of a terminal.
_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A flag that a signal, a file or the end of torchrun raises. A second Ctrl-C interrupts at once.

    torchrun ends its processes when it is told to end; killed outright it leaves them behind, as does its service
    manager. They notice by their new parent.
    """

    def __init__(self, stop_file: Path) -> None:
        self._stop_file = stop_file
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        self.reason: str | None = None
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = f"signal {signal.Signals(number).name}"

    def requested(self) -> bool:
        """Whether this process has been asked to stop; looks for the stop file each time."""
        if self.reason is None and self._stop_file.exists():
            self.reason = f"file {self._stop_file}"
        if self.reason is None and self._launcher is not None and os.getppid() != self._launcher:
            self.reason = "torchrun has ended"
        return self.reason is not None
