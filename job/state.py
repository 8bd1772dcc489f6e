"""`state.json` in a run directory: whether the run is at work, complete, asked to stop or failed, and why.

What restarts a job reads it; a run that was killed outright leaves `running`.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from typing import Literal

from job.directory import RunDirectory
from job.errors import InputError
from job.files import as_dataclass, read_json, write_json

Status = Literal["running", "complete", "stopped", "failed"]


@dataclass(frozen=True)
class RunState:
    """How far a run is, and how its last attempt ended."""

    status: Status
    attempt: int
    step: int = 0
    steps: int = 0
    """steps of the whole run"""
    tokens: int = 0
    checkpoint: int | None = None
    """step of the newest checkpoint"""
    reason: str | None = None
    """why it was stopped or failed"""
    job: str | None = None
    """Slurm's id of the job"""
    wandb: str | None = None
    """where W&B shows the run, if it is online"""
    host: str = ""
    """of the rank that wrote this"""
    time: float = 0.0
    """seconds since 1970"""


def read_state(run: RunDirectory) -> RunState | None:
    """The state that a run left; None where none was ever written. Raises `InputError` where it is damaged."""
    path = run.path / "state.json"
    if not path.exists():
        return None
    try:
        return as_dataclass(RunState, read_json(path))
    except TypeError as error:
        raise InputError(f"{path} is not the state of a run ({error}); remove it") from None


def write_state(run: RunDirectory, state: RunState) -> None:
    """Replace the state, atomically; job, host and time are filled in."""
    now = replace(state, job=os.environ.get("SLURM_JOB_ID"), host=socket.gethostname(), time=round(time.time(), 3))
    write_json(run.path / "state.json", asdict(now))


def change_state(run: RunDirectory, **changes: object) -> None:
    """Replace some fields of the state, if there is one."""
    if (state := read_state(run)) is not None:
        write_state(run, replace(state, **changes))  # type: ignore[arg-type]
