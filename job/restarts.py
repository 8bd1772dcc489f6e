"""`restarts.jsonl` in a run directory: how each job on it ended, and what was decided."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from job.directory import RunDirectory
from job.errors import InputError
from job.files import as_dataclass, cut_torn_line

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
    """step of the newest checkpoint then; of a start that never came to train, as at the ending before"""
    reason: str
    decision: Action
    excluded: list[str] = field(default_factory=list)
    """nodes that the job was told to avoid from then on"""
    time: float = 0.0
    """seconds since 1970"""


def read(run: RunDirectory) -> list[Ending]:
    """All endings, oldest first. What is no ending is left out with a warning, the last line where a kill cut it short.

    Nobody waits beside a job that is queued again: a damaged line must not end it.
    """
    path = run.path / "restarts.jsonl"
    if not path.exists():
        return []
    endings = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue
        try:
            endings.append(as_dataclass(Ending, json.loads(line)))
        except (TypeError, ValueError):  # ValueError: neither UTF-8 nor JSON
            warn(f"{path}, line {number}, is not a restart and is left out; remove the line")
    return endings


def append(run: RunDirectory, ending: Ending) -> None:
    """Add an ending. Raises `InputError` where it cannot be written."""
    path = run.path / "restarts.jsonl"
    line = json.dumps(asdict(ending) | {"time": round(time.time(), 3)}) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        with open(path, "a", encoding="utf-8") as lines:
            lines.write(line)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def warn(sentence: str) -> None:
    """Say on stderr what is wrong with a file that the job can do without."""
    print(f"warning: {sentence}", file=sys.stderr, flush=True)


def this_job() -> tuple[str, int]:
    """Id of the job that this process belongs to, and how often it was queued again."""
    return os.environ.get("SLURM_JOB_ID", "none"), int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def newest_checkpoint(run: RunDirectory) -> int:
    """Step of the newest complete checkpoint; 0 without one."""
    complete = run.complete_checkpoints()
    return int(complete[0].name.removeprefix("step-")) if complete else 0


def note_unseen(run: RunDirectory) -> list[Ending]:
    """All endings, with one more for each start of this job that ended without `after`: Slurm queued the job again.

    Called as soon as a job begins, so that each is noted with the checkpoint that it has left.
    """
    endings, (job, start) = read(run), this_job()
    seen = {ending.start for ending in endings if ending.job == job}
    for missing in sorted(set(range(start)) - seen):
        reason = "Slurm queued the job again: a node failed, the job was preempted, or somebody asked it to"
        endings.append(Ending(job, missing, None, None, newest_checkpoint(run), reason, "requeue"))
        append(run, endings[-1])
    return endings


def preflight_file(run: Path) -> Path:
    """Where preflight leaves what it found."""
    return run / "slurm" / "preflight.json"


def mistake_file(run: RunDirectory | Path, job: str, start: int) -> Path:
    """Where a rank of a start of a job leaves the sentence that ended it (job.errors.MISTAKE)."""
    return (run if isinstance(run, Path) else run.path) / f".mistake-{job}-{start}"
