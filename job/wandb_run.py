"""A run in Weights & Biases, which may fail as any service may: then training goes on, and says so once."""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from job.directory import RunDirectory
from job.errors import InputError, first_line
from job.files import write_text

Mode = Literal["auto", "online", "offline", "disabled"]
_FINISH_SECONDS = 60.0  # for what is left to upload at the end; a job near its time limit has no more
log = logging.getLogger(__name__)


class WandbRun:
    """The W&B run of a run directory: its id lives there, so a restart goes on in the same run.

    Its horizontal axis is `train/tokens`, set by `define_metric` and never by `step=`, so that steps which a restart
    repeats are kept. Where the server cannot be reached, what is logged stays on the disk, for `wandb sync`.
    """

    def __init__(self, run: RunDirectory, config: dict[str, Any], project: str, name: str | None, mode: Mode) -> None:
        """Open it. Raises `InputError` where W&B refuses the key or the names."""
        id_file = run.path / "wandb-id"
        if not id_file.exists():
            write_text(id_file, uuid.uuid4().hex[:8] + "\n")
        os.environ.setdefault("WANDB_SILENT", "true")
        online = _is_set_up() if mode == "auto" else mode == "online"
        self._run: Any = _start(run, id_file.read_text().strip(), config, project, name, online)

    @property
    def url(self) -> str | None:
        """Where W&B shows the run, if it is online."""
        return getattr(self._run, "url", None)

    def log(self, values: dict[str, Any]) -> None:
        """Log a row of metrics; `values` holds `train/tokens`."""
        with self._may_fail():
            if self._run is not None:
                self._run.log(values)

    def log_table(self, name: str, rows: list[dict[str, Any]], tokens: int) -> None:
        """Show rows with equal keys as a table, at a place on the axis."""
        import wandb

        with self._may_fail():
            if self._run is not None:
                columns: list[str | int] = list(rows[0])
                table = wandb.Table(columns=columns, data=[list(row.values()) for row in rows])
                self._run.log({name: table, "train/tokens": tokens})

    def finish(self) -> None:
        """Upload what is left, for a minute at most."""
        with self._may_fail():
            if self._run is not None:
                self._run.finish()

    @contextlib.contextmanager
    def _may_fail(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: nobody loses a training run over its plots
            self._run = None
            reason = str(error) or type(error).__name__
            log.warning("warning: W&B takes no more rows (%s); metrics.jsonl has them all", reason)


def _start(
    run: RunDirectory, identity: str, config: dict[str, Any], project: str, name: str | None, online: bool
) -> Any:
    import wandb

    def init(online: bool) -> Any:
        return wandb.init(
            project=project,
            name=name or run.path.resolve().name,
            id=identity,
            resume="allow",
            dir=str(run.path),
            config=config,
            mode="online" if online else "offline",
            settings=wandb.Settings(console="off", disable_git=True, save_code=False, finish_timeout=_FINISH_SECONDS),
        )

    try:
        started = init(online)
    except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
        raise InputError(
            f"W&B refuses this run: {first_line(error)}; check WANDB_API_KEY and [tracking], or set tracking.mode to "
            "'offline'"
        ) from None
    except wandb.errors.CommError as error:
        log.warning(
            "warning: W&B does not answer as it should (%s): this attempt is kept in %s; upload it with `wandb sync`",
            first_line(error)[:200],  # a server may send a page
            run.path / "wandb",
        )
        wandb.teardown()  # its service takes the run's id to be in use
        started = init(online=False)
    started.define_metric("train/tokens")
    started.define_metric("*", step_metric="train/tokens")
    return started


def _is_set_up() -> bool:
    """Whether there is a key, and WANDB_MODE does not say otherwise."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "wandb" in netrc.read_text(encoding="utf-8")
    except OSError:
        return False
