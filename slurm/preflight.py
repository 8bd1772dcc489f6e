"""`srun python -m slurm preflight RUN_DIR`: is every node of this job fit for training? Under a minute.

Each rank looks at its own machine; then all meet, compare clocks and software, and check an all-reduce for correctness
and bandwidth. What is wrong goes, by node, to `RUN_DIR/slurm/preflight.json`, and the exit status is 3: the job is
queued again without those nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import shutil
import socket
import statistics
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job import launch, manifest
from job.directory import RunDirectory
from job.errors import InputError
from job.files import write_json
from slurm import restarts, scheduler
from slurm.cluster import PreflightConfig

if TYPE_CHECKING:
    import torch

BAD_NODES = 3
"""exit status where a node is not fit"""
_PACKAGES = ("biomedgpt", "torch", "megatron-core", "deepspeed", "transformers", "numpy")
_GIB = 1 << 30
_REDUCE_BYTES = {"cuda": 1 << 28, "cpu": 1 << 20}
_REDUCE_TIMES = 5
_MEETING = 0.8  # share of the time after which those who have come stop waiting for the others


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


def check(run: RunDirectory, settings: PreflightConfig) -> int:
    """All checks, on all ranks: 0, or 3 where a node is not fit. A process that takes too long ends itself."""
    # whatever hangs, a file system or a driver, must not hold the job: the stacks say what it was
    faulthandler.dump_traceback_later(settings.seconds, exit=True)
    began = time.monotonic()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    here = _arrive(run, rank)
    problems = _own_machine(run, settings)
    try:
        findings = _meet(rank, world, problems, settings, _MEETING * settings.seconds - (time.monotonic() - began))
        tells = rank == 0
    except _NobodyCame:
        missing, tells = _missing(here, rank, world)
        what = f"no sign of it within {_MEETING * settings.seconds:.0f} s"
        findings = {"nodes": [], "bad_nodes": dict.fromkeys(missing, what)}
    faulthandler.cancel_dump_traceback_later()
    if tells:
        restarts.note_unseen(run)
        job, start = restarts.this_job()
        write_json(restarts.preflight_file(run.path), {"job": job, "start": start, **findings})
        shutil.rmtree(here, ignore_errors=True)
        for node, what in findings["bad_nodes"].items():
            print(f"preflight: {node} is not fit: {what}", file=sys.stderr, flush=True)
        nodes, took = len(findings["nodes"]), time.monotonic() - began
        bandwidth = f"{findings['all_reduce_gbytes']:.2f} GB/s" if "all_reduce_gbytes" in findings else "not measured"
        print(f"preflight: {world} ranks on {nodes} nodes, all-reduce {bandwidth}, {took:.0f} s", flush=True)
    return BAD_NODES if findings["bad_nodes"] else 0


class _NobodyCame(Exception):
    """Not all ranks have come to the meeting."""


def _arrive(run: RunDirectory, rank: int) -> Path:
    """Leave a sign that this rank is there, which the others can see where it does not come; returns the folder."""
    job, start = restarts.this_job()
    here = restarts.preflight_file(run.path).with_name(f".preflight-{job}-{start}")
    with contextlib.suppress(OSError):  # a disk that cannot be written is told in a moment
        here.mkdir(parents=True, exist_ok=True)
        (here / f"rank-{rank}").touch()
    return here


def _missing(here: Path, rank: int, world: int) -> tuple[list[str], bool]:
    """Nodes that left no sign, and whether this rank is the one to tell: the first that is there."""
    there = {int(path.name.removeprefix("rank-")) for path in here.glob("rank-*")} | {rank}
    nodes = scheduler.call("scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]).split()
    per_node = world // len(nodes)
    absent = sorted({nodes[other // per_node] for other in set(range(world)) - there})
    # all have come, but cannot reach each other: which one to leave out is anybody's guess, but not all of them
    return absent or nodes[1:2], rank == min(there)


def _own_machine(run: RunDirectory, settings: PreflightConfig) -> list[str]:
    """What is wrong with this rank's machine."""
    return [*_disk(run.path, settings.free_disk_gib), *_device(settings.free_gpu_memory)]


def _disk(directory: Path, free_gib: float) -> list[str]:
    """Can this node write into the run directory, and is there room?"""
    probe = directory / f".preflight-{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(os.urandom(1 << 16))
        with open(probe, "rb") as handle:
            os.fsync(handle.fileno())
        free = shutil.disk_usage(directory).free / _GIB
    except OSError as error:
        return [f"cannot write into {directory}: {error.strerror}"]
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return [f"{directory} has {free:.1f} GiB free, not {free_gib:g}"] if free < free_gib else []


def _device(free_share: float) -> list[str]:
    """Does this rank's GPU compute, and is its memory free? Without GPUs nothing is asked."""
    import torch

    local = int(os.environ.get("LOCAL_RANK", "0"))
    expected = os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "NoDevFiles", "-1")
    if not torch.cuda.is_available():
        asked = os.environ.get("SLURM_GPUS_PER_NODE") or os.environ.get("SLURM_GPUS_ON_NODE")
        return [f"the job has GPUs ({asked}), but torch sees none"] if asked and expected else []
    try:
        if local >= torch.cuda.device_count():
            return [f"rank {local} of the node has no GPU: torch sees {torch.cuda.device_count()}"]
        torch.cuda.set_device(local)
        free, total = torch.cuda.mem_get_info()
        if free < free_share * total:
            return [
                f"GPU {local}: {free / _GIB:.1f} of {total / _GIB:.1f} GiB are free; another program holds the rest"
            ]
        numbers = torch.arange(1 << 20, device="cuda", dtype=torch.float32) % 7
        square = numbers.view(1024, 1024)
        if not torch.equal((square @ square).cpu(), square.cpu() @ square.cpu()):
            return [f"GPU {local} computes a wrong product"]
    except RuntimeError as error:  # how torch reports CUDA's errors
        return [f"GPU {local}: {str(error).splitlines()[0]}"]
    return []


def _meet(rank: int, world: int, problems: list[str], settings: PreflightConfig, patience: float) -> dict[str, Any]:
    """What all ranks have found, the same on every rank; raises `_NobodyCame` after `patience` seconds without all."""
    import torch
    import torch.distributed as dist

    own = {"node": socket.gethostname(), "problems": problems, "software": _software()}
    if world == 1:
        return _compare([own | {"clock": 0.0}], settings)
    try:
        dist.init_process_group("gloo", timeout=timedelta(seconds=max(1.0, patience)))
    except RuntimeError as error:  # dist.DistError and what gloo raises are RuntimeErrors
        print(f"preflight: rank {rank}: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
        raise _NobodyCame from None
    everyone: list[Any] = [None] * world
    dist.barrier()
    dist.all_gather_object(everyone, own | {"clock": time.time()})
    findings = _compare(everyone, settings)
    if not findings["bad_nodes"]:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else None
        with _group(device) as group:
            problem, gbytes = _all_reduce(rank, world, device or torch.device("cpu"), group)
        found: list[Any] = [None] * world
        dist.all_gather_object(found, (problem, gbytes))
        slowest = min(value for _, value in found)
        findings["all_reduce_gbytes"] = slowest
        for (what, _), other in zip(found, everyone):
            if what:
                findings["bad_nodes"].setdefault(other["node"], what)
        if slowest < settings.bandwidth_gbytes:
            # which node is slow cannot be told from one number: the run is refused, no node excluded
            raise InputError(
                f"the all-reduce reaches {slowest:.2f} GB/s, not {settings.bandwidth_gbytes:g} "
                "(preflight.bandwidth_gbytes)",
                everywhere=True,
            )
    dist.barrier()
    dist.destroy_process_group()
    return findings


def _software() -> dict[str, str]:
    return {"python": sys.version.split()[0], **manifest.package_versions(_PACKAGES)}


def _compare(everyone: Sequence[dict[str, Any]], settings: PreflightConfig) -> dict[str, Any]:
    """Bad nodes and why: problems of their own; a clock or software unlike most others'."""
    bad: dict[str, list[str]] = {}
    clock = statistics.median(rank["clock"] for rank in everyone)
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
    return {
        "nodes": sorted(bad),
        "bad_nodes": {node: "; ".join(found) for node, found in sorted(bad.items()) if found},
        "software": dict(usual),
    }


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


def _all_reduce(rank: int, world: int, device: torch.device, group: Any) -> tuple[str | None, float]:
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
    problem = f"an all-reduce gave {wrong:,} wrong values on rank {rank}" if wrong else None
    return problem, size / min(seconds) * 2 * (world - 1) / world / 1e9
