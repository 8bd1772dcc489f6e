"""Process groups: one world on NCCL or gloo, cut into megatron-core's tensor, pipeline, context and data groups."""

from __future__ import annotations

import contextlib
import datetime
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from job.errors import InputError
from parallel.layout import Layout

from megatron.core import parallel_state, tensor_parallel

Result = TypeVar("Result")


def initialize(layout: Layout, seed: int) -> None:
    """Join the job's processes and build the mesh.

    Rank, world size and rendezvous come from torchrun's environment variables; without them this process is alone.
    `layout.timeout_seconds` goes to the world and to every group of the mesh: with one of the two at its default, a
    hang would last 30 minutes. Seeds Python, numpy and torch from `seed`; megatron-core derives each rank's dropout
    stream from it.
    """
    timeout = datetime.timedelta(seconds=layout.timeout_seconds)
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "WORLD_SIZE" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    everywhere(lambda: layout.data_parallel(int(os.environ["WORLD_SIZE"])))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timeout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=layout.tensor,
            pipeline_model_parallel_size=layout.pipeline,
            virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
            context_parallel_size=layout.context,
            distributed_timeout_minutes=layout.timeout_seconds / 60,
        )
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def shutdown() -> None:
    """Leave the job's process groups."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def everywhere(function: Callable[[], Result]) -> Result:
    """`function()`; an `InputError` of it is one that every rank raises by itself, so that only the first prints it."""
    try:
        return function()
    except InputError as error:
        error.everywhere = True
        raise


# How gloo, NCCL and the rendezvous store say it; torch gives gloo's errors no type of their own.
_LOST_CONTACT = re.compile(r"[Tt]imed out|[Tt]imeout|[Cc]onnection (closed|reset|refused|was)|Broken pipe|pair closure")


def is_lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because another rank ended, hangs, or cannot be reached."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or _LOST_CONTACT.search(str(error)) is not None
    )


@contextlib.contextmanager
def explain_lost_contact(layout: Layout) -> Iterator[None]:
    """Turn such an error into an `InputError`: the cause is told by another rank, not by this one's traceback."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_contact(error):
            raise
        reason = re.sub(r"^\[[^]]*\]\s*", "", str(error).strip().splitlines()[0])  # without gloo's source file and line
        if "imed out" in reason or "imeout" in reason:
            what = f"waited {layout.timeout_seconds:g} s (parallel.timeout_seconds) for another rank, which hangs"
        else:
            what = "lost another rank, which has ended; its own message says why"
        raise InputError(f"{what} ({reason}). Start the same command again to continue") from error


def raise_together(problem: str | None) -> None:
    """Collective: raise `InputError` on every rank where any rank has a problem, with the first such rank's words."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for rank, text in enumerate(problems):
        if text is not None:
            raise InputError(text if rank == 0 else f"{text} (rank {rank})", everywhere=True)


def together(function: Callable[[], Result]) -> Result:
    """Collective: `function()` on every rank; where it raises `InputError` on one, it raises on all, and none waits."""
    problem, result = None, None
    try:
        result = function()
    except InputError as error:
        problem = str(error)
    raise_together(problem)
    return cast(Result, result)


def device() -> torch.device:
    """The device this rank computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def is_logging_rank() -> bool:
    """True on the one rank that prints and writes metrics."""
    return dist.get_rank() == 0


def agree(*flags: bool) -> list[bool]:
    """Each flag, true on all ranks where it is true on any; collective."""
    votes = torch.tensor([float(flag) for flag in flags], device=device())
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


def from_first_rank(*values: Any) -> Any:
    """Rank 0's values on every rank: shared file systems do not show a new file everywhere at once."""
    box = [values]
    dist.broadcast_object_list(box, src=0)
    return box[0]
