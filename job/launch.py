"""How a rank starts: the variables that torchrun would have set from those that Slurm sets, and imports in less time.

torchrun is no good launcher under Slurm: it dies of USR1 before a rank sees it, and kills its ranks 30 seconds after
TERM, when their checkpoint may not be written yet.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping

MASTER_ADDRESS = "BIOMEDGPT_MASTER_ADDR"
"""overrides the first host of the step, where that name does not resolve"""

# Below Linux's ephemeral ports (32768), above what daemons listen on.
_FIRST_PORT, _PORTS = 15_000, 17_000


def adopt(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT for a task of a Slurm step.

    Nothing changes where torchrun has set them, nor outside a step: a batch script's own process is one of its own.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return
    if not {"SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys():
        return
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "localhost"
    environment.update(
        RANK=environment["SLURM_PROCID"],
        WORLD_SIZE=tasks,
        LOCAL_RANK=environment["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=_tasks_here(environment),
    )
    environment.setdefault("MASTER_ADDR", environment.get(MASTER_ADDRESS) or first_host(hosts))
    environment.setdefault("MASTER_PORT", str(port(environment)))


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import large libraries inside: a quarter faster.

    Their million objects, which stay, are not looked through for garbage, neither now nor later. W&B's client, which
    megatron-core's inference engine would import, is hidden from them; a run that is tracked imports it itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    hidden = "wandb" not in sys.modules
    if hidden:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hidden:
            del sys.modules["wandb"]
        gc.freeze()
        if was_enabled:
            gc.enable()


def first_host(nodes: str) -> str:
    """The first of a node list as Slurm writes it: `gpu[003-010,012]` is `gpu003`; `a1,b2` is `a1`."""
    name, rest = "", nodes
    while rest:
        text, bracket, rest = rest.partition("[")
        if "," in text:
            return name + text.split(",")[0]
        name += text
        if bracket:
            inside, _, rest = rest.partition("]")
            name += inside.split(",")[0].split("-")[0]
            if rest.startswith(","):
                break
    return name


def port(environment: Mapping[str, str]) -> int:
    """Where the ranks of a step meet: a function of job and step, so that steps on one node seldom share it."""
    job, step = int(environment.get("SLURM_JOB_ID", "0")), int(environment.get("SLURM_STEP_ID", "0"))
    return _FIRST_PORT + (31 * job + step) % _PORTS


def _tasks_here(environment: Mapping[str, str]) -> str:
    """Tasks of the step on this node, from a list such as `8(x3),4`."""
    counts: list[str] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "1")).split(","):
        count, _, repeated = part.partition("(x")
        counts += [count] * int(repeated.rstrip(")") or "1")
    node = int(environment.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else counts[-1]
