"""What every distributed run does with its directory: enter it alone, and find the checkpoint to continue from."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from job import config as configs
from job import restarts
from job.directory import RunDirectory, RunLock
from job.errors import InputError
from job.schedule import warm_up_warning
from job.state import RunState, change_state, write_state
from job.track import Tracker
from job.training import CheckpointConfig
from parallel import ranks


def enter(run: RunDirectory, resources: contextlib.ExitStack, log: logging.Logger) -> int:
    """Lock the run directory on rank 0, number the attempt, and give each rank its log file; collective.

    The console shows what `log` says at INFO on rank 0; the files also hold what ends a rank, traceback included.
    The file `stop` asks a job that Slurm has queued again not to go on; at a first start it asked an earlier job, and
    is removed. `resources` gives the lock back when it is closed.
    """
    problem, attempt = None, 0
    if ranks.is_logging_rank():
        try:
            resources.callback(RunLock(run).release)
            restarts.note_unseen(run)
            if int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0 and run.stop_file.exists():
                raise InputError(f"training was asked to stop by {run.stop_file}; submit it again to go on")
            run.remove_leftovers()
            attempt = run.next_attempt()
            run.log_file(attempt, 0).parent.mkdir(parents=True)
            run.stop_file.unlink(missing_ok=True)
        except InputError as error:
            problem = str(error)
        except OSError as error:
            problem = f"run directory {run.path} cannot be written: {error.strerror}; choose another with 'directory'"
    ranks.raise_together(problem)
    (attempt,) = ranks.from_first_rank(attempt)
    handlers: list[logging.Handler] = [ranks.together(lambda: _log_file(run, attempt))]
    if ranks.is_logging_rank():
        handlers.append(logging.StreamHandler(sys.stdout))
        handlers[1].setLevel(logging.INFO)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers, force=True)
    log.setLevel(logging.DEBUG)

    if ranks.is_logging_rank():
        write_state(run, RunState("running", attempt))

    def keep_error(kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            log.debug("ended by an error", exc_info=error)
            if ranks.is_logging_rank():
                reason = str(error) or type(error).__name__
                if ranks.is_lost_contact(error):
                    reason = "lost another rank, which hangs or has ended"
                with contextlib.suppress(InputError):  # a full disk, say: the error itself counts
                    change_state(run, status="failed", reason=reason)

    resources.push(keep_error)
    return attempt


def _log_file(run: RunDirectory, attempt: int) -> logging.Handler:
    path = run.log_file(attempt, dist.get_rank())
    try:
        return logging.FileHandler(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def start_tracking(
    run: RunDirectory, attempt: int, config: Any, steps: int, resources: contextlib.ExitStack, log: logging.Logger
) -> Tracker | None:
    """On the logging rank: keep the config of this attempt in the run directory, and open its metrics and its W&B run.

    `config` has sections `tracking` and `schedule`; `steps` is the length of the run, of which a warm-up may take too
    much: then the log says so. `resources` closes what was opened. None on the other ranks.
    """
    if not ranks.is_logging_rank():
        return None
    configs.save(config, run.config)
    tracking = config.tracking
    tracker = Tracker(
        run, attempt, configs.as_dict(config), project=tracking.project, name=tracking.name, mode=tracking.mode
    )
    resources.callback(tracker.close)
    change_state(run, wandb=tracker.url)
    if warning := warm_up_warning(steps, config.schedule):
        log.warning("warning: %s", warning)
    return tracker


def publish(run: RunDirectory, path: Path, retention: CheckpointConfig) -> None:
    """Let `latest` name a checkpoint that is whole, then drop those that retention does not keep; collective."""
    ranks.together(lambda: run.point_latest(path) if ranks.is_logging_rank() else None)
    if ranks.is_logging_rank():
        run.drop_old_checkpoints(retention.keep, retention.keep_every_steps)


def newest_whole(
    run: RunDirectory,
    verify: Callable[[Path], dict[str, Any]],
    check: Callable[[Path, dict[str, Any]], None],
    log: logging.Logger,
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a run that `verify` finds whole, with its manifest; None where none was ever written.

    Collective: `verify` must raise its `InputError` on all ranks. Damaged checkpoints that are newer get a name that no
    restart looks at, and `latest` names the one found. `check` may refuse to go on from it: then nothing is moved.
    Raises `InputError` where there are checkpoints, but none whole.
    """
    damaged: list[tuple[Path, str]] = []
    found, expected = ranks.from_first_rank(run.checkpoint_directories(), run.latest.exists())
    for path in found:
        try:
            body = verify(path)
        except InputError as error:
            log.warning("%s; trying the checkpoint before it", error)
            damaged.append((path, str(error)))
            continue
        ranks.everywhere(lambda path=path, body=body: check(path, body))  # type: ignore[misc]
        ranks.together(lambda path=path: _tidy(run, path, [other for other, _ in damaged], log))  # type: ignore[misc]
        return path, body
    if damaged or expected:
        why = damaged[0][1] if damaged else f"{run.latest} names one, but there is none"
        raise InputError(
            f"no checkpoint in {run.checkpoints} is whole ({why}); restore one from a copy, or start again in a "
            "new run directory",
            everywhere=True,
        )
    return None


def _tidy(run: RunDirectory, continued: Path, damaged: list[Path], log: logging.Logger) -> None:
    """On the first rank: move damaged checkpoints out of the way, and let `latest` name the one in use."""
    if ranks.is_logging_rank():
        for path in damaged:
            try:
                log.warning("moved to %s", run.set_aside(path))
            except OSError as error:
                raise InputError(f"cannot move the damaged checkpoint {path}: {error.strerror}") from None
        if not run.latest.exists() or run.latest.read_text().strip() != continued.name:
            run.point_latest(continued)
