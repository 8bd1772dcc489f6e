"""What adapters standardise by: mean and deviation of what the encoders give for the first training structures."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist

from align.adapters import Adapter
from align.batches import rank_batches
from align.model import KINDS, AlignedModel
from align.prompts import Kind
from align.question_order import QuestionOrder
from parallel import ranks

QUESTIONS = 1024
"""How many training questions are looked at: the mean is then known to a thirtieth of a deviation."""

_BLOCK = 128  # questions that are encoded at a time
_LEAST_DEVIATION = 1e-3  # of the largest: features that hardly vary are not blown up
_ROUNDING = 1e-5  # of the largest value: where nothing varies by more, all structures are one and the same


def measure_statistics(model: AlignedModel, order: QuestionOrder, token_budget: int, device: torch.device) -> int:
    """Set the statistics of every adapter that standardises; returns of how many questions, 0 where none does.

    Collective: the ranks share the work, and all end with the same statistics, which do not depend on their number.
    Questions that cannot be put to this model are passed over. Encoders and adapters are moved to `device`.
    """
    adapters: dict[Kind, Adapter] = {}
    for kind in KINDS:
        adapter = getattr(model, f"{kind}_adapter")
        if adapter is not None and adapter.standardise:
            adapters[kind] = adapter.to(device)
            getattr(model, f"{kind}_encoder").to(device)
    if not adapters:
        return 0
    sums = {  # of the vectors, of their squares, and their number
        kind: torch.zeros(3, len(adapter.mean), dtype=torch.float64, device=device)
        for kind, adapter in adapters.items()
    }
    count = min(QUESTIONS, sum(len(questions) for questions in order.sets))
    for first in range(0, count, _BLOCK):
        questions = [order.question(number)[0] for number in range(first, min(first + _BLOCK, count))]
        prepared = ranks.together(
            partial(rank_batches, questions, model.encoding, token_budget, ranks.rank(), ranks.world())
        )
        for batch in prepared.batches:
            moved = batch.to(device)
            for kind, adapter in adapters.items():
                structures = moved.molecules if kind == "molecule" else moved.proteins
                with torch.no_grad():
                    values = adapter.gather(model.features(kind, structures), structures.lengths).double()
                sums[kind] += torch.stack([values.sum(0), (values**2).sum(0), torch.ones_like(values).sum(0)])
    for kind, adapter in adapters.items():
        dist.all_reduce(sums[kind])
        total, squares, number = sums[kind]
        if number[0]:
            mean = total / number
            deviation = (squares / number - mean**2).clamp(min=0).sqrt()
            adapter.mean.copy_(mean)
            if deviation.max() <= _ROUNDING * (squares / number).max().sqrt():
                deviation = torch.ones_like(deviation)
            adapter.deviation.copy_(deviation.clamp(min=float(_LEAST_DEVIATION * deviation.max())))
    return count
