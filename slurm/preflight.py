"""`srun python -m slurm preflight RUN_DIR`: is every node of this job fit for training? Under a minute.

Each rank looks at its own machine; then all meet, compare clocks and software, and check an all-reduce for correctness
and bandwidth. All findings go to `RUN_DIR/slurm/preflight.json`. Exit status: 3 where nodes are not fit, each with its
reason: the job is queued again without them. 2 where it is nothing that another node would mend: a full disk, what all
nodes have in common. 1 where the ranks cannot reach each other, and nobody can say why.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job import launch, manifest, restarts
from job.directory import RunDirectory
from job.errors import InputError, first_line
from job.files import read_json, write_json
from slurm import own_machine, scheduler
from slurm.cluster import PreflightConfig

if TYPE_CHECKING:
    import torch

BAD_NODES = 3
"""exit status where a node is not fit"""
_PACKAGES = ("biomedgpt", "torch", "megatron-core", "deepspeed", "transformers", "numpy")
_REDUCE_BYTES = {"cuda": 1 << 28, "cpu": 1 << 20}
_REDUCE_TIMES = 5
_MEETING, _CONNECTING = 0.8, 0.9  # shares of the time after which ranks stop waiting for others: to come, to connect


def main(arguments: Sequence[str]) -> int:
    """Look, meet, compare, tell."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm preflight", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = PreflightConfig()
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of the training job")
    for name, what in (
        ("seconds", "longest time of all checks together"),
        ("free_disk_gib", "room that the run directory must have"),
        ("free_gpu_memory", "share of a GPU's memory that must be free"),
        ("clock_seconds", "largest difference between two clocks"),
        ("bandwidth_gbytes", "smallest all-reduce bandwidth, 10^9 bytes/s (0: measured, not judged)"),
    ):
        default = getattr(defaults, name)
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=float, default=default, metavar="X", help=f"{what} (default {default:g})")
    options = parser.parse_args(arguments)
    settings = PreflightConfig(**{name: value for name, value in vars(options).items() if name != "run"})
    launch.adopt()
    return check(RunDirectory(options.run), settings)


@dataclass
class _Clock:
    """How long the checks may still take."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> float:
        """Seconds since the checks began."""
        return time.monotonic() - self.began

    def left(self, share: float) -> float:
        """Seconds until that share of the time is over; one at least."""
        return max(1.0, share * self.seconds - self.passed)


class _NobodyCame(Exception):
    """Not all ranks have come to the meeting, or they cannot meet: why, as far as this rank knows."""


def check(run: RunDirectory, settings: PreflightConfig) -> int:
    """All checks, on all ranks: 0, or 3 where a node is not fit. A process that takes too long ends itself.

    Raises `InputError` on all ranks where the job would fail on any node.
    """
    # whatever hangs, a file system or a driver, must not hold the job: the stacks say what it was
    faulthandler.dump_traceback_later(settings.seconds, exit=True)
    clock = _Clock(settings.seconds)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    signs = _Signs(run, rank, world)
    signs.leave("started")
    own = own_machine.look(run, settings, rank)
    signs.leave("looked")
    try:
        findings = _meet(rank, world, own, settings, clock, _found_before(run))
        tells = rank == 0
    except _NobodyCame as error:
        findings, tells = signs.missing(clock, str(error))
    faulthandler.cancel_dump_traceback_later()
    refused, unclear = findings.get("refused"), findings.get("unclear")
    if tells:
        job, start = restarts.this_job()
        with contextlib.suppress(InputError) if refused else contextlib.nullcontext():  # the disk may be what is wrong
            restarts.note_unseen(run)
            write_json(restarts.preflight_file(run.path), {"job": job, "start": start, **findings})
        signs.remove()
        for node, what in findings["bad_nodes"].items():
            print(f"preflight: {node} is not fit: {what}", file=sys.stderr, flush=True)
        if unclear:
            print(f"preflight: {unclear}", file=sys.stderr, flush=True)
        bandwidth = f"{findings['all_reduce_gbytes']:.2f} GB/s" if "all_reduce_gbytes" in findings else "not measured"
        nodes = len(findings["nodes"])
        print(f"preflight: {world} ranks on {nodes} nodes, all-reduce {bandwidth}, {clock.passed:.0f} s", flush=True)
    if refused:
        raise InputError(f"preflight: {refused}", everywhere=True)
    if findings["bad_nodes"]:
        return BAD_NODES
    return 1 if unclear else 0


class _Signs:
    """Files that say how far each rank has come, for the others to see where it does not come to the meeting."""

    def __init__(self, run: RunDirectory, rank: int, world: int) -> None:
        job, start = restarts.this_job()
        self.folder = restarts.preflight_file(run.path).with_name(f".preflight-{job}-{start}")
        self._rank, self._world = rank, world

    def leave(self, what: str) -> None:
        """Say that this rank has come so far."""
        with contextlib.suppress(OSError):  # a disk that cannot be written is told in a moment
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{what}-{self._rank}").touch()

    def missing(self, clock: _Clock, why: str) -> tuple[dict[str, Any], bool]:
        """Findings by the signs, and whether this rank is the one to tell them: the first that is there.

        Waits for the others until the time for coming is over, or all are there.
        """
        while len(there := self._read("looked")) < self._world and clock.passed < _MEETING * clock.seconds:
            time.sleep(0.5)
        started = self._read("started") | there
        nodes = scheduler.hosts(os.environ.get("SLURM_STEP_NODELIST") or os.environ["SLURM_JOB_NODELIST"])
        per_node = max(1, self._world // len(nodes))
        bad: dict[str, str] = {}
        for rank in sorted(set(range(self._world)) - there):
            what = "the checks of its own machine have not ended" if rank in started else "no sign of it"
            bad.setdefault(nodes[min(rank // per_node, len(nodes) - 1)], f"{what} within {clock.passed:.0f} s")
        findings: dict[str, Any] = {"nodes": nodes, "bad_nodes": bad}
        if not bad:
            address = os.environ.get("MASTER_ADDR")
            findings["unclear"] = (
                f"all ranks are there, but they cannot meet at {address}: {why}; if the first node is not reached so, "
                f"name an address of it in {launch.MASTER_ADDRESS} (docs/slurm.md)"
            )
        # without its sign, another rank has told already (or the disk cannot be written)
        return findings, self._rank == min(there) and (self.folder / f"looked-{self._rank}").exists()

    def remove(self) -> None:
        """Take all signs away, at once: half of them would tell of ranks that are not there."""
        gone = self.folder.with_name(f"{self.folder.name}-gone")
        with contextlib.suppress(OSError):
            self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def _read(self, what: str) -> set[int]:
        there = {int(path.name.rpartition("-")[2]) for path in self.folder.glob(f"{what}-*")}
        return there | {self._rank}


def _found_before(run: RunDirectory) -> dict[str, str]:
    """Bad nodes of the start before this one of the job, and why."""
    job, start = restarts.this_job()
    path = restarts.preflight_file(run.path)
    try:
        body = read_json(path) if path.exists() else {}
        return dict(body["bad_nodes"]) if (body.get("job"), body.get("start")) == (job, start - 1) else {}
    except (InputError, OSError, AttributeError, KeyError, TypeError, ValueError):  # damaged: then nothing is known
        return {}


def _meet(
    rank: int, world: int, own: own_machine.Own, settings: PreflightConfig, clock: _Clock, before: dict[str, str]
) -> dict[str, Any]:
    """What all ranks have found, the same on every rank; raises `_NobodyCame` where they do not come, or cannot meet.

    Ranks meet in rank 0's store of keys and values first: it needs no more than the address of one machine, so that
    each can say there what is wrong with it. Only then they connect to each other as they do in training.
    """
    import torch.distributed as dist

    mine = {"node": own_machine.node_name(), "problems": own.problems, "shared": own.shared, "software": _software()}
    if world == 1:
        return _compare([mine | {"clock": 0.0}], settings, before)
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, world, rank == 0, timedelta(seconds=clock.left(_MEETING)))
        if rank == 0:
            store.set("all are here", "")
        store.wait(["all are here"])
        findings = _agree(
            store, "own", rank, world, mine | {"clock": time.time()}, lambda found: _compare(found, settings, before)
        )
        if not (findings["bad_nodes"] or findings.get("refused")):
            _connect(store, rank, world, findings, settings, clock)
    except RuntimeError as error:  # dist.DistError is one
        print(f"preflight: rank {rank}: {first_line(error)}", file=sys.stderr, flush=True)
        raise _NobodyCame(f"rank {rank}, at {address} port {port}: {first_line(error)}") from None
    return findings


def _agree(
    store: Any, name: str, rank: int, world: int, mine: dict[str, Any], judge: Callable[[list[Any]], dict[str, Any]]
) -> dict[str, Any]:
    """What rank 0 judges from what each rank says; the same on every rank."""
    store.set(f"{name} of {rank}", json.dumps(mine))
    if rank == 0:
        findings = judge([json.loads(store.get(f"{name} of {other}")) for other in range(world)])
        store.set(name, json.dumps(findings))
        # the store ends with this process: the others must have read by then
        with contextlib.suppress(RuntimeError):
            store.wait([f"{name} read by {other}" for other in range(1, world)])
        return findings
    found: dict[str, Any] = json.loads(store.get(name))
    store.set(f"{name} read by {rank}", "")
    return found


def _connect(
    store: Any, rank: int, world: int, findings: dict[str, Any], settings: PreflightConfig, clock: _Clock
) -> None:
    """Connect the ranks as training does, and check an all-reduce; what is found is added to `findings`."""
    import torch
    import torch.distributed as dist

    problem, patience, began = "", clock.left(_CONNECTING), time.monotonic()
    try:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=patience))
    except RuntimeError as error:
        problem = first_line(error)
        print(f"preflight: rank {rank}: {problem}", file=sys.stderr, flush=True)
    mine = {"node": own_machine.node_name(), "problem": problem, "waited": time.monotonic() - began > 0.9 * patience}
    store.set_timeout(timedelta(seconds=clock.left(1.0)))
    findings |= _agree(store, "connected", rank, world, mine, _unconnected)
    if findings["bad_nodes"] or findings.get("refused") or findings.get("unclear"):
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else None
    gbytes = 0.0
    try:
        with _group(device) as group:
            wrong, gbytes = _all_reduce(rank, world, device or torch.device("cpu"), group)
    except RuntimeError as error:
        wrong = f"the all-reduce fails: {first_line(error)}"
        print(f"preflight: rank {rank}: {wrong}", file=sys.stderr, flush=True)
    reduced = {"node": own_machine.node_name(), "problem": wrong, "waited": False, "gbytes": gbytes}
    findings |= _agree(store, "reduced", rank, world, reduced, lambda found: _judge_all_reduce(found, settings))
    dist.barrier()
    dist.destroy_process_group()


def _unconnected(everyone: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Who fails by itself, and not because it has waited for another; where all only waited, nobody can say."""
    bad: dict[str, list[str]] = {}
    for rank in everyone:
        own = [rank["problem"]] if rank["problem"] and not rank["waited"] else []
        bad.setdefault(rank["node"], []).extend(what for what in own if what not in bad[rank["node"]])
    findings = _verdict(bad, {})
    waited = [rank for rank in everyone if rank["problem"]]
    if waited and not (findings["bad_nodes"] or findings.get("refused")):
        first = waited[0]
        findings["unclear"] = (
            f"the ranks cannot connect to each other; that of {first['node']} says: {first['problem']}"
        )
    return findings


def _judge_all_reduce(everyone: Sequence[dict[str, Any]], settings: PreflightConfig) -> dict[str, Any]:
    """Where it failed, or gave wrong values; else how fast it was, and whether that will do."""
    findings = _unconnected(everyone)
    if findings["bad_nodes"] or findings.get("refused"):
        return findings
    slowest = min(rank["gbytes"] for rank in everyone)
    if slowest < settings.bandwidth_gbytes:
        # which node is slow cannot be told from one number
        findings["refused"] = (
            f"the all-reduce reaches {slowest:.2f} GB/s, not {settings.bandwidth_gbytes:g}; mend the network, or lower "
            "preflight.bandwidth_gbytes in the cluster description (no single node can be blamed for it)"
        )
    return findings | {"all_reduce_gbytes": slowest}


def _software() -> dict[str, str]:
    return {"python": sys.version.split()[0], **manifest.package_versions(_PACKAGES)}


def _compare(
    everyone: Sequence[dict[str, Any]], settings: PreflightConfig, before: dict[str, str] | None = None
) -> dict[str, Any]:
    """Bad nodes and why: problems of their own; a clock or software unlike most others'.

    `before` are the bad nodes of the start before, which this one has not. What all nodes share is no node's fault.
    """
    bad: dict[str, list[str]] = {}
    clock = statistics.median_low(rank["clock"] for rank in everyone)  # of two, one is right
    versions = [tuple(sorted(rank["software"].items())) for rank in everyone]
    usual = max(versions, key=lambda one: (versions.count(one), one == versions[0]))
    for rank, software in zip(everyone, versions):
        found = list(rank["problems"])
        if abs(rank["clock"] - clock) > settings.clock_seconds:
            found.append(f"its clock is {rank['clock'] - clock:+.1f} s off")
        different = [f"{name} {dict(software).get(name)}, not {value}" for name, value in usual]
        different = [text for text, one in zip(different, usual) if one not in software]
        if different:
            found.append("other software than on the other nodes: " + ", ".join(different))
        bad.setdefault(rank["node"], []).extend(what for what in found if what not in bad[rank["node"]])
    findings = _verdict(bad, before or {}) | {"software": dict(usual)}
    if shared := next((what for rank in everyone for what in rank["shared"]), None):
        findings |= {"bad_nodes": {}, "refused": shared}
    return findings


def _verdict(bad: dict[str, list[str]], before: dict[str, str]) -> dict[str, Any]:
    """Bad nodes; none where all nodes have one and the same problem, or a single one has that of another before it."""
    nodes = sorted(bad)
    for what in bad[nodes[0]]:
        others = [*nodes[1:], *sorted(node for node, found in before.items() if node not in bad and what in found)]
        if others and all(what in found for found in bad.values()):
            shared = f"{what}; not only {nodes[0]} has this problem, but also {', '.join(others)}"
            return {"nodes": nodes, "bad_nodes": {}, "refused": shared}
    return {"nodes": nodes, "bad_nodes": {node: "; ".join(bad[node]) for node in nodes if bad[node]}}


@contextlib.contextmanager
def _group(device: torch.device | None) -> Iterator[Any]:
    """The process group that training will use: NCCL on GPUs, else the one that is there."""
    import torch.distributed as dist

    if device is None:
        yield None
        return
    group = dist.new_group(backend="nccl", device_id=device)
    yield group
    dist.destroy_process_group(group)


def _all_reduce(rank: int, world: int, device: torch.device, group: Any) -> tuple[str, float]:
    """What is wrong with an all-reduce, if anything; and its bandwidth in 10^9 bytes per second.

    The bandwidth is that of nccl-tests ("bus bandwidth"): bytes / time * 2 (n - 1) / n, which a network's limit can be
    compared with, whatever the number of ranks.
    """
    import torch
    import torch.distributed as dist

    size = _REDUCE_BYTES[device.type]
    values = torch.full((size // 4,), float(rank + 1), device=device)
    seconds = []
    for _ in range(_REDUCE_TIMES):
        values.fill_(rank + 1)
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        dist.all_reduce(values, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    expected = world * (world + 1) / 2
    wrong = int((values != expected).sum())
    problem = f"an all-reduce gave {wrong:,} wrong values" if wrong else ""
    return problem, size / min(seconds) * 2 * (world - 1) / world / 1e9
