"""Process groups: one world on NCCL or gloo, cut into megatron-core's tensor, pipeline, context and data groups."""

from __future__ import annotations

import datetime
import os
import random
import warnings

import numpy as np
import torch
import torch.distributed as dist

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from parallel.layout import Layout
from parallel.ranks import everywhere

from megatron.core import parallel_state, tensor_parallel


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
