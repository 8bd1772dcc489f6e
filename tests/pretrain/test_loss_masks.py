"""Instruction data: loss of the targets that masks leave in, at every layout the same as in a plain loop."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from data_shards import tokens
from data_shards.mixture import Source, TrainingOrder
from data_shards.order import ValidationWindows, permutation
from data_shards.shards import ShardSet, TokenizerInfo
from job.directory import RunDirectory
from job.training import CheckpointConfig
from parallel import convert
from parallel.layout import Layout
from pretrain.config import SourceConfig
from tests.data_shards.shard_sets import build_questions, write_build
from tests.faults.jobs import complete_job
from tests.pretrain.test_training import mean_loss, reference
from tests.ranks.fork import RankFailed, run_ranks
from tests.training import (
    BATCH,
    SEQUENCE,
    STEPS,
    assert_equal_checkpoints,
    checkpoint_tensors,
    losses,
    make_config,
    metrics_rows,
    quietly,
)

LAYOUTS = {
    "one": (1, Layout(), 8),
    "one-sample-at-a-time": (1, Layout(), 1),
    "data2": (2, Layout(), 2),
    "context2": (2, Layout(context=2), 2),
    "tensor2-pipeline2": (4, Layout(tensor=2, pipeline=2), 2),
}


@pytest.fixture(scope="module")
def questions(inputs, real_data, tmp_path_factory):
    """Inputs whose shards are real questions with masks."""
    directory = tmp_path_factory.mktemp("questions")
    build_questions(directory, real_data, Path(inputs.hugging_face), 400)
    return dataclasses.replace(inputs, shards=str(directory))


@pytest.fixture(scope="module")
def order(questions):
    return TrainingOrder([Source("articles", Path(questions.shards))], SEQUENCE, 7)


@pytest.fixture(scope="module")
def plain(questions, order):
    """The plain loop's losses, and the model that it ends with."""
    model = AutoModelForCausalLM.from_pretrained(questions.hugging_face, dtype=torch.float32)
    return reference(model, order), model


@pytest.mark.parametrize("name", LAYOUTS)
def test_curve_and_weights_equal_plain_transformers(name, questions, order, plain, tmp_path):
    world, layout, micro_batch = LAYOUTS[name]
    run_ranks(world, quietly, make_config(tmp_path / "run", questions, layout, micro_batch, validate=20))
    rows = [row for row in metrics_rows(tmp_path / "run") if "train/loss" in row]
    curve, model = plain
    assert losses(rows) == pytest.approx(curve, abs=1e-4)
    targets = [int(order.target_masks(step * BATCH, BATCH).sum()) for step in range(STEPS)]
    assert [row["train/targets"] for row in rows] == targets
    assert max(targets) < BATCH * SEQUENCE / 3  # the masks leave out most
    assert [row["train/tokens"] for row in rows] == [(step + 1) * BATCH * SEQUENCE for step in range(STEPS)]

    convert.export_main([str(tmp_path / "run"), str(tmp_path / "hf")])
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    for (key, value), (_, wanted) in zip(trained.named_parameters(), model.named_parameters(), strict=True):
        assert torch.allclose(value, wanted, atol=2e-4), key
    windows = ValidationWindows(ShardSet(Path(questions.shards), "validation"), SEQUENCE)
    pairs = [windows[index] for index in range(min(20, len(windows)))]
    with torch.no_grad():
        tokens_, mask = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        wanted = mean_loss(trained, tokens_, mask.float()).item()
    measured = [row["val/loss/shard"] for row in metrics_rows(tmp_path / "run") if "val/loss/shard" in row]
    assert len(measured) == 2 and measured[1] == pytest.approx(wanted, abs=1e-4)
    assert measured[1] < measured[0]


def test_masked_and_unmasked_sources_in_one_mixture(inputs, questions, tmp_path):
    config = make_config(tmp_path / "run", questions, Layout(), 2)
    config.data.sources = [SourceConfig(questions.shards, "questions", 0.5), SourceConfig(inputs.shards, "text", 0.5)]
    run_ranks(2, quietly, config)
    sources = [Source("questions", Path(questions.shards), 0.5), Source("text", Path(inputs.shards), 0.5)]
    mixed = TrainingOrder(sources, SEQUENCE, 7)
    model = AutoModelForCausalLM.from_pretrained(inputs.hugging_face, dtype=torch.float32)
    assert losses(metrics_rows(tmp_path / "run")) == pytest.approx(reference(model, mixed), abs=1e-4)


def test_masks_that_leave_nothing_out_change_no_bit(inputs, real_data, tmp_path):
    for loss in ("all ones", "unmasked"):
        build_questions(tmp_path / loss, real_data, Path(inputs.hugging_face), 200, loss=loss)
        shards = dataclasses.replace(inputs, shards=str(tmp_path / loss))
        run_ranks(2, quietly, make_config(tmp_path / f"run {loss}", shards, steps=3))
    ones, without = metrics_rows(tmp_path / "run all ones"), metrics_rows(tmp_path / "run unmasked")
    assert losses(ones) == losses(without)
    assert [row["train/targets"] for row in ones if "train/loss" in row] == [BATCH * SEQUENCE] * 3
    assert not any("train/targets" in row for row in without)
    ends = [RunDirectory(tmp_path / f"run {loss}").checkpoint(3) for loss in ("all ones", "unmasked")]
    assert_equal_checkpoints(*ends)


def test_resumed_run_ends_in_the_same_bits(questions, tmp_path):
    config = make_config(tmp_path / "run", questions, steps=3, checkpoint=CheckpointConfig(every_steps=2, keep=0))
    run_ranks(2, quietly, config)
    last = RunDirectory(tmp_path / "run").checkpoint(3)
    last.rename(tmp_path / "undisturbed")  # as if the job had died before the end
    run_ranks(2, quietly, config)
    curve = losses(metrics_rows(tmp_path / "run"))
    assert len(curve) == 4 and curve[3] == curve[2]
    assert_equal_checkpoints(tmp_path / "undisturbed", last)


@pytest.fixture(scope="module")
def few_targets(inputs, real_data, tmp_path_factory):
    """Documents of 200 tokens: the first of training's order have targets, then steps follow without; none later."""
    tokenizer = tokens.load(Path(inputs.hugging_face))
    text = (real_data / "medmcqa" / "dev_sample_open.json").read_text(encoding="utf-8")
    [ids] = tokenizer.encode_batch([text[:40_000]])
    documents = [np.concatenate([ids[:1], part, ids[-1:]]) for part in ids[1:-1][: 80 * 198].reshape(80, 198)]
    masks = [np.zeros(200, np.uint8) for _ in documents]
    for document in permutation(80, 7, 0)[[0, 1, 2, *range(18, 40)]]:
        masks[document][100:] = 1
    described = TokenizerInfo(
        str(tokenizer.path), tokenizer.sha256, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id
    )
    directory = tmp_path_factory.mktemp("few")
    splits = {"train": documents, "validation": documents[:9]}
    write_build(directory, splits, masks={"train": masks, "validation": [masks[0] * 0] * 9}, tokenizer=described)
    return dataclasses.replace(inputs, shards=str(directory))


@pytest.mark.parametrize("layout, overlap", [(Layout(), False), (Layout(), True), (Layout(pipeline=2), False)])
def test_a_step_without_targets_leaves_the_weights(few_targets, layout, overlap, tmp_path):
    order = TrainingOrder([Source("articles", Path(few_targets.shards))], SEQUENCE, 7)
    targets = [int(order.target_masks(step * BATCH, BATCH).sum()) for step in range(STEPS)]
    assert [count > 0 for count in targets] == [True, False, False, True, True]
    config = make_config(tmp_path / "run", few_targets, layout, checkpoint=CheckpointConfig(every_steps=1, keep=0))
    config.optimizer.overlap = overlap
    output = complete_job(2, config)
    assert "step 2 is skipped" in output and "samples 8 to 15" in output and "step 3 is skipped" in output
    rows = [row for row in metrics_rows(tmp_path / "run") if "train/loss" in row]
    assert [row["train/targets"] for row in rows] == targets
    assert [row.get("health/skipped", 0) for row in rows] == [int(count == 0) for count in targets]
    model = AutoModelForCausalLM.from_pretrained(few_targets.hugging_face, dtype=torch.float32)
    assert losses(rows) == pytest.approx(reference(model, order), abs=1e-4)
    run = RunDirectory(tmp_path / "run")
    assert_equal_checkpoints(run.checkpoint(1), run.checkpoint(3))
    before, after = (checkpoint_tensors(run.checkpoint(step)) for step in (3, 4))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert "no validation loss of shard: its loss masks leave out every target" in output
    assert not any("val/loss/shard" in row for row in metrics_rows(tmp_path / "run"))


def test_a_corpus_without_targets_is_refused(inputs, tmp_path):
    documents = [np.array([1, 5, 6, 2], np.uint16)] * 50
    described = ShardSet(Path(inputs.shards)).manifest.tokenizer
    nothing = [np.zeros(4, np.uint8)] * 50
    write_build(
        tmp_path / "nothing",
        {"train": documents, "validation": []},
        masks={"train": nothing, "validation": []},
        tokenizer=described,
    )
    shards = dataclasses.replace(inputs, shards=str(tmp_path / "nothing"))
    with pytest.raises(RankFailed, match="nothing to learn: its loss masks leave out every token"):
        run_ranks(1, quietly, make_config(tmp_path / "run", shards))
