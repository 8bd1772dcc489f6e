"""A pretraining job on two nodes with two ranks each, disturbed in every way a cluster knows, ends in the same bits."""

import json

import pytest

from job import config as configs
from job.training import CheckpointConfig
from parallel.layout import Layout
from tests.faults.jobs import run_job, samples_in_order
from tests.slurm.chains import endings, logs, stages, wait_for, wait_for_step
from tests.training import BATCH, assert_equal_checkpoints, make_config

STEPS = 36
CLUSTER = """
    [gpu]
    tasks = 2
    cpus = 2
    time = "30"
    [cpu]
    time = "30"
    [environment]
    interface = "lo"
    [preflight]
    use = false
"""


def config_of(directory, inputs, steps=STEPS):
    layout = Layout(tensor=2, pipeline=2, timeout_seconds=120)
    config = make_config(directory, inputs, layout, steps=steps, checkpoint=CheckpointConfig(every_steps=3, keep=3))
    config.health.hang_factor, config.health.hang_minimum_seconds = 20.0, 8.0
    return config


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """The same run, undisturbed and without Slurm."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    codes, output = run_job(4, config_of(directory, inputs), seconds=240)
    assert codes == [0] * 4, output
    return directory / "checkpoints" / f"step-{STEPS:08d}"


@pytest.mark.timeout(1200)  # minutes where other programs run beside it
def test_disturbed_in_every_way(slurm, sandbox, inputs, whole):
    here = slurm.directory
    run = here / "run"
    (here / "cluster.toml").write_text(CLUSTER)
    configs.save(config_of(run, inputs), here / "pretrain.toml")
    code, told = slurm("submit", "pretrain.toml", "--cluster", "cluster.toml", "--nodes", "2")
    assert code == 0, told
    job, export = (stages(run)[name]["job"] for name in ("pretrain", "export"))

    def disturb(step, fault, number):
        """Plant a fault after a step; return how that start of the job ended, once somebody has noted it."""
        wait_for_step(run, step, attempt=number + 1)
        fault()
        wait_for(lambda: len(endings(run)) > number, 120, lambda: f"ending {number}\n{logs(run)}")
        ending = endings(run)[number]
        assert (ending.job, ending.start, ending.decision) == (job, number, "requeue"), ending
        return ending

    # what comes before the time limit
    ending = disturb(2, lambda: sandbox.call("scancel", "--signal=USR1", job), 0)
    assert ending.exit_code == 0 and ending.checkpoint >= 2 and "signal SIGUSR1" in ending.reason
    # one rank killed, on the second node
    ending = disturb(10, lambda: sandbox.inside("node2", "kill", "-KILL", sandbox.ranks_on("node2", "pretrain")[0]), 1)
    assert ending.exit_code > 128 and ending.checkpoint >= 9, ending
    # one rank hangs
    ending = disturb(16, lambda: sandbox.inside("node1", "kill", "-STOP", sandbox.ranks_on("node1", "pretrain")[1]), 2)
    assert "no step for" in ending.reason
    assert len(list(run.glob("logs/attempt-3/stacks-rank-*.txt"))) >= 3
    # somebody asks Slurm to queue it again
    wait_for_step(run, 22, attempt=4)
    sandbox.call("scontrol", "requeue", job)
    wait_for_step(run, 29, attempt=5)
    # a node loses its power: there is a third one
    sandbox.cut("node2")
    try:
        assert sandbox.wait(job, 300) == "COMPLETED", logs(run)
    finally:
        sandbox.start_node("node2")
    assert_equal_checkpoints(run / "checkpoints" / f"step-{STEPS:08d}", whole)
    assert samples_in_order(run) == [(step * BATCH, (step + 1) * BATCH - 1) for step in range(STEPS)]
    assert endings(run)[-1].decision == "done"
    assert any("Slurm queued the job again" in ending.reason for ending in endings(run))
    code, told = slurm("status", "run")
    assert f"complete, attempt {len(endings(run))}" in told and "signal SIGUSR1" in told
    assert sandbox.wait(export, 120) == "COMPLETED", logs(run)
    assert json.loads((run / "model" / "manifest.json").read_text())["stage"]
