"""The main promise on real rows: one loss curve at every ZeRO stage and number of ranks, equal to a plain loop's."""

import copy

import pytest
import torch

from align import assemble
from align.config import ParallelConfig
from align.question_order import QuestionOrder
from tests.align.runs import BATCH, RATE, STEPS, checkpoint_tensors, final, make_config, quietly
from tests.ranks.fork import run_ranks
from tests.training import losses, metrics_rows


def plain_losses(config):
    """The plain loop: one process, torch's AdamW, every question by itself, no DeepSpeed."""
    config = copy.deepcopy(config)
    config.parallel = ParallelConfig(stage=0)
    torch.manual_seed(config.train.seed)
    model = assemble.build(config).train()
    order = QuestionOrder(config.data.sources, config.data.seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = [p for p in trained if p.dim() > 1], [p for p in trained if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    curve = []
    for step in range(STEPS):
        questions = [order.question(number)[0] for number in range(step * BATCH, (step + 1) * BATCH)]
        batches = [model.encoding.collate([model.encoding.example(question)]) for question in questions]
        total = sum(model(batch) for batch in batches) / sum(batch.answer_tokens for batch in batches)
        adamw.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in adamw.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 2)
        adamw.step()
        curve.append(total.item())
    return curve, {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture(scope="module")
def plain(align_inputs, tmp_path_factory):
    return plain_losses(make_config(tmp_path_factory.mktemp("unused"), align_inputs))


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_curve_equals_a_plain_loop(stage, world, align_inputs, plain, tmp_path):
    config = make_config(tmp_path / "run", align_inputs, stage)
    run_ranks(world, quietly, config)
    curve, weights = plain
    rows = metrics_rows(tmp_path / "run")
    assert losses(rows) == pytest.approx(curve, abs=1e-4)
    start, *_, end = [row["val/loss/chebi"] for row in rows if "val/loss/chebi" in row]
    assert end < start - 0.01
    saved = checkpoint_tensors(final(tmp_path / "run"))
    for name, value in weights.items():
        torch.testing.assert_close(saved[f"weights/{name}"], value, atol=2e-5, rtol=1e-4)
