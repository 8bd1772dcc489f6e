"""`python -m slurm after RUN_DIR`: a training job has ended; is it done, to be queued again, or to be left alone?

The run directory tells: `state.json` says how training saw its end, checkpoints say how far it came, `restarts.jsonl`
what happened before. Printed is one word, `done`, `stop` or `requeue` (and nodes to avoid), which the job's script acts
on; the reason goes to the log and to `restarts.jsonl`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from job.directory import RunDirectory
from job.errors import InputError
from job.files import read_json
from job.state import RunState, read_state
from slurm import restarts
from slurm.cluster import RestartConfig
from slurm.restarts import Ending

USERS_MISTAKE = 2
"""exit code of a program that could not do what it was asked (job.errors)"""
_LOST_CONTACT = "lost another rank"  # parallel.run says so of an error that another rank has caused
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
    restarts.note_unseen(run)
    state = read_state(run)
    if state is not None and (state.job != job or state.time < options.started - _CLOCK_SECONDS):
        state = None  # of another job, or of an earlier start: this one never got as far
    checkpoint = restarts.newest_checkpoint(run)
    decision = decide(
        exit_code=options.exit_code,
        state=state,
        checkpoint=checkpoint,
        stop_asked=run.stop_file.exists(),
        bad_nodes=_bad_nodes(options.run, job, start),
        history=[ending for ending in restarts.read(run) if ending.job == job],
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
        checkpoint: step of the newest complete checkpoint.
        stop_asked: whether the run directory has a file `stop`.
        bad_nodes: what preflight has found, by node.
        history: how earlier starts of this job ended.
        limits: when to give up.
    """
    if state is not None and state.status == "complete":
        return Decision("done", f"training is complete ({state.steps:,} steps)")
    if stop_asked:
        return Decision("stop", "training was asked to stop by the file 'stop'")
    reason = _reason(exit_code, state)
    if bad_nodes:
        reason = "; ".join(f"{node}: {what}" for node, what in sorted(bad_nodes.items()))
        excluded = {node for ending in history for node in ending.excluded} | bad_nodes.keys()
        if len(excluded) > limits.exclude_nodes:
            return Decision("stop", f"{reason}; {len(excluded)} bad nodes, and {limits.exclude_nodes} may be excluded")
        return Decision("requeue", reason, tuple(sorted(bad_nodes)))
    if exit_code == USERS_MISTAKE and _LOST_CONTACT not in reason:
        return Decision("stop", reason)
    if exit_code == 0 and state is None:
        return Decision("stop", "training ended without a word in state.json")
    without = 0
    for ending in reversed(history):
        if ending.decision != "requeue" or ending.checkpoint != checkpoint:
            break
        without += not ending.excluded
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


def _bad_nodes(run: Path, job: str, start: int) -> dict[str, str]:
    """What preflight found in this start of the job, by node."""
    path = restarts.preflight_file(run)
    if not path.exists():
        return {}
    try:
        body = read_json(path)
    except InputError:
        return {}
    return body["bad_nodes"] if (body["job"], body["start"]) == (job, start) else {}
