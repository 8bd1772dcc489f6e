"""A task of a Slurm step finds out who it is; the values are what Slurm 22.05 sets."""

import pytest

from job.launch import MASTER_ADDRESS, adopt, first_host

# As `srun --nodes 2 --ntasks-per-node 4` sets them for the sixth task.
STEP = {
    "SLURM_JOB_ID": "812",
    "SLURM_STEP_ID": "1",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_NODELIST": "gpu[003,007-008]",
}


def test_a_task_of_a_step():
    environment = dict(STEP)
    adopt(environment)
    added = {name: value for name, value in environment.items() if name not in STEP}
    port = int(added.pop("MASTER_PORT"))
    assert added == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu007",
    }
    assert 15_000 <= port < 32_000
    other = STEP | {"SLURM_STEP_ID": "2"}
    adopt(other)
    assert int(other["MASTER_PORT"]) != port


def test_uneven_nodes():
    environment = STEP | {"SLURM_STEP_TASKS_PER_NODE": "5,3"}
    adopt(environment)
    assert environment["LOCAL_WORLD_SIZE"] == "3"


def test_torchrun_comes_first_and_a_batch_script_is_no_task():
    torchrun = STEP | {"RANK": "0", "WORLD_SIZE": "2"}
    before = dict(torchrun)
    adopt(torchrun)
    assert torchrun == before
    script = {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP")}
    before = dict(script)
    adopt(script)
    assert script == before


def test_an_address_of_ones_own():
    environment = STEP | {MASTER_ADDRESS: "10.0.0.7"}
    adopt(environment)
    assert environment["MASTER_ADDR"] == "10.0.0.7"


# What `scontrol show hostnames` prints first for each.
@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[1-3,7]", "node1"),
        ("gpu[003-010,012]", "gpu003"),
        ("a[2,5],b1", "a2"),
        ("login1,gpu[1-4]", "login1"),
        ("rack[1-2]node[3-4]", "rack1node3"),
        ("r[08-09]c[1,3]-ib,x1", "r08c1-ib"),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first
