"""Slurm's own commands, called: what they say, and a sentence where they refuse."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from job.errors import InputError
from slurm.cluster import MEMORY

_SECONDS = 60
# squeue(1), "JOB STATE CODES": a job in one of these may still run.
_UNFINISHED = {
    "PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD",
    "RESIZING", "RESV_DEL_HOLD", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED",
}  # fmt: skip

# Who a rank is (job.launch), and what Slurm tells a job; not where its commands find the cluster.
_OF_A_JOB = re.compile(
    r"(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$"
    r"|SBATCH_(CPU|MEM)_BIND|SLURM_(?!CONF|CLUSTERS$|JWT$|SACK_)"
)


@dataclass(frozen=True)
class JobInfo:
    """What Slurm says of a job."""

    job: str
    states: tuple[str, ...]
    """one; of an array job, those of its tasks"""
    reason: str = ""
    """why it waits, or why it ended"""
    nodes: str = ""
    restarts: int = 0

    @property
    def unfinished(self) -> bool:
        """Whether it waits or runs."""
        return bool(_UNFINISHED & set(self.states))


def available() -> bool:
    """Whether Slurm's commands are here."""
    return shutil.which("sbatch") is not None


def call(*words: str, environment: Mapping[str, str] | None = None) -> str:
    """What a command of Slurm prints. Raises `InputError` where it is not there or refuses, with its own words."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=_SECONDS, env=environment
        )
    except FileNotFoundError:
        raise InputError(f"{words[0]} is not here: run this where jobs are submitted (a login node)") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{words[0]} has not answered for {_SECONDS} s; is the cluster's controller up?") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise InputError(f"{' '.join(words[:2])}: {said}")
    return done.stdout


def submit(script: Path, after: Sequence[str], condition: str = "afterok") -> str:
    """Submit an sbatch file that waits for other jobs: for their success, or (`after`) their start; returns its id."""
    options = []
    if after:
        options = [f"--dependency={condition}:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    told = call("sbatch", "--parsable", *options, str(script), environment=_not_of_a_job(os.environ))
    for line in reversed(told.splitlines()):  # a site's own sbatch may greet first
        if found := re.fullmatch(r"(\d+)(;\S+)?", line.strip()):
            return found[1]
    raise InputError(f"sbatch has told no job id but {told[:200]!r}; see `squeue --me` for what it has submitted")


def _not_of_a_job(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a job has set: sbatch passes all on, and its ranks would take it for their own."""
    return {name: value for name, value in environment.items() if not _OF_A_JOB.match(name)}


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs, whatever they do."""
    call("scancel", *jobs)


def info(job: str) -> JobInfo | None:
    """What Slurm knows of a job; None where it has forgotten it (five minutes after the end, unless it accounts)."""
    try:
        text = call("scontrol", "--oneliner", "show", "job", job)
    except InputError as error:
        if "Invalid job id" not in str(error):
            raise
        return _accounted(job)
    tasks = [_fields(line) for line in text.splitlines() if line.strip()]
    states = {task["JobState"] for task in tasks if "JobState" in task}
    restarts = max((int(task["Restarts"]) for task in tasks if task.get("Restarts", "").isdecimal()), default=0)
    return JobInfo(job, tuple(sorted(states)), _first("Reason", tasks), _first("NodeList", tasks), restarts)


def _fields(line: str) -> dict[str, str]:
    """The fields of a job, the first of each name: what follows may be a path that looks like one."""
    return dict(reversed(re.findall(r"(?<!\S)(\w+)=(\S*)", line)))


def _first(name: str, tasks: Iterable[Mapping[str, str]]) -> str:
    """The first value of a field that says something."""
    return next((task[name] for task in tasks if task.get(name, "(null)") not in ("(null)", "None", "")), "")


def _accounted(job: str) -> JobInfo | None:
    """What the accounting database knows, where there is one."""
    try:
        text = call("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job}")
    except InputError:
        return None
    states = {line.split()[0] for line in text.splitlines() if line.strip()}  # "CANCELLED by 1000"
    return JobInfo(job, tuple(sorted(states))) if states else None


@dataclass(frozen=True)
class Partition:
    """Nodes of one make in a partition."""

    name: str
    is_default: bool
    nodes: int
    cpus: int
    memory_mb: int
    gpus: int
    """of the type asked for, or of all types"""
    minutes: float


def partitions(gpu_type: str = "") -> list[Partition]:
    """What `sinfo` lists, nodes that are down left out; GPUs are those of `gpu_type` (empty: any)."""
    found = []
    form = "%P|%D|%c|%m|%G|%l"
    for line in call("sinfo", "--noheader", "--responding", f"--format={form}").splitlines():
        try:
            name, nodes, cpus, memory, gres, limit = line.strip().split("|")
            many, cores, megabytes = (int(value.rstrip("+")) for value in (nodes, cpus, memory))
        except ValueError:
            raise InputError(f"sinfo --format='{form}' prints {line[:200]!r}, which is not that") from None
        gpus = 0
        for kind, count in re.findall(r"\bgpu:(?:([^:,()]+):)?(\d+)", gres):
            gpus += int(count) if gpu_type in ("", kind) else 0
        found.append(Partition(name.rstrip("*"), name.endswith("*"), many, cores, megabytes, gpus, minutes(limit)))
    return found


def megabytes(memory: str) -> float:
    """Megabytes of a memory size as `--mem` takes it (`128G`); 0 for the empty one."""
    found = MEMORY.fullmatch(memory)
    return int(found[1]) * {"K": 2**-10, "": 1, "M": 1, "G": 2**10, "T": 2**20}[found[2]] if found else 0


def minutes(limit: str) -> float:
    """Minutes of a time as Slurm writes it (`30`, `12:00:00`, `7-00:00:00`, `infinite`)."""
    if not limit[:1].isdigit():
        return float("inf")
    days, dash, rest = limit.rpartition("-")
    parts: Iterable[float] = [float(part) for part in rest.split(":")]
    parts = list(parts)
    if dash:  # days-hours[:minutes[:seconds]]
        parts += [0.0] * (3 - len(parts))
        return float(days) * 1440 + parts[0] * 60 + parts[1] + parts[2] / 60
    if len(parts) == 3:  # hours:minutes:seconds
        return parts[0] * 60 + parts[1] + parts[2] / 60
    return parts[0] + (parts[1] / 60 if len(parts) == 2 else 0.0)  # minutes[:seconds]


def hosts(nodes: str) -> list[str]:
    """All names of a node list as Slurm writes it: `a[08-10,12],b` is a08, a09, a10, a12, b.

    `scontrol show hostnames` says the same, but is seldom there in a container.
    """
    names = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        choices = []
        for text, inside in re.findall(r"([^\[]+)|\[([^\]]*)\]", item):
            choices.append([text] if text else [number for part in inside.split(",") for number in _numbers(part)])
        names += ["".join(parts) for parts in itertools.product(*choices)]
    return names


def _numbers(part: str) -> list[str]:
    """`08-10` is 08, 09, 10."""
    first, dash, last = part.partition("-")
    return [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)] if dash else [first]
