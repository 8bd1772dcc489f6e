"""`restarts.jsonl` in a run directory: how each job on it ended, and what was decided."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from job.directory import RunDirectory
from job.errors import InputError

Action = Literal["done", "requeue", "stop"]


@dataclass(frozen=True)
class Ending:
    """How a start of a job ended."""

    job: str
    start: int
    """0 for the job's first start, one more each time that it was queued again"""
    exit_code: int | None
    """None: nobody saw it end"""
    attempt: int | None
    """of the run directory; None where it was not entered"""
    checkpoint: int
    """step of the newest checkpoint then"""
    reason: str
    decision: Action
    excluded: list[str] = field(default_factory=list)
    """nodes that the job was told to avoid from then on"""
    time: float = 0.0
    """seconds since 1970"""


def read(run: RunDirectory) -> list[Ending]:
    """All endings, oldest first; a line that a full disk or a kill cut short is left out."""
    path = run.path / "restarts.jsonl"
    if not path.exists():
        return []
    endings = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            endings.append(Ending(**json.loads(line)))
        except (TypeError, json.JSONDecodeError):
            raise InputError(f"{path}, line {number}, is not a restart; remove the line") from None
    return endings


def append(run: RunDirectory, ending: Ending) -> None:
    """Add an ending. Raises `InputError` where it cannot be written."""
    path = run.path / "restarts.jsonl"
    body = asdict(ending) | {"time": round(time.time(), 3)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(body) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def this_job() -> tuple[str, int]:
    """Id of the job that this process belongs to, and how often it was queued again."""
    return os.environ.get("SLURM_JOB_ID", "none"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def newest_checkpoint(run: RunDirectory) -> int:
    """Step of the newest complete checkpoint; 0 without one."""
    complete = run.complete_checkpoints()
    return int(complete[0].name.removeprefix("step-")) if complete else 0


def note_unseen(run: RunDirectory) -> None:
    """Add an entry for each start of this job that ended without `after`: Slurm itself has queued the job again."""
    job, start = this_job()
    seen = {ending.start for ending in read(run) if ending.job == job}
    for missing in sorted(set(range(start)) - seen):
        reason = "Slurm queued the job again: a node failed, the job was preempted, or somebody asked it to"
        append(run, Ending(job, missing, None, None, newest_checkpoint(run), reason, "requeue"))


def preflight_file(run: Path) -> Path:
    """Where preflight leaves what it found."""
    return run / "slurm" / "preflight.json"
