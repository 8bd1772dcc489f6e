"""What preflight finds wrong with nodes, and that it ends in time."""

import json
import random
import subprocess
import sys
import time

import pytest

from job.directory import RunDirectory
from slurm.cluster import PreflightConfig
from slurm.own_machine import Own, _device, _disk
from slurm.preflight import BAD_NODES, _Clock, _compare, _Signs, _unconnected
from slurm.scheduler import hosts
from tests.conftest import REPOSITORY


def rank(node, clock=100.0, problems=(), **software):
    own = {"problems": list(problems), "shared": [], "software": {"torch": "2.11", **software}}
    return own | {"node": node, "clock": clock}


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


def test_what_all_nodes_share_is_no_nodes_fault():
    everyone = [rank(node, problems=["no ib9", *own]) for node, own in (("n1", []), ("n1", ["hot"]), ("n2", []))]
    found = _compare(everyone, PreflightConfig())
    assert not found["bad_nodes"] and found["refused"] == "no ib9; not only n1 has this problem, but also n2"
    # one node at a time: what the one before it had, too
    alone = [rank("n2", problems=["torch sees none"])]
    assert list(_compare(alone, PreflightConfig())["bad_nodes"]) == ["n2"]
    assert list(_compare(alone, PreflightConfig(), {"n1": "hot"})["bad_nodes"]) == ["n2"]
    found = _compare(alone, PreflightConfig(), {"n1": "torch sees none; hot"})
    assert not found["bad_nodes"] and found["refused"].endswith("but also n1")
    # what is not of a node at all
    full = rank("n2") | {"shared": ["the disk is full"]}
    found = _compare([rank("n1", problems=["hot"]), full], PreflightConfig())
    assert not found["bad_nodes"] and found["refused"] == "the disk is full"


def test_two_clocks_that_differ():
    """One of them is right."""
    found = _compare([rank("n1", clock=100.0), rank("n2", clock=120.0)], PreflightConfig())
    assert list(found["bad_nodes"]) == ["n2"]


def test_a_disk_without_room_and_torch_without_gpus(tmp_path, monkeypatch):
    own = Own()
    _disk(tmp_path / "run", 1e9, own)
    assert not own.problems and "GiB free, not 1e+09; make room, or lower preflight.free_disk_gib" in own.shared[0]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for build, shared in ((None, True), ("13.0", False)):
        monkeypatch.setattr("torch.version.cuda", build)
        own = Own()
        _device(0.9, own)
        assert (len(own.shared), len(own.problems)) == (shared, not shared), own


@pytest.mark.parametrize(
    "nodes, names",
    [
        ("node1", ["node1"]),
        ("a[08-10,12],b,c[1]", ["a08", "a09", "a10", "a12", "b", "c1"]),
        ("rack[0-1]n[1,3]-ib", ["rack0n1-ib", "rack0n3-ib", "rack1n1-ib", "rack1n3-ib"]),
    ],
)
def test_names_of_a_node_list(nodes, names):
    assert hosts(nodes) == names


def test_who_is_missing(tmp_path, monkeypatch):
    """Four ranks on two nodes: of one there is no sign, one hangs in its own checks, or they just cannot meet."""
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    monkeypatch.setenv("MASTER_ADDR", "node1")

    def told(started, looked):
        signs = [_Signs(RunDirectory(tmp_path), rank, 4) for rank in range(4)]
        for what, ranks in (("started", started), ("looked", looked)):
            for number in ranks:
                signs[number].leave(what)
        answers = [signs[number].missing(_Clock(0.01), "no route") for number in looked]
        assert [tells for _, tells in answers] == [True] + [False] * (len(looked) - 1)
        signs[0].remove()
        # the folder is gone: who looks only now does not tell again
        assert not any(signs[number].missing(_Clock(0.01), "no route")[1] for number in looked)
        return answers[0][0]

    assert "no sign of it" in told([0, 1, 3], [0, 1, 3])["bad_nodes"]["node2"]
    assert list(told([0, 1, 2, 3], [2, 3])["bad_nodes"]) == ["node1"]
    assert "its own machine have not ended" in told([0, 1, 2, 3], [0, 1, 2])["bad_nodes"]["node2"]
    found = told([0, 1, 2, 3], [0, 1, 2, 3])
    assert not found["bad_nodes"] and "they cannot meet at node1: no route; if" in found["unclear"]


def test_who_cannot_connect():
    """Who waits for another is not to blame."""
    fails = {"node": "n2", "problem": "no such address", "waited": False}
    waits = {"node": "n1", "problem": "timed out", "waited": True}
    assert _unconnected([waits, fails])["bad_nodes"] == {"n2": "no such address"}
    found = _unconnected([waits, waits | {"node": "n2"}])
    assert not found["bad_nodes"] and "cannot connect to each other; that of n1 says: timed out" in found["unclear"]
    assert "not only n1" in _unconnected([fails, fails | {"node": "n1"}])["refused"]


def preflight(run, ranks, seconds, *options, interface="lo"):
    """Start ranks of two, each on its node, without Slurm's commands; returns exit codes, findings and messages."""
    step = {
        "PATH": "/nowhere",
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": str(random.SystemRandom().randrange(10_000)),  # the port is made of it
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_LOCALID": "0",
        "BIOMEDGPT_MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": interface,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    words = ["-m", "slurm", "preflight", str(run), "--seconds", str(seconds), "--free-disk-gib", "0", *options]
    processes = [
        subprocess.Popen(
            [sys.executable, *words],
            env=step | {"SLURM_PROCID": str(number), "SLURMD_NODENAME": f"node{number + 1}"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(ranks)
    ]
    try:
        told = [process.communicate(timeout=seconds + 20)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [path.name for path in (run / "slurm").iterdir()] == ["preflight.json"]
    found = json.loads((run / "slurm" / "preflight.json").read_text())
    assert found["job"] == "7"
    return [process.returncode for process in processes], found, told


def test_two_nodes_that_are_fit(tmp_path):
    codes, found, _ = preflight(tmp_path / "run", 2, 120)
    assert codes == [0, 0] and not found["bad_nodes"] and found["all_reduce_gbytes"] > 0
    assert found["nodes"] == ["node1", "node2"]


def test_a_node_that_does_not_come_is_named(tmp_path):
    began = time.monotonic()
    codes, found, told = preflight(tmp_path / "run", 1, 25)
    assert codes == [BAD_NODES] and list(found["bad_nodes"]) == ["node2"] and "node2 is not fit: no sign" in told[0]
    assert time.monotonic() - began < 45


@pytest.mark.parametrize(
    "options, interface, words",
    [
        ([], "ib9", "no network interface 'ib9'"),
        (["--bandwidth-gbytes", "1000"], "lo", "not 1000; mend the network, or lower preflight.bandwidth_gbytes"),
    ],
)
def test_what_no_other_node_would_mend_ends_the_job(options, interface, words, tmp_path):
    codes, found, told = preflight(tmp_path / "run", 2, 120, *options, interface=interface)
    assert codes == [2, 2] and not found["bad_nodes"] and words in found["refused"]
    assert told[0].splitlines()[-1].startswith("error: preflight: ") and words in told[0] and words not in told[1]
