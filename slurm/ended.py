"""`python -m slurm ended RUN_DIR`: has the training of a run ended? A watch asks before it scores."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from job import restarts
from job.directory import RunDirectory
from job.errors import InputError
from job.state import read_state
from slurm import record, scheduler
from slurm.chain import TRAINING

DESCRIPTION = """Has the training of a run ended, so that no job of it waits or runs any more?

  python -m slurm ended runs/llama2-7b && echo ended

Exit code: 0 where it has ended, 1 where it has not, or where nobody can say.
"""


def main(arguments: Sequence[str]) -> int:
    """Answer by the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm ended", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="directory of a training run")
    options = parser.parse_args(arguments)
    try:
        return 0 if ended(RunDirectory(options.directory)) else 1
    except InputError as error:
        print(f"slurm: whether training has ended is unknown: {error}", file=sys.stderr, flush=True)
        return 1


def ended(run: RunDirectory) -> bool:
    """Whether Slurm has no unfinished training job of a run. Raises `InputError` where it does not answer.

    Jobs are those that were submitted, and the one that the run's state names: it may have been submitted by hand.
    """
    here, jobs = run.path.resolve(), set()
    if record.exists(run.path):
        for entry in record.read(run.path):
            if entry.kind in TRAINING and entry.run is not None and Path(entry.run).resolve() == here:
                jobs.add(entry.job)
    with contextlib.suppress(InputError):  # a damaged state names no job
        state = read_state(run)
        if state is not None and state.status != "complete" and state.job is not None:
            jobs.add(state.job)
    if not scheduler.available():
        return _by_its_word(run)
    found = [scheduler.info(job) for job in jobs]
    return not any(job is not None and job.unfinished for job in found)


def _by_its_word(run: RunDirectory) -> bool:
    """Whether the last job on a run has said that it goes no further: in a container without Slurm's commands."""
    endings = restarts.read(run)
    if not endings or endings[-1].decision == "requeue":
        return False
    state = read_state(run)
    return state is None or state.status != "running" or state.time <= endings[-1].time
