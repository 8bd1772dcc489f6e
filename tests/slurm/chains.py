"""What `submit` has left, and waiting for what jobs leave."""

import json
import time

from job import restarts
from job.directory import RunDirectory


def stages(directory):
    """The stages of a chain's record, by name."""
    return {stage["name"]: stage for stage in json.loads((directory / "slurm" / "chain.json").read_text())["stages"]}


def endings(run):
    """How the jobs on a run directory have ended so far."""
    return restarts.read(RunDirectory(run))


def wait_for_step(run, step, attempt=1, seconds=180):
    """Return once an attempt of a run has come to a step."""

    def reached():
        if not (run / "metrics.jsonl").exists():
            return False
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        return any(row["attempt"] == attempt and row["step"] >= step for row in rows)

    wait_for(reached, seconds, lambda: f"step {step} of {run} in attempt {attempt}; {logs(run)}")


def wait_for(condition, seconds, what):
    """Return once a condition holds; fails where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what()}"
        time.sleep(0.05)


def logs(directory):
    """What the jobs of a chain have printed."""
    return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(directory.glob("slurm/*.log")))
