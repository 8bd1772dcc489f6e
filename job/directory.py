"""The run directory: one place that holds everything of a run, and the lock that keeps a second job out of it.

config.toml  metrics.jsonl  checkpoints/step-00001000/  latest  wandb/  logs/attempt-3/rank-00000.log  lock  stop
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from job.errors import InputError
from job.files import write_text


def check_directory(directory: str, purpose: str) -> None:
    """Raise `ValueError` where a config's key 'directory' is unset, or has a name that a shell takes for another."""
    if not directory:
        raise ValueError(f"key 'directory' is missing: say where {purpose}")
    if directory.startswith("~"):
        raise ValueError(f"directory is '{directory}', and nothing stands for ~ here; write the path in full")
    if directory.startswith("-"):
        raise ValueError(f"directory is '{directory}', which programs take for an option; choose another name")


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

    def checkpoint_directories(self) -> list[Path]:
        """Directories of checkpoints, newest first, damaged ones too (one that was being written has a hidden name)."""
        found = [path for path in self.checkpoints.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)

    def complete_checkpoints(self) -> list[Path]:
        """Those that were finished, newest first."""
        return [path for path in self.checkpoint_directories() if (path / "manifest.json").exists()]

    def remove_leftovers(self) -> None:
        """Remove what a killed attempt was writing or removing; only for the holder of the lock."""
        for path in [*self.checkpoints.glob(".step-*"), *self.path.glob(".*.tmp")]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def remove_checkpoint(self, path: Path) -> None:
        """Remove a checkpoint; one that is removed halfway has a hidden name and is never taken for a whole one."""
        hidden = path.with_name(f".{path.name}.removing")
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def drop_old_checkpoints(self, keep: int, keep_every_steps: int) -> None:
        """Remove all but the newest `keep` (0: none is removed) and those of steps divisible by `keep_every_steps`."""
        for path in self.complete_checkpoints()[keep:] if keep else []:
            if not (keep_every_steps and int(path.name.removeprefix("step-")) % keep_every_steps == 0):
                with contextlib.suppress(OSError):  # it is tried again after the next checkpoint
                    self.remove_checkpoint(path)

    def set_aside(self, path: Path) -> Path:
        """Give a damaged checkpoint a name that no restart looks at; returns where it lies now."""
        aside = path.with_name(f"damaged-{path.name}")
        if aside.exists():
            shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        return aside

    def log_file(self, attempt: int, rank: int) -> Path:
        """Where rank `rank` of attempt `attempt` logs."""
        return self.path / "logs" / f"attempt-{attempt}" / f"rank-{rank:05d}.log"

    def next_attempt(self) -> int:
        """1 for the first start, one more for every restart."""
        names = [path.name.removeprefix("attempt-") for path in (self.path / "logs").glob("attempt-*")]
        return max((int(name) for name in names if name.isdecimal()), default=0) + 1

    def point_latest(self, checkpoint: Path) -> None:
        """Name `checkpoint` as the newest, atomically."""
        write_text(self.latest, checkpoint.name + "\n")


class RunLock:
    """Holds `lock` in a run directory for as long as the process lives; the kernel drops it when the process dies.

    Raises `InputError` where another process holds it (named with its host), where the directory cannot be written, and
    where its file system has no locks.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._path = run.path / "lock"
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            self._handle: IO[str] = self._path.open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"run directory {run.path} cannot be written ({error.strerror}); choose another with 'directory'"
            ) from None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._handle.seek(0)
            holder = self._handle.read().strip() or "another process"
            self._handle.close()
            raise InputError(
                f"run directory {run.path} is in use by {holder}; wait for it, or choose another directory"
            ) from None
        except OSError as error:
            self._handle.close()
            raise InputError(
                f"run directory {run.path} cannot be locked ({error.strerror}); mount its file system with locks (on "
                "Lustre: option 'flock'), or choose a directory on another one with 'directory'"
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
