"""`python -m slurm after RUN_DIR`: a training job has ended; is it done, to be queued again, or to be left alone?

The run directory tells: a file that a rank has left says what mistake ended it, `state.json` how training saw its end,
checkpoints how far it came, `restarts.jsonl` what happened before; what is damaged there says nothing. Printed is one
word, `done`, `stop` or `requeue` (and nodes to avoid), which the job's script acts on; the reason goes to the log and
to `restarts.jsonl`.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from job import restarts
from job.directory import RunDirectory
from job.errors import InputError
from job.files import read_json
from job.restarts import Ending
from job.state import RunState, read_state
from slurm.cluster import RestartConfig

USERS_MISTAKE = 2
"""exit code of a program that could not do what it was asked (job.errors)"""
# parallel.run and parallel.ranks say so of an error that another rank has caused
_LOST_CONTACT = re.compile(r"(lost|for) another rank\b")
_CLOCK_SECONDS = 2.0  # file times and clocks of two nodes may differ by so much


@dataclass(frozen=True)
class Decision:
    """What is to happen, and why."""

    action: restarts.Action
    reason: str
    excluded: tuple[str, ...] = ()


def main(arguments: Sequence[str]) -> int:
    """Look, decide, keep it, print it."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm after", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = RestartConfig()
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of the training job")
    parser.add_argument("--exit-code", type=int, required=True, help="of preflight or training")
    parser.add_argument("--started", type=float, required=True, help="when this start of the job began (date +%%s)")
    parser.add_argument(
        "--without-progress", type=int, default=defaults.without_progress, help="restarts without a newer checkpoint"
    )
    parser.add_argument(
        "--exclude-nodes", type=int, default=defaults.exclude_nodes, help="most nodes to exclude after preflight"
    )
    options = parser.parse_args(arguments)
    run = RunDirectory(options.run)
    job, start = restarts.this_job()
    history = [ending for ending in restarts.note_unseen(run) if ending.job == job]
    state = _state(run, job, options.started)
    checkpoint = restarts.newest_checkpoint(run)
    if state is None and history:
        checkpoint = history[-1].checkpoint  # what is newer is another job's: this start never came to train
    decision = decide(
        exit_code=options.exit_code,
        state=state,
        mistake=_mistake(run, job, start),
        checkpoint=checkpoint,
        stop_asked=run.stop_file.exists(),
        bad_nodes=_bad_nodes(options.run, job, start),
        history=history,
        limits=RestartConfig(without_progress=options.without_progress, exclude_nodes=options.exclude_nodes),
    )
    attempt = state.attempt if state else None
    restarts.append(
        run,
        Ending(
            job, start, options.exit_code, attempt, checkpoint, decision.reason, decision.action, [*decision.excluded]
        ),
    )
    consequence = {"done": "complete", "stop": "the job ends here", "requeue": "the job is queued again"}
    print(f"slurm: {decision.reason}: {consequence[decision.action]}", file=sys.stderr, flush=True)
    print(" ".join([decision.action, *([",".join(decision.excluded)] if decision.excluded else [])]))
    return 0


def decide(
    *,
    exit_code: int,
    state: RunState | None,
    mistake: str | None,
    checkpoint: int,
    stop_asked: bool,
    bad_nodes: dict[str, str],
    history: Sequence[Ending],
    limits: RestartConfig,
) -> Decision:
    """What follows from how a job ended.

    Args:
        exit_code: of preflight or training: the highest of all ranks', 128 + N where signal N ended one.
        state: how training saw its end; None where it did not get as far as that in this start of the job.
        mistake: the sentence of the first rank that could not do what it was asked.
        checkpoint: step of the newest complete checkpoint of this job's own starts.
        stop_asked: whether the run directory has a file `stop`.
        bad_nodes: what preflight has found, by node.
        history: how earlier starts of this job ended.
        limits: when to give up.
    """
    if state is not None and state.status == "complete":
        return Decision("done", f"training is complete ({state.steps:,} steps)")
    if stop_asked:
        return Decision("stop", "training was asked to stop by the file 'stop'")
    if mistake is not None and not _LOST_CONTACT.search(mistake):
        return Decision("stop", mistake)  # whatever the exit code: srun ends the other ranks, and tells their signal
    reason = _reason(exit_code, state)
    if bad_nodes:
        reason = "; ".join(f"{node}: {what}" for node, what in sorted(bad_nodes.items()))
        before = {node for ending in history for node in ending.excluded}
        if again := before & bad_nodes.keys():
            names = ", ".join(sorted(again))
            said = f"Slurm was told to leave out {names}, and did not; use --exclude in the cluster file's directives"
            return Decision("stop", f"{reason}; {said}")
        excluded = before | bad_nodes.keys()
        if len(excluded) > limits.exclude_nodes:
            return Decision("stop", f"{reason}; {len(excluded)} bad nodes, and {limits.exclude_nodes} may be excluded")
        return Decision("requeue", reason, tuple(sorted(bad_nodes)))
    if exit_code == USERS_MISTAKE and mistake is None and not _LOST_CONTACT.search(reason):
        return Decision("stop", reason)
    if exit_code == 0 and state is None:
        return Decision("stop", "training ended without a word in state.json")
    without = 0
    for ending in reversed(history):
        if ending.decision != "requeue" or ending.checkpoint != checkpoint:
            break
        # not those that went on without a bad node, nor those that Slurm itself queued again
        without += not ending.excluded and ending.exit_code is not None
    if without >= limits.without_progress:
        return Decision("stop", f"no newer checkpoint than step {checkpoint:,} in {without} restarts; now: {reason}")
    return Decision("requeue", reason)


def _reason(exit_code: int, state: RunState | None) -> str:
    """How the job ended, in words."""
    if state is not None and state.status == "stopped":
        return f"stopped at step {state.step:,} ({state.reason or 'as asked'})"
    if state is not None and state.status == "failed":
        return f"{state.reason or 'failed'} (exit code {exit_code})"
    where = "before training began" if state is None else "without a last word"
    if exit_code > 128 and exit_code - 128 in set(signal.Signals):
        return f"a process was ended by {signal.Signals(exit_code - 128).name} {where}"
    return f"a process ended with exit code {exit_code} {where}"


def _state(run: RunDirectory, job: str, started: float) -> RunState | None:
    """How training saw the end of this start of the job; None where it never got as far as a state of its own."""
    try:
        state = read_state(run)
    except InputError as error:
        restarts.warn(str(error))
        return None
    # else it is of another job, or of an earlier start
    return state if state and state.job == job and state.time >= started - _CLOCK_SECONDS else None


def _mistake(run: RunDirectory, job: str, start: int) -> str | None:
    """The sentence that a rank has left in this start of the job; the file is removed."""
    path = restarts.mistake_file(run, job, start)
    try:
        sentence = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    with contextlib.suppress(OSError):
        path.unlink()
    return sentence or "a mistake that the job's log names"  # on a full disk the file is empty


def _bad_nodes(run: Path, job: str, start: int) -> dict[str, str]:
    """What preflight found in this start of the job, by node."""
    path = restarts.preflight_file(run)
    if not path.exists():
        return {}
    try:
        body = read_json(path)
        return dict(body["bad_nodes"]) if (body["job"], body["start"]) == (job, start) else {}
    except InputError as error:
        restarts.warn(str(error))
    except (KeyError, TypeError, ValueError):
        restarts.warn(f"{path} is not what preflight writes, and is left out; remove it")
    return {}
