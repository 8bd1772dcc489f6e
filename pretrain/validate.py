"""Validation loss of each source, over the same windows at every layout."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from data_shards.order import ValidationWindows
from parallel import ranks
from parallel.layout import Layout
from pretrain.data import Batch, to_batch
from pretrain.step import run_schedule

from megatron.core import parallel_state

log = logging.getLogger("pretrain")


def validate(
    chunks: list[Any],
    sources: dict[str, ValidationWindows],
    layout: Layout,
    micro_batch: int,
    samples: int,
    device: torch.device,
) -> dict[str, float]:
    """`val/loss/<source>` and `val/perplexity/<source>` for each source; collective.

    `samples` limits the windows of each source, taken from its beginning (0: all). The loss is the mean over tokens,
    so that it is comparable between runs and equals what `transformers` computes over the same windows. A source has no
    loss where its masks leave out every target of these windows: a warning says so.
    """
    for chunk in chunks:
        chunk.eval()
    values = {}
    with torch.no_grad():
        for source, windows in sources.items():
            number = min(len(windows), samples) if samples else len(windows)
            loss, targets = _mean_loss(chunks, windows, number, layout, micro_batch, device)
            if not targets:
                if ranks.is_logging_rank():
                    log.warning("no validation loss of %s: its loss masks leave out every target measured", source)
                continue
            values[f"val/loss/{source}"] = loss
            values[f"val/perplexity/{source}"] = math.exp(min(loss, 700.0))
    for chunk in chunks:
        chunk.train()
    return values


def _mean_loss(
    chunks: list[Any],
    windows: ValidationWindows,
    number: int,
    layout: Layout,
    micro_batch: int,
    device: torch.device,
) -> tuple[float, int]:
    """(mean loss, number of targets)."""
    data = parallel_state.get_data_parallel_world_size()
    count = math.ceil(number / (micro_batch * data))
    if layout.virtual_pipeline > 1:  # the interleaved schedule wants whole rounds of the pipeline
        count = math.ceil(count / layout.pipeline) * layout.pipeline
    batches = _batches(windows, number, count, micro_batch, device)
    return run_schedule(chunks, batches, count, micro_batch, windows.sequence_length, forward_only=True)


def _batches(
    windows: ValidationWindows, number: int, count: int, micro_batch: int, device: torch.device
) -> Iterator[Batch]:
    """This rank's micro-batches; past the last window come copies of the first that do not count."""
    rank, data = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    for index in range(count):
        start = (index * data + rank) * micro_batch
        pairs = [windows[place if place < number else 0] for place in range(start, start + micro_batch)]
        mask = np.stack([pair[1] for pair in pairs])
        mask[[place >= number for place in range(start, start + micro_batch)]] = False
        yield to_batch(np.stack([pair[0] for pair in pairs]), mask, device)
