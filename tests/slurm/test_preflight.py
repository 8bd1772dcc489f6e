"""What preflight finds wrong with nodes, and that it ends in time."""

import json
import subprocess
import sys
import time

import pytest

from slurm.cluster import PreflightConfig
from slurm.preflight import BAD_NODES, _compare
from tests.conftest import REPOSITORY


def rank(node, clock=100.0, problems=(), **software):
    return {"node": node, "clock": clock, "problems": list(problems), "software": {"torch": "2.11", **software}}


@pytest.mark.parametrize(
    "odd, words",
    [
        (rank("n3", clock=130.0), "clock is +30.0 s off"),
        (rank("n3", torch="2.10"), "torch 2.10, not 2.11"),
        (rank("n3", problems=["GPU 1 computes a wrong product"]), "GPU 1 computes"),
    ],
)
def test_the_odd_one_is_named(odd, words):
    everyone = [rank("n1"), rank("n1"), rank("n2"), rank("n2"), odd, odd]
    found = _compare(everyone, PreflightConfig())
    assert found["nodes"] == ["n1", "n2", "n3"] and list(found["bad_nodes"]) == ["n3"]
    assert words in found["bad_nodes"]["n3"]
    assert not _compare(everyone[:4], PreflightConfig())["bad_nodes"]


@pytest.mark.parametrize("other_starts", [False, True])
def test_a_node_that_does_not_come_is_named(other_starts, sandbox, tmp_path):
    """Two ranks on two nodes, of which the second starts, or does not."""
    step = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0" if other_starts else "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_LOCALID": "0",
        "BIOMEDGPT_MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    seconds = 120 if other_starts else 25
    words = ["-m", "slurm", "preflight", str(tmp_path / "run"), "--seconds", str(seconds), "--free-disk-gib", "0"]
    began = time.monotonic()
    ranks = [
        subprocess.Popen([sys.executable, *words], env=sandbox.environment | step | {"SLURM_PROCID": str(number)})
        for number in range(1 + other_starts)
    ]
    try:
        codes = [process.wait(seconds + 20) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    found = json.loads((tmp_path / "run" / "slurm" / "preflight.json").read_text())
    if other_starts:
        assert codes == [0, 0] and not found["bad_nodes"] and found["all_reduce_gbytes"] > 0
    else:
        assert codes == [BAD_NODES] and list(found["bad_nodes"]) == ["node2"] and found["job"] == "7"
        assert time.monotonic() - began < seconds + 20
    assert [path.name for path in (tmp_path / "run" / "slurm").iterdir()] == ["preflight.json"]
