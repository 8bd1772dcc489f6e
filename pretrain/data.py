"""From the order of samples to what this rank feeds the model: micro-batches of the global batch, by sample number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from data_shards.mixture import TrainingOrder

from megatron.core import parallel_state

Batch = dict[str, torch.Tensor]


def training_batches(
    order: TrainingOrder, first_sample: int, global_batch: int, micro_batch: int, device: torch.device
) -> Iterator[Batch]:
    """This rank's micro-batches of one step, which covers samples first_sample to first_sample + global_batch.

    Which rank computes a sample changes with the layout, which samples a step holds does not.
    """
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    for start in range(first_sample + rank * micro_batch, first_sample + global_batch, size * micro_batch):
        yield to_batch(order.batch(start, micro_batch), order.target_masks(start, micro_batch), device)


def to_batch(windows: np.ndarray, mask: np.ndarray | None, device: torch.device) -> Batch:
    """Windows [b, s + 1] (and a mask of targets [b, s], 1 where they count) as this context rank's model inputs.

    Returns tokens and labels (int64), positions (int64) and mask (float32), each [b, s / context size]: under context
    parallelism rank r of c takes chunks r and 2c - 1 - r of the sequence, as megatron-core expects.
    """
    tokens = torch.from_numpy(np.ascontiguousarray(windows[:, :-1], dtype=np.int64))
    labels = torch.from_numpy(np.ascontiguousarray(windows[:, 1:], dtype=np.int64))
    weights = torch.ones(labels.shape) if mask is None else torch.from_numpy(mask.astype(np.float32))
    positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
    batch = {"tokens": tokens, "labels": labels, "positions": positions, "mask": weights}
    return {name: _to_device(_context_part(tensor), device) for name, tensor in batch.items()}


def _context_part(tensor: torch.Tensor) -> torch.Tensor:
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return tensor
    rank = parallel_state.get_context_parallel_rank()
    chunks = tensor.chunk(2 * size, dim=1)
    return torch.cat([chunks[rank], chunks[2 * size - 1 - rank]], dim=1)


def _to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return tensor.contiguous()
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)
