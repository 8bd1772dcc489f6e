"""One pass of the pipeline schedule over micro-batches: loss summed over tokens, averaged over the global batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from pretrain.data import Batch

from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func


def run_schedule(
    chunks: list[Any],
    batches: Iterator[Batch],
    count: int,
    micro_batch: int,
    sequence_length: int,
    forward_only: bool,
) -> tuple[float, int]:
    """Run `count` micro-batches through megatron-core's schedule for this mesh; collective.

    Returns (mean loss over all tokens whose mask is 1, their number), over all data- and context-parallel ranks, equal
    on every rank. Unless `forward_only`, gradients are left reduced and divided by that number of tokens: a loss
    averaged over the tokens of the global batch, never a mean of means.
    """
    if len(chunks) > 1:  # interleaved chunks go over the same micro-batches
        held = list(batches)
        iterators: Any = [iter(held) for _ in chunks]
    else:
        iterators = batches
    results = get_forward_backward_func()(
        forward_step_func=_forward,
        data_iterator=iterators,
        model=chunks if len(chunks) > 1 else chunks[0],
        num_microbatches=count,
        seq_length=sequence_length,
        micro_batch_size=micro_batch,
        decoder_seq_length=sequence_length,
        forward_only=forward_only,
    )
    device = results[0]["loss"].device if results else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    if parallel_state.is_pipeline_last_stage(ignore_virtual=True):
        totals += torch.stack([result["loss"] for result in results]).double().sum(0)
        dist.all_reduce(totals, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(totals, last, group=parallel_state.get_pipeline_model_parallel_group())
    total, tokens = totals.tolist()
    return total / max(tokens, 1.0), int(tokens)


def _forward(iterator: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Any]:
    batch = next(iterator)
    output = model(batch["tokens"], batch["positions"], None, labels=batch["labels"])
    return output, partial(_loss, batch["mask"])


def _loss(mask: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(sum of the losses, number of tokens, what to log) of one micro-batch; megatron-core divides at the end."""
    total, tokens = (losses.float() * mask).sum(), mask.sum()
    return total, tokens.to(torch.int), {"loss": torch.stack([total.detach(), tokens])}
