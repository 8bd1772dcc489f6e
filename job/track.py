"""Metrics: `metrics.jsonl` is the source of truth, Weights & Biases mirrors it."""

from __future__ import annotations

import contextlib
import json
import time
import tomllib
from pathlib import Path
from typing import Any

from job.directory import RunDirectory
from job.errors import InputError
from job.files import cut_torn_line
from job.wandb_run import Mode, WandbRun


class Tracker:
    """Writes each row to `metrics.jsonl` (flushed at once) and to W&B, from the logging rank only."""

    def __init__(
        self,
        run: RunDirectory,
        attempt: int,
        config: dict[str, Any],
        *,
        project: str,
        name: str | None,
        mode: Mode,
    ) -> None:
        self._attempt, self._path = attempt, run.metrics
        try:
            cut_torn_line(run.metrics)
            self._rows = run.metrics.open("a", encoding="utf-8")
        except OSError as error:
            raise self._cannot_write(error) from None
        self._wandb = None if mode == "disabled" else WandbRun(run, config, project, name, mode)

    @property
    def url(self) -> str | None:
        """Where W&B shows the run, if it is online."""
        return self._wandb.url if self._wandb else None

    def log(self, step: int, values: dict[str, Any], **identity: Any) -> None:
        """Write one row: metrics by name, plus `step`, the attempt, the time and what `identity` adds to the row.

        `values` must hold `train/tokens`, the axis of all plots.
        """
        row = {"step": step, "attempt": self._attempt, "time": round(time.time(), 3), **identity, **values}
        try:
            self._rows.write(json.dumps(row) + "\n")
            self._rows.flush()
        except OSError as error:
            raise self._cannot_write(error) from None
        if self._wandb is not None:
            self._wandb.log(values | {"step": step, "attempt": self._attempt})

    def log_table(self, name: str, rows: list[dict[str, Any]], tokens: int) -> None:
        """Show rows with equal keys, such as generated answers, as a table in W&B, at a place on its axis."""
        if self._wandb is not None and rows:
            self._wandb.log_table(name, rows, tokens)

    def close(self) -> None:
        """Finish the W&B run and close the file."""
        with contextlib.suppress(OSError):  # a row that the disk had no room for, and that `log` has complained about
            self._rows.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self._path}: {error.strerror}; make room and start the same command again")


def read_rows(metrics: Path) -> list[dict[str, Any]]:
    """All rows of a `metrics.jsonl` by step; where steps were redone after a restart, the highest attempt's rows win.

    A step may have one row of each kind: training, validation, checkpoint, evaluation of a task. A last line that a
    kill cut short is left out.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    with open(metrics, encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                break
            row = json.loads(line)
            rows[row["step"], _kind(row)] = row
    return sorted(rows.values(), key=lambda row: row["step"])


def _kind(row: dict[str, Any]) -> str:
    """What a row is about: the first part of its first metric's name; of an evaluation, the task too."""
    first = next((key for key in row if "/" in key and key != "train/tokens"), "")
    return "/".join(first.split("/")[: 2 if first.startswith("eval/") else 1])


def add_evaluation(run: RunDirectory, step: int, tokens: int, values: dict[str, float]) -> None:
    """Add the scores of a checkpoint, named `eval/<task>/<metric>`, to a run's metrics and to its W&B run.

    The run may be training meanwhile, in another process: a row is one write to a file opened for appending. Raises
    `InputError` where it cannot be written.
    """
    row = {"step": step, "time": round(time.time(), 3), **values, "train/tokens": tokens}
    try:
        with run.metrics.open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {run.metrics}: {error.strerror}") from None
    if not (run.path / "wandb-id").exists():
        return
    tracking = tomllib.loads(run.config.read_text(encoding="utf-8"))["tracking"]
    started = WandbRun(run, {}, tracking["project"], tracking.get("name"), tracking["mode"])
    started.log(values | {"train/tokens": tokens, "step": step})
    started.finish()
