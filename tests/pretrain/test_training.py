"""The main promise on real input: one loss curve at every layout, equal to transformers', back out as a HF model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from data_shards.mixture import Source, TrainingOrder
from data_shards.order import ValidationWindows
from data_shards.shards import ShardSet
from job.training import CheckpointConfig
from parallel import convert
from parallel.layout import Layout
from tests.ranks.fork import run_ranks
from tests.training import BATCH, RATE, SEQUENCE, STEPS, losses, make_config, metrics_rows, quietly

LAYOUTS = {
    "one": (1, Layout(), 1),
    "data2": (2, Layout(), 2),
    "tensor2": (2, Layout(tensor=2), 1),
    "tensor2-no-sequence-parallel": (2, Layout(tensor=2, sequence_parallel=False), 4),
    "pipeline2": (2, Layout(pipeline=2), 2),
    "context2": (2, Layout(context=2), 2),
    "tensor2-pipeline2": (4, Layout(tensor=2, pipeline=2), 2),
}


def validation(rows):
    """Validation losses at the start and at the end, by source."""
    found = [{key: value for key, value in row.items() if key.startswith("val/loss/")} for row in rows]
    found = [values for values in found if values]
    return found[0], found[-1]


def articles(inputs):
    return TrainingOrder([Source("articles", Path(inputs.shards))], SEQUENCE, 7)


def reference(model, order):
    """The plain loop: transformers, torch's AdamW, the same windows and loss masks; its losses."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    curve = []
    for step in range(STEPS):
        samples = [order.sample(number) for number in range(step * BATCH, (step + 1) * BATCH)]
        windows = torch.from_numpy(np.stack([sample.tokens for sample in samples]))
        masks = np.stack([np.ones(SEQUENCE) if sample.mask is None else sample.mask for sample in samples])
        if not masks.any():
            curve.append(0.0)
            continue
        loss = mean_loss(model, windows, torch.from_numpy(masks).float())
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in adamw.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 2)
        adamw.step()
        curve.append(loss.item())
    return curve


def mean_loss(model, windows, mask):
    logits = model(windows[:, :-1]).logits.float()
    each = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
    return (each * mask.flatten()).sum() / mask.sum()


@pytest.fixture(scope="module")
def plain(inputs):
    return reference(AutoModelForCausalLM.from_pretrained(inputs.hugging_face, dtype=torch.float32), articles(inputs))


@pytest.mark.parametrize("name", LAYOUTS)
def test_curve_equals_plain_transformers(name, inputs, plain, tmp_path):
    world, layout, micro_batch = LAYOUTS[name]
    run_ranks(world, quietly, make_config(tmp_path / "run", inputs, layout, micro_batch, validate=20))
    rows = metrics_rows(tmp_path / "run")
    assert losses(rows) == pytest.approx(plain, abs=1e-4)
    start, end = validation(rows)
    assert set(start) == {"val/loss/pubmed", "val/loss/pmc"}
    assert all(end[source] < start[source] for source in start)

    convert.export_main([str(tmp_path / "run"), str(tmp_path / "hf")])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    for source in ("pubmed", "pmc"):
        windows = ValidationWindows(ShardSet(Path(inputs.shards), "validation", source), SEQUENCE)
        pairs = [windows[index] for index in range(min(20, len(windows)))]
        tokens = torch.from_numpy(np.stack([pair[0] for pair in pairs]))
        mask = torch.from_numpy(np.stack([pair[1] for pair in pairs])).float()
        with torch.no_grad():
            assert mean_loss(model, tokens, mask).item() == pytest.approx(end[f"val/loss/{source}"], abs=1e-4)


def test_interleaved_stages_on_eight_layers(inputs, tmp_path):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "hf")
    convert.import_main([str(tmp_path / "hf"), str(tmp_path / "base")])
    layout = Layout(tensor=2, pipeline=2, virtual_pipeline=2)
    run_ranks(4, quietly, make_config(tmp_path / "run", inputs, layout, 2, base=str(tmp_path / "base")))
    assert losses(metrics_rows(tmp_path / "run")) == pytest.approx(reference(model, articles(inputs)), abs=1e-4)


def test_bf16_follows_fp32_at_every_layout(inputs, plain, tmp_path):
    curves = []
    for name, world, layout in (("one", 1, Layout()), ("tensor2", 2, Layout(tensor=2)), ("data2", 2, Layout())):
        run_ranks(world, quietly, make_config(tmp_path / name, inputs, layout, precision="bf16"))
        curves.append(losses(metrics_rows(tmp_path / name)))
    for curve in curves:
        assert curve == pytest.approx(plain, abs=0.05)
        assert curve == pytest.approx(curves[0], abs=0.02)
        assert curve != plain  # it did compute in bf16


OVERLAPPING = {
    "data2": (2, Layout()),
    "pipeline2-data2": (4, Layout(pipeline=2)),
    "tensor2-data2": (4, Layout(tensor=2)),
}


@pytest.mark.parametrize("name", OVERLAPPING)
def test_overlapped_communication_changes_nothing(name, inputs, plain, tmp_path):
    world, layout = OVERLAPPING[name]
    config = make_config(tmp_path / "run", inputs, layout, 1, checkpoint=CheckpointConfig(every_steps=3))
    config.optimizer.overlap = True
    run_ranks(world, quietly, config)
    assert losses(metrics_rows(tmp_path / "run")) == pytest.approx(plain, abs=1e-4)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000005")  # as if the job had died before the end
    run_ranks(world, quietly, config)
    assert losses(metrics_rows(tmp_path / "run")) == pytest.approx(plain + plain[3:], abs=1e-4)


def test_checkpoints_hold_weights_whose_gathering_was_to_overlap_the_next_step(inputs, tmp_path):
    """At every step, not only after the validation at the end, which has gathered them."""
    for overlap in (False, True):
        every = CheckpointConfig(every_steps=1, keep=0)
        config = make_config(tmp_path / f"overlap {overlap}", inputs, steps=3, checkpoint=every)
        config.optimizer.overlap = overlap
        run_ranks(2, quietly, config)
        convert.export_main(
            [str(tmp_path / f"overlap {overlap}/checkpoints/step-00000002"), str(tmp_path / f"hf {overlap}")]
        )
    models = [
        AutoModelForCausalLM.from_pretrained(tmp_path / f"hf {overlap}", dtype=torch.float32)
        for overlap in (False, True)
    ]
    for (name, plain_weight), overlapped in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(plain_weight, overlapped, atol=1e-5), name  # a step moves weights by 5e-4 and more


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputation_changes_nothing(recompute, inputs, plain, tmp_path):
    config = make_config(tmp_path / "run", inputs, Layout(tensor=2))
    config.train.recompute = recompute
    run_ranks(2, quietly, config)
    assert losses(metrics_rows(tmp_path / "run")) == pytest.approx(plain, abs=1e-4)


def test_retention_keeps_what_it_says(inputs, tmp_path):
    keep = CheckpointConfig(every_steps=1, keep=1, keep_every_steps=2)
    run_ranks(1, quietly, make_config(tmp_path / "run", inputs, checkpoint=keep))
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004", "step-00000005"]
    assert (tmp_path / "run" / "latest").read_text() == "step-00000005\n"
