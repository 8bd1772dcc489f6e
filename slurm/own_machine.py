"""What one rank finds on its own machine, before it meets the others: disk, network, GPU."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from job.directory import RunDirectory
from job.errors import first_line
from slurm.cluster import PreflightConfig

_GIB = 1 << 30
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NETWORK_VARIABLE = "GLOO_SOCKET_IFNAME"  # what gloo reads; environment.interface sets it


@dataclass
class Own:
    """What one rank finds on its machine."""

    problems: list[str] = field(default_factory=list)
    """of this node"""
    shared: list[str] = field(default_factory=list)
    """of what all nodes have in common"""


def look(run: RunDirectory, settings: PreflightConfig, rank: int) -> Own:
    """What is wrong with this rank's machine, and with what all machines have in common."""
    own = Own()
    _disk(run.path, settings.free_disk_gib if rank == 0 else 0.0, own)
    _network(own)
    _device(settings.free_gpu_memory, own)
    return own


def _disk(directory: Path, free_gib: float, own: Own) -> None:
    """Can this node write into the run directory, and is there room? Room is the same everywhere: one rank asks."""
    probe = directory / f".preflight-{uuid.uuid4().hex}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(os.urandom(1 << 16))
        with open(probe, "rb") as handle:
            os.fsync(handle.fileno())
        free = shutil.disk_usage(directory).free / _GIB
    except OSError as error:
        found = own.shared if error.errno in _DISK_FULL else own.problems
        found.append(f"cannot write into {directory}: {error.strerror}")
        return
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    if free < free_gib:
        own.shared.append(
            f"{directory} has {free:.1f} GiB free, not {free_gib:g}; make room, or lower preflight.free_disk_gib in "
            "the cluster description"
        )


def _network(own: Own) -> None:
    """Is the network interface there that ranks are to talk over?"""
    there = {name for _, name in socket.if_nameindex()}
    for name in filter(None, os.environ.get(_NETWORK_VARIABLE, "").split(",")):
        if name not in there:
            own.problems.append(f"there is no network interface '{name}' (environment.interface, {_NETWORK_VARIABLE})")


def _device(free_share: float, own: Own) -> None:
    """Does this rank's GPU compute, and is its memory free? Without GPUs nothing is asked."""
    import torch

    local = int(os.environ.get("LOCAL_RANK", "0"))
    asked = os.environ.get("SLURM_GPUS_PER_NODE") or os.environ.get("SLURM_GPUS_ON_NODE")
    expected = asked and os.environ.get("CUDA_VISIBLE_DEVICES", "") not in ("", "NoDevFiles", "-1")
    if not torch.cuda.is_available():
        if expected and torch.version.cuda is None and torch.version.hip is None:
            own.shared.append(
                f"the job has GPUs ({asked}), but torch {torch.__version__} is a build for CPUs only; install one for "
                "GPUs into the environment of the cluster description"
            )
        elif expected:
            own.problems.append(f"the job has GPUs ({asked}), but torch sees none")
        return
    try:
        if local >= torch.cuda.device_count():
            own.problems.append(f"rank {local} of the node has no GPU: torch sees {torch.cuda.device_count()}")
            return
        torch.cuda.set_device(local)
        free, total = torch.cuda.mem_get_info()
        if free < free_share * total:
            room = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB"
            own.problems.append(f"GPU {local}: {room} are free; another program holds the rest")
            return
        numbers = torch.arange(1 << 20, device="cuda", dtype=torch.float32) % 7
        square = numbers.view(1024, 1024)
        if not torch.equal((square @ square).cpu(), square.cpu() @ square.cpu()):
            own.problems.append(f"GPU {local} computes a wrong product")
    except RuntimeError as error:  # how torch reports CUDA's errors
        own.problems.append(f"GPU {local}: {first_line(error)}")


def node_name() -> str:
    """This machine as Slurm calls it, which its host name need not be."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()
