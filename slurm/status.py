"""`python -m slurm status RUN_DIR`: a chain's jobs, and how far its training runs are."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from job.directory import RunDirectory
from job.report import duration
from job.state import read_state
from job.track import read_rows
from slurm import record, restarts, scheduler

DESCRIPTION = """Show a chain: its jobs and their states; of training runs also step, tokens, loss, speed, time left,
checkpoint, restarts and why.

  python -m slurm status runs/llama2-7b
"""
_STEPS = 50  # the time left is reckoned from the median of so many
_RESTARTS = 5


def main(arguments: Sequence[str]) -> int:
    """Ask Slurm, read the run directories, print."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm status", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="directory of a chain or of one of its runs")
    options = parser.parse_args(arguments)
    entries = record.read(options.directory)
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("stage", "job", "state", "nodes", "log"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        table.add_row(entry.name, entry.job, *_of_slurm(entry), entry.log)
    console = Console()
    console.print(table)
    for entry in entries:
        if entry.run is not None:
            lines = training(RunDirectory(Path(entry.run)))
            console.print(f"{entry.name}: {entry.run}", highlight=False)
            for line in lines:
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _of_slurm(entry: record.Entry) -> tuple[str, str]:
    """State and nodes of a job, as Slurm knows them."""
    job = scheduler.info(entry.job)
    if job is None:
        return "ended", ""
    state = ", ".join(job.states)
    if job.restarts:
        state += f", restart {job.restarts}"
    if job.reason and (job.unfinished and "PENDING" in job.states):
        state += f" ({job.reason})"
    return state, job.nodes


def training(run: RunDirectory) -> list[str]:
    """What there is to say about a training run, line by line."""
    state = read_state(run)
    if state is None:
        return ["training has not begun", *_endings(run)]
    lines = [f"{state.status}, attempt {state.attempt}" + (f": {state.reason}" if state.reason else "")]
    rows = [row for row in read_rows(run.metrics) if "train/loss" in row] if run.metrics.exists() else []
    if rows:
        row = rows[-1]
        steps = f"{row['step']:,}" + (f" of {state.steps:,}" if state.steps else "")
        parts = [f"step {steps}", f"{row['train/tokens']:,} tokens", f"loss {row['train/loss']:.4f}"]
        if "perf/tokens_per_sec_per_device" in row:
            parts.append(f"{row['perf/tokens_per_sec_per_device']:,.0f} tok/s/device")
        if state.status == "running" and state.steps > row["step"]:
            seconds = [other["perf/step_s"] for other in rows[-_STEPS:] if "perf/step_s" in other]
            if seconds:
                parts.append(f"{duration(statistics.median(seconds) * (state.steps - row['step']))} left")
        parts.append(f"{duration(time.time() - row['time'])} ago")
        lines.append(" | ".join(parts))
    complete = run.complete_checkpoints()
    if complete:
        written = duration(time.time() - (complete[0] / "manifest.json").stat().st_mtime)
        lines.append(f"checkpoint {complete[0]}, written {written} ago")
    else:
        lines.append("no checkpoint yet")
    lines += _endings(run)
    if url := _wandb_url(run, state.attempt):
        lines.append(f"W&B {url}")
    return lines


def _endings(run: RunDirectory) -> list[str]:
    """The newest restarts, and why the last job gave up, if it did."""
    endings = restarts.read(run)
    again = [ending for ending in endings if ending.decision == "requeue"]
    lines = [f"{len(again)} restart{'s' if len(again) > 1 else ''}:"] if again else []
    for ending in again[-_RESTARTS:]:
        avoided = f"; without {', '.join(ending.excluded)} since" if ending.excluded else ""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(ending.time))
        lines.append(f"  {when}, job {ending.job}, checkpoint {ending.checkpoint:,}: {ending.reason}{avoided}")
    if endings and endings[-1].decision == "stop":
        lines.append(f"gave up: {endings[-1].reason}")
    return lines


def _wandb_url(run: RunDirectory, attempt: int) -> str | None:
    """What the first lines of the first rank's log say of W&B."""
    log = run.log_file(attempt, 0)
    if not log.exists():
        return None
    with open(log, encoding="utf-8", errors="replace") as lines:
        for _, line in zip(range(100), lines):
            if line.startswith("W&B: "):
                return line.removeprefix("W&B: ").strip()
    return None
