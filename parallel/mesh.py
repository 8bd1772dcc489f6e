"""Process groups: one world on NCCL or gloo, cut into megatron-core's tensor, pipeline, context and data groups."""

from __future__ import annotations

import datetime
import os
import random
import warnings
from collections.abc import Callable
from typing import TypeVar, cast

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

    Rank, world size and rendezvous come from torchrun's environment variables. `layout.timeout_seconds` goes to the
    world and to every group of the mesh: with one of the two at its default, a hang would last 30 minutes. Seeds
    Python, numpy and torch from `seed`; megatron-core derives each rank's dropout stream from it.
    """
    timeout = datetime.timedelta(seconds=layout.timeout_seconds)
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_cuda else "gloo", timeout=timeout)
    layout.data_parallel(dist.get_world_size())
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
