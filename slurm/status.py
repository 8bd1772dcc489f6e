"""`python -m slurm status RUN_DIR`: a chain's jobs, and how far its training runs are."""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from job import restarts
from job.directory import RunDirectory
from job.errors import InputError
from job.report import duration
from job.state import RunState, read_state
from job.track import read_rows
from slurm import record, scheduler

DESCRIPTION = """Show a chain: its jobs and their states; of training runs also step, tokens, loss, speed, time left,
checkpoint, restarts and why.

  python -m slurm status runs/llama2-7b
"""
_STEPS = 50  # the time left is reckoned from the median of so many
_RESTARTS = 5


def main(arguments: Sequence[str]) -> int:
    """Ask Slurm, read the run directories, print; what cannot be read or asked is a line of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm status", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="directory of a chain or of one of its runs")
    options = parser.parse_args(arguments)
    entries = record.read(options.directory)
    slurm = Slurm()
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("stage", "job", "state", "nodes"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        table.add_row(entry.name, entry.job, *_of_slurm(slurm, entry))
    console = Console()
    console.print(table)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    if slurm.silent:
        say(f"Slurm does not answer, so this is what the run directories say: {slurm.silent}\n")
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        say(f"{entry.name:<{width}}  {entry.log}")
    for entry in entries:
        if entry.run is not None:
            say(f"\n{entry.name}: {entry.run}")
            for line in training(RunDirectory(Path(entry.run)), slurm):
                say(f"  {line}")
    return 0


class Slurm:
    """What Slurm knows of jobs. Where it does not answer, it is asked only once: that may take a while."""

    def __init__(self) -> None:
        self.silent = ""
        """why it does not answer"""
        self._known: dict[str, scheduler.JobInfo | None] = {}

    def job(self, job: str) -> scheduler.JobInfo | None:
        """A job; None where Slurm has forgotten it, or is silent."""
        if job not in self._known and not self.silent:
            try:
                self._known[job] = scheduler.info(job)
            except InputError as error:
                self.silent = str(error)
        return self._known.get(job)


def _of_slurm(slurm: Slurm, entry: record.Entry) -> tuple[str, str]:
    """State and nodes of a job, as Slurm knows them."""
    job = slurm.job(entry.job)
    if job is None:
        return "?" if slurm.silent else "ended", ""
    state = ", ".join(job.states)
    if job.restarts:
        state += f", restart {job.restarts}"
    if job.reason and (job.unfinished and "PENDING" in job.states):
        state += f" ({job.reason})"
    return state, job.nodes


def training(run: RunDirectory, slurm: Slurm) -> list[str]:
    """What there is to say about a training run, line by line."""
    endings = restarts.read(run)
    try:
        state = read_state(run)
    except InputError as error:
        return [str(error), *_progress(run, None, False), *_endings(endings)]
    if state is None:
        return ["training has not begun", *_endings(endings)]
    told, at_work = _state(state, endings, slurm)
    lines = [told, *_progress(run, state, at_work), *_endings(endings)]
    if state.wandb:
        lines.append(f"W&B {state.wandb}")
    return lines


def _state(state: RunState, endings: Sequence[restarts.Ending], slurm: Slurm) -> tuple[str, bool]:
    """How a run is, and whether it is at work: one that was killed has left `running`, and only Slurm knows better."""
    reason = f": {state.reason}" if state.reason else ""
    if state.status != "running" or state.job is None:
        return f"{state.status}, attempt {state.attempt}{reason}", state.status == "running"
    job = slurm.job(state.job)
    if slurm.silent:
        return f"running when it last wrote, attempt {state.attempt}", False
    over = any(ending.job == state.job and ending.time >= state.time for ending in endings)
    if job is not None and job.unfinished and not over and "PENDING" not in job.states:
        return f"running, attempt {state.attempt}", True
    follows = "begins again" if job is not None and job.unfinished else "has ended"
    return f"attempt {state.attempt} ended without a last word; job {state.job} {follows}", False


def _progress(run: RunDirectory, state: RunState | None, at_work: bool) -> list[str]:
    """Its newest step and its newest checkpoint."""
    lines = []
    try:
        if rows := [row for row in read_rows(run.metrics) if "train/loss" in row] if run.metrics.exists() else []:
            lines.append(_newest(rows, state.steps if state else 0, at_work))
    except (KeyError, TypeError, ValueError, AttributeError):
        lines.append(f"{run.metrics} is damaged")
    complete = run.complete_checkpoints()
    if complete:
        written = duration(time.time() - (complete[0] / "manifest.json").stat().st_mtime)
        lines.append(f"checkpoint {complete[0]}, written {written} ago")
    else:
        lines.append("no checkpoint yet")
    return lines


def _newest(rows: Sequence[dict[str, Any]], all_steps: int, at_work: bool) -> str:
    """The newest of a run's rows, and the time left."""
    row = rows[-1]
    steps = f"{row['step']:,}" + (f" of {all_steps:,}" if all_steps else "")
    parts = [f"step {steps}", f"{row['train/tokens']:,} tokens", f"loss {row['train/loss']:.4f}"]
    if "perf/tokens_per_sec_per_device" in row:
        parts.append(f"{row['perf/tokens_per_sec_per_device']:,.0f} tok/s/device")
    if at_work and all_steps > row["step"]:
        seconds = [other["perf/step_s"] for other in rows[-_STEPS:] if "perf/step_s" in other]
        if seconds:
            parts.append(f"{duration(statistics.median(seconds) * (all_steps - row['step']))} left")
    return " | ".join([*parts, f"{duration(time.time() - row['time'])} ago"])


def _endings(endings: Sequence[restarts.Ending]) -> list[str]:
    """The newest restarts, and why the last job to end gave up, if it did."""
    again = [ending for ending in endings if ending.decision == "requeue"]
    lines = [f"{len(again)} restart{'s' if len(again) > 1 else ''}:"] if again else []
    for ending in again[-_RESTARTS:]:
        avoided = f"; without {', '.join(ending.excluded)} since" if ending.excluded else ""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(ending.time))
        lines.append(f"  {when}, job {ending.job}, checkpoint {ending.checkpoint:,}: {ending.reason}{avoided}")
    if endings and endings[-1].decision == "stop":
        lines.append(f"job {endings[-1].job} gave up: {endings[-1].reason}")
    return lines
