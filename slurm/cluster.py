"""The cluster as its users describe it, in one TOML file: what jobs ask for, and what their shell sets up."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from job import config as configs
from job.errors import InputError

DEFAULT = Path("slurm/cluster.toml")


@dataclass
class NodeConfig:
    """What a job asks for on each of its nodes."""

    partition: str = ""
    """unset: the cluster's default"""
    gpus: int = 0
    """GPUs of a node"""
    gpu_type: str = ""
    """their type, where Slurm wants it named (h100)"""
    tasks: int = 0
    """processes on a node (0: one per GPU; without GPUs, one)"""
    cpus: int = 0
    """CPU cores of a node (0: what Slurm gives by itself)"""
    memory: str = ""
    """memory of a node, as Slurm writes it (900G; 0 is all of it); unset: what Slurm gives by itself; a job that takes
    a part of the GPUs asks for that part of cores and memory"""
    time: str = "24:00:00"
    """longest time of one job; a training run that needs more goes on in the same job, queued again"""
    directives: list[str] = field(default_factory=list)
    """further #SBATCH options, such as --constraint=h100 or --exclude=node7"""


@dataclass
class ContainerConfig:
    """A container that every program runs in."""

    image: str = ""
    """pyxis: a squashfs file or registry image; apptainer: a .sif file; unset: no container"""
    tool: Literal["pyxis", "apptainer"] = "pyxis"
    """what starts it"""
    mounts: list[str] = field(default_factory=list)
    """directories to see inside, as PATH or OUTSIDE:INSIDE; the working directory always is"""


@dataclass
class EnvironmentConfig:
    """What the shell of a job sets up."""

    setup: list[str] = field(default_factory=list)
    """lines of shell before everything else; the first that fails ends the job"""
    modules: list[str] = field(default_factory=list)
    """environment modules to load"""
    virtual_environment: str = ""
    """Python environment to activate; with neither this nor a container: the Python that `submit` ran in"""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    """container"""
    interface: str = ""
    """network interface between nodes (ib0); unset: NCCL and gloo choose"""
    scratch: str = ""
    """fast directory that exists on every node, for temporary files and compiled kernels; $USER and the like stand for
    their values there"""
    variables: dict[str, str] = field(default_factory=dict)
    """further environment variables; none that is secret, since scripts can be read by others"""


@dataclass
class PreflightConfig:
    """What a node must be able to do before training starts on it."""

    use: bool = True
    """false: start training unchecked"""
    seconds: float = 60.0
    """longest time of all checks together"""
    free_disk_gib: float = 50.0
    """room that the run directory must have; without it the job ends, and says so"""
    free_gpu_memory: float = 0.9
    """share of a GPU's memory that must be free"""
    clock_seconds: float = 5.0
    """largest difference between the clocks of two nodes"""
    bandwidth_gbytes: float = 0.0
    """smallest bandwidth of an all-reduce over all GPUs, in 10^9 bytes per second (0: measured, not judged);
    below it the job ends, and says so: which node is slow, nobody can tell from it"""


@dataclass
class RestartConfig:
    """How a job goes on after a time limit, and a training job after a preemption or a crash, too."""

    signal_seconds: int = 300
    """USR1 comes this long before the time limit: time to finish a step and write a checkpoint"""
    time_limits: int = 20
    """times that a job of kind shards or eval, which goes on where it stopped, is queued again at its time limit"""
    without_progress: int = 3
    """restarts in a row without a newer checkpoint after which the job gives up"""
    exclude_nodes: int = 4
    """most nodes that preflight may exclude, one after the other"""


MEMORY = re.compile(r"(\d+)([KMGT]?)")  # sbatch(1), --mem: megabytes unless another unit is named
TIME = re.compile(r"\d+(-\d+(:\d+(:\d+)?)?|:\d+(:\d+)?)?")  # sbatch(1), --time
# how names of secrets end, or one of their words does; names of files that hold one are none
_SECRET_NAME = re.compile(
    r"(?!.*_(FILE|PATH|DIR)$).*((_|API|ACCESS|SECRET|PRIVATE)KEY|TOKEN|SECRETS?|(?<!BY)PASS(WORD|WD|PHRASE)?"
    r"|CREDENTIALS?)($|_)",
    re.IGNORECASE,
)
# not what a shell looks up, nor a path, a number or another option
_ASSIGNMENT = re.compile(
    r"(?<!\$)\b(?P<name>[A-Za-z_][\w-]*)=(?![\"']?([$`/~]|[\d.]+(\W|$)))\S"
    r"|(?<!\S)(?P<option>--[A-Za-z][\w-]*|[a-z]+_\w+)\s+(?![\"']?([$`/~&|;<>#-]|[\d.]+(\W|$)))\S"
)
_SECRET_VALUE = re.compile(
    r"://[^/\s:@$]*:[^/\s@$]+@|\b((hf_|ghp_|github_pat_|AKIA)\w{16,}|sk-[\w-]{16,}|Bearer\s+(?!\$)\S{8,})"
    r"|\bwandb\s+login\s+(--\S+\s+)*\w{32,}"
)
NO_SECRETS = (
    "looks like a secret, and scripts can be read by others; export it in the shell that you submit from (sbatch "
    "passes it on), or keep it in a file such as ~/.netrc"
)


@dataclass
class ClusterConfig:
    """A cluster."""

    account: str = ""
    """who pays"""
    qos: str = ""
    """quality of service"""
    gpu: NodeConfig = field(default_factory=NodeConfig)
    """jobs that train and evaluate"""
    cpu: NodeConfig = field(default_factory=NodeConfig)
    """jobs that build shards and convert models"""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """environment"""
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    """preflight"""
    restart: RestartConfig = field(default_factory=RestartConfig)
    """restarts"""

    def __post_init__(self) -> None:
        for kind in ("gpu", "cpu"):
            node: NodeConfig = getattr(self, kind)
            if not TIME.fullmatch(node.time):
                raise ValueError(f"{kind}.time is '{node.time}'; write minutes, HH:MM:SS or DAYS-HH:MM:SS")
            if node.memory and not MEMORY.fullmatch(node.memory):
                raise ValueError(f"{kind}.memory is '{node.memory}'; write 900G, or 0 for all of it")
            for directive in node.directives:
                if not directive.startswith("-"):
                    raise ValueError(f"{kind}.directives: '{directive}' is no option of sbatch (--name=value)")
            if not re.fullmatch(r"[\w.+-]*", node.gpu_type):
                raise ValueError(f"{kind}.gpu_type is '{node.gpu_type}'; write a type as sinfo lists it, such as h100")
            if min(node.gpus, node.tasks, node.cpus) < 0:
                raise ValueError(f"{kind}: gpus, tasks and cpus cannot be negative")
        for name in self.environment.variables:
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"environment.variables: '{name}' is no name of a variable")
            if _SECRET_NAME.match(name):
                raise ValueError(f"environment.variables: {name} {NO_SECRETS}")
        if self.environment.virtual_environment and self.environment.container.image:
            raise ValueError(
                "environment: programs run in the container, where virtual_environment is not active; name one of both"
            )
        _check_ranges(self.preflight, self.restart)
        for value in _texts(configs.as_dict(self)):
            if secret := secret_in(value):
                raise ValueError(f"{secret} {NO_SECRETS}")
            if re.search(r"[\x00-\x1f\x7f]", value):
                raise ValueError(f"{value!r} has a line break or another control character in it")


def secret_in(text: str) -> str | None:
    """What in a text looks like a secret, by the name that it is assigned to or by its form; little of it is told."""
    for found in _ASSIGNMENT.finditer(text):
        name = found["name"] or found["option"]
        if _SECRET_NAME.match(name.replace("-", "_")):
            return f"{name}=..." if found["name"] else f"{name} ..."
    form = _SECRET_VALUE.search(text)
    return f"'{form[0][:6]}...'" if form else None


def _check_ranges(preflight: PreflightConfig, restart: RestartConfig) -> None:
    """Raise `ValueError` for a number that makes no sense."""
    for name, value, least, most in (
        ("preflight.seconds", preflight.seconds, 10, 86_400),
        ("preflight.free_disk_gib", preflight.free_disk_gib, 0, math.inf),
        ("preflight.free_gpu_memory", preflight.free_gpu_memory, 0, 1),
        ("preflight.clock_seconds", preflight.clock_seconds, 0.1, math.inf),
        ("preflight.bandwidth_gbytes", preflight.bandwidth_gbytes, 0, math.inf),
        ("restart.signal_seconds", restart.signal_seconds, 1, 65_535),  # sbatch(1), --signal
        ("restart.time_limits", restart.time_limits, 0, math.inf),
        ("restart.without_progress", restart.without_progress, 0, math.inf),
        ("restart.exclude_nodes", restart.exclude_nodes, 0, math.inf),
    ):
        if not (math.isfinite(value) and least <= value <= most):
            limits = f"at least {least:g}" if most == math.inf else f"between {least:g} and {most:,g}"
            raise ValueError(f"{name} is {value}; it must be {limits}")


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []


def load(path: Path | None, changes: Sequence[str] = ()) -> ClusterConfig:
    """The description in `path` (None: `slurm/cluster.toml`), with `--section.key value` changes.

    Raises `InputError` where it does not exist or does not fit.
    """
    file = path or DEFAULT
    if not file.is_file():
        raise InputError(
            f"cluster description {file} does not exist; copy slurm/cluster.toml from the repository, adapt it to your "
            "cluster, and name it with --cluster"
        )
    return configs.parse(ClusterConfig, [str(file), *changes], "cluster description", "What jobs ask of a cluster.")
