"""The run directory: one place that holds everything of a run, and the lock that keeps a second job out of it.

config.toml  metrics.jsonl  checkpoints/step-00001000/  latest  wandb/  logs/attempt-3/rank-00000.log  lock  stop
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from job.errors import InputError
from job.files import write_text


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside a run directory; nothing is created until `open_run`."""

    path: Path

    @property
    def config(self) -> Path:
        """The fully resolved config of the newest attempt."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, flushed line by line: the source of truth of every plot."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def latest(self) -> Path:
        """A file that names the newest complete checkpoint."""
        return self.path / "latest"

    @property
    def stop_file(self) -> Path:
        """Its presence asks for a checkpoint and a clean exit."""
        return self.path / "stop"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of `step` lives."""
        return self.checkpoints / f"step-{step:08d}"

    def complete_checkpoints(self) -> list[Path]:
        """Complete checkpoints, newest first (one that was being written has a hidden name)."""
        found = self.checkpoints.glob("step-*")
        return sorted((path for path in found if (path / "manifest.json").exists()), reverse=True)

    def log_file(self, attempt: int, rank: int) -> Path:
        """Where rank `rank` of attempt `attempt` logs."""
        return self.path / "logs" / f"attempt-{attempt}" / f"rank-{rank:05d}.log"

    def next_attempt(self) -> int:
        """1 for the first start, one more for every restart."""
        numbers = [int(path.name.removeprefix("attempt-")) for path in (self.path / "logs").glob("attempt-*")]
        return max(numbers, default=0) + 1

    def point_latest(self, checkpoint: Path) -> None:
        """Name `checkpoint` as the newest, atomically."""
        write_text(self.latest, checkpoint.name + "\n")


class RunLock:
    """Holds `lock` in a run directory for as long as the process lives; the kernel drops it when the process dies."""

    def __init__(self, run: RunDirectory) -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        self._path = run.path / "lock"
        self._handle: IO[str] = self._path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._handle.seek(0)
            holder = self._handle.read().strip() or "another process"
            self._handle.close()
            raise InputError(
                f"run directory {run.path} is in use by {holder}; wait for it, or choose another directory"
            ) from None
        job = os.environ.get("SLURM_JOB_ID")
        self._handle.seek(0)
        self._handle.truncate()
        self._handle.write(
            f"process {os.getpid()} on {socket.gethostname()}"
            + (f" (job {job})" if job else "")
            + f" since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        )
        self._handle.flush()

    def release(self) -> None:
        """Give the directory back."""
        self._handle.truncate(0)
        self._handle.close()
