"""Metrics: `metrics.jsonl` is the source of truth, Weights & Biases mirrors it."""

from __future__ import annotations

import contextlib
import json
import os
import time
import tomllib
import uuid
from pathlib import Path
from typing import Any, Literal

from job.directory import RunDirectory
from job.errors import InputError
from job.files import cut_torn_line, write_text

Mode = Literal["auto", "online", "offline", "disabled"]


class Tracker:
    """Writes each row to `metrics.jsonl` (flushed at once) and to W&B, from the logging rank only.

    W&B's horizontal axis is `train/tokens`, set by `define_metric` and never by `step=`, so that steps which a restart
    repeats are kept. The W&B run id lives in the run directory: a restart goes on in the same run.
    """

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
        self._wandb: Any = None
        if mode != "disabled":
            self._wandb = _start_wandb(run, config, project, name or run.path.resolve().name, mode)

    @property
    def url(self) -> str | None:
        """Where W&B shows the run, if it is online."""
        return getattr(self._wandb, "url", None)

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
            import wandb

            columns: list[str | int] = list(rows[0])
            table = wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
            self._wandb.log({name: table, "train/tokens": tokens})

    def close(self) -> None:
        """Finish the W&B run and close the file."""
        with contextlib.suppress(OSError):  # a row that the disk had no room for, and that `log` has complained about
            self._rows.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _cannot_write(self, error: OSError) -> InputError:
        return InputError(f"cannot write {self._path}: {error.strerror}; make room and start the same command again")


def _start_wandb(run: RunDirectory, config: dict[str, Any], project: str, name: str, mode: Mode) -> Any:
    import wandb

    id_file = run.path / "wandb-id"
    if not id_file.exists():
        write_text(id_file, uuid.uuid4().hex[:8] + "\n")
    os.environ.setdefault("WANDB_SILENT", "true")
    has_key = bool(os.environ.get("WANDB_API_KEY")) or _netrc_has_wandb()
    started = wandb.init(
        project=project,
        name=name,
        id=id_file.read_text().strip(),
        resume="allow",
        dir=str(run.path),
        config=config,
        mode=("online" if has_key else "offline") if mode == "auto" else mode,
        settings=wandb.Settings(console="off", disable_git=True, save_code=False),
    )
    started.define_metric("train/tokens")
    started.define_metric("*", step_metric="train/tokens")
    return started


def _netrc_has_wandb() -> bool:
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "wandb" in netrc.read_text(encoding="utf-8")
    except OSError:
        return False


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
    name = tracking.get("name") or run.path.resolve().name
    started = _start_wandb(run, {}, tracking["project"], name, tracking["mode"])
    started.log(values | {"train/tokens": tokens, "step": step})
    started.finish()
