"""The main promise on real rows: one loss curve at every ZeRO stage and number of ranks, equal to a plain loop's."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch

from align import assemble
from align.config import DataConfig, ParallelConfig, SourceConfig
from align.question_order import QuestionOrder
from align.question_shards import QuestionSet
from tests.align.question_sets import write_set
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


@pytest.mark.parametrize("stage, offload", [(2, "optimizer"), (3, "parameters")])
def test_offload_changes_nothing(stage, offload, align_inputs, plain, tmp_path):
    config = make_config(tmp_path / "run", align_inputs, parallel=ParallelConfig(stage, offload, 60))
    config.checkpoint.every_steps = 2
    run_ranks(1, quietly, config)
    shutil.rmtree(final(tmp_path / "run"))
    run_ranks(1, quietly, config)  # states continue where they are kept, too
    assert losses(metrics_rows(tmp_path / "run")) == pytest.approx(plain[0] + plain[0][2:], abs=1e-4)


def test_recomputation_and_cached_features_change_nothing(align_inputs, plain, tmp_path):
    config = make_config(tmp_path / "run", align_inputs, recompute=True, samples=1, sample_tokens=4)
    config.data.cache_directory = str(tmp_path / "cache")
    run_ranks(2, quietly, config)
    assert losses(metrics_rows(tmp_path / "run")) == pytest.approx(plain[0], abs=1e-4)
    assert {path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()} == {"molecule", "protein"}
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [(row["step"], row["source"]) for row in samples] == [
        (step, source) for step in (0, STEPS) for source in ("chebi", "yeast")
    ]
    assert all(row["question"] and row["expected"] for row in samples)


@pytest.mark.parametrize("stage, world, mode", [(2, 2, "adapters"), (3, 2, "lora"), (3, 1, "all")])
def test_bf16_follows_fp32(stage, world, mode, align_inputs, tmp_path):
    """The frozen language model in bfloat16, what is trained and the molecule encoder in float32, at any stage."""
    curves = []
    for precision in ("fp32", "bf16"):
        changes = {"steps": 2, "samples": 1, "sample_tokens": 2}
        config = make_config(tmp_path / precision, align_inputs, stage, mode, precision, **changes)
        run_ranks(world, quietly, config)
        curves.append(losses(metrics_rows(tmp_path / precision)))
    assert curves[1] == pytest.approx(curves[0], abs=0.06) and curves[1] != curves[0]
    saved = checkpoint_tensors(final(tmp_path / "bf16"))
    assert {value.dtype for name, value in saved.items() if not name.startswith("buffers/")} == {torch.float32}


def test_full_training_follows_the_plain_loop(align_inputs, tmp_path):
    """With pretrained batch norms, whose statistics do not depend on what is computed together."""
    config = make_config(tmp_path / "run", align_inputs, 3, "all")
    weights = align_inputs.molecule_weights
    config.molecule = dataclasses.replace(config.molecule, kind="gcn", layers=5, width=300, weights=weights)
    run_ranks(2, quietly, config)
    assert losses(metrics_rows(tmp_path / "run")) == pytest.approx(plain_losses(config)[0], abs=2e-4)


def test_everything_trained_from_random_encoders_has_one_curve_at_every_stage(align_inputs, tmp_path):
    """Batch norms synchronised over ranks. At a rate so low that steps do not blow rounding up tenfold each."""
    curves = []
    for stage in (0, 1, 2, 3):
        config = make_config(tmp_path / f"stage {stage}", align_inputs, stage, "all", global_batch=8, steps=4)
        config.optimizer.lr = 1e-3
        run_ranks(2, quietly, config)
        curves.append(losses(metrics_rows(tmp_path / f"stage {stage}")))
    assert curves[0][-1] < curves[0][0] - 0.5
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)


@pytest.mark.parametrize("mode", ["lora", "encoders"])
def test_every_batch_runs_the_same_modules_in_the_same_order(mode, align_inputs, tmp_path):
    """What ZeRO-3 needs: ranks gather parameters together, whatever structures each has."""
    model = assemble.build(make_config(tmp_path, align_inputs, 0, mode)).train()
    chebi, yeast = (QuestionSet(path, "train") for path in (align_inputs.chebi, align_inputs.yeast))
    calls = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, inputs, name=name: calls.append(name))
    sequences = []
    for questions in ([chebi[0], chebi[1]], [yeast[0]], [], [chebi[0], yeast[0], yeast[1]]):
        calls.clear()
        model(model.encoding.collate([model.encoding.example(question) for question in questions]))
        sequences.append(list(calls))
    assert len(sequences[0]) > 50
    assert all(sequence == sequences[0] for sequence in sequences)


def test_validation_questions_that_cannot_be_asked_are_named(align_inputs, tmp_path):
    chebi = list(QuestionSet(align_inputs.chebi, "train"))[:4]
    too_long = [dataclasses.replace(question, question="word " * 600) for question in chebi]
    data = DataConfig(
        [SourceConfig(align_inputs.chebi), SourceConfig(str(write_set(tmp_path / "long", chebi, too_long)))]
    )
    run_ranks(1, quietly, make_config(tmp_path / "run", align_inputs, steps=1, data=data))
    row = next(row for row in metrics_rows(tmp_path / "run") if "val/loss/chebi" in row)
    assert "val/loss/long" not in row
    log = (tmp_path / "run" / "logs" / "attempt-1" / "rank-00000.log").read_text()
    assert "no validation question of long can be put to this model" in log
    assert all(f"skipped question {question.id}" in log for question in too_long[:3])
