"""What `submit` has left, and waiting for what jobs leave."""

import json
import time

from job.directory import RunDirectory
from slurm import restarts
from tests.faults.jobs import last_step


def stages(directory):
    """The stages of a chain's record, by name."""
    return {stage["name"]: stage for stage in json.loads((directory / "slurm" / "chain.json").read_text())["stages"]}


def endings(run):
    """How the jobs on a run directory have ended so far."""
    return restarts.read(RunDirectory(run))


def wait_for_step(run, step, seconds=180):
    """Return once a run's metrics show a step."""
    wait_for(lambda: last_step(run) >= step, seconds, lambda: f"step {step} of {run}; {logs(run)}")


def wait_for(condition, seconds, what):
    """Return once a condition holds; fails where it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what()}"
        time.sleep(0.02)


def logs(directory):
    """What the jobs of a chain have printed."""
    return "\n".join(f"{path.name}:\n{path.read_text()}" for path in sorted(directory.glob("slurm/*.log")))
