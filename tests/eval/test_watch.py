"""Checkpoints of a real run are scored as they appear, and whether training helped is told with intervals."""

import json
from dataclasses import replace

import pytest

from eval import run, watch
from eval.reports import evaluation
from eval.trust import pretraining
from job.errors import InputError
from job.training import CheckpointConfig, TrackingConfig
from tests.faults.jobs import complete_job
from tests.pretrain.test_tracking import wandb_rows
from tests.training import make_config, metrics_rows


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory):
    """A run of eight steps that keeps two checkpoints."""
    directory = tmp_path_factory.mktemp("watched") / "my-run"
    checkpoint = CheckpointConfig(every_steps=4, keep=0)
    complete_job(
        1,
        make_config(
            directory, inputs, steps=8, checkpoint=checkpoint, tracking=TrackingConfig(mode="offline"), validate=20
        ),
    )
    return directory


WORDS = ["--sequence-length", "128", "--limit", "20"]


def test_scores_every_checkpoint_once(trained, inputs):
    words = [str(trained), "--suite", "perplexity", "--data", inputs.shards, *WORDS]
    before = len(metrics_rows(trained))
    assert watch.main(words) == 0  # the run has ended: it does not wait for more
    rows = metrics_rows(trained)[before:]
    assert [row["step"] for row in rows] == [4, 8]
    tokens = {row["step"]: row["train/tokens"] for row in metrics_rows(trained)[:before] if "train/loss" in row}
    assert all(row["train/tokens"] == tokens[row["step"]] for row in rows)
    for row in rows:
        [directory] = (trained / "evaluation").glob(f"perplexity-*/step-{row['step']:08d}")
        measured = json.loads((directory / "results.json").read_text())["results"][directory.name]
        for source in ("pubmed", "pmc"):
            assert row[f"eval/{source}/loss"] == measured[source]["metrics"]["loss"]["value"]
            assert row[f"eval/{source}/loss_ci_low"] < row[f"eval/{source}/loss"] < row[f"eval/{source}/loss_ci_high"]
        assert not (directory / "model").exists()
    # Training validated on the same windows with the same weights.
    validated = [row for row in metrics_rows(trained) if row["step"] == 8 and "val/loss/pmc" in row]
    assert rows[-1]["eval/pmc/loss"] == pytest.approx(validated[-1]["val/loss/pmc"], rel=1e-4)
    mirrored = [row for file in sorted((trained / "wandb").glob("offline-run-*/*.wandb")) for row in wandb_rows(file)]
    mirrored = [row for row in mirrored if "eval/pmc/loss" in row]
    assert [row["train/tokens"] for row in mirrored] == [row["train/tokens"] for row in rows]
    assert [row["eval/pmc/loss"] for row in mirrored] == [row["eval/pmc/loss"] for row in rows]

    assert watch.main([*words, "--once"]) == 0
    assert len(metrics_rows(trained)) == before + 2
    assert watch.main([*words[:-1], "10", "--once"]) == 0  # other options are another series of scores
    assert len(metrics_rows(trained)) == before + 4


def test_refuses_what_is_no_run(tmp_path, inputs):
    with pytest.raises(InputError, match="not the directory of a training run"):
        watch.main([str(tmp_path), "--suite", "perplexity", "--data", inputs.shards])


def test_pretraining_helps_on_its_own_text(trained, inputs, tmp_path, capsys):
    from parallel.convert import export_model

    for step in (4, 8):
        export_model(trained / "checkpoints" / f"step-{step:08d}", tmp_path / f"after-{step}")
    words = ["--base", inputs.hugging_face, "--continued", str(tmp_path / "after-4"), str(tmp_path / "after-8")]
    words += ["--shards", inputs.shards, "--sequence-length", "128", "--out", str(tmp_path / "out")]
    pretraining.main(words)
    found = json.loads((tmp_path / "out" / "pretraining.json").read_text())["differences"]
    assert [entry["measure"] for entry in found] == ["pmc: bits per byte", "pubmed: bits per byte"]
    results = json.loads((tmp_path / "out" / "perplexity" / "results.json").read_text())["results"]
    for entry, source in zip(found, ("pmc", "pubmed")):
        assert entry["base"] == pytest.approx(results["hf"][source]["metrics"]["bits_per_byte"]["value"])
        assert entry["continued"][1] < entry["continued"][0] < entry["base"]  # text of its own kind, unlike its first
        assert entry["low"] < entry["difference"] < entry["high"] < 0
        assert entry["verdict"] == "better"
    assert "| better |" in (tmp_path / "out" / "pretraining.md").read_text()


def test_a_difference_between_a_model_and_itself_is_noise(inputs, tmp_path):
    out = tmp_path / "out"
    words = [inputs.hugging_face, "--suite", "perplexity", "--data", inputs.shards, "--out", str(out), *WORDS]
    run.main(words, {})
    values, below = pretraining._values(evaluation.read(out), "hf", "pmc")
    same = pretraining.difference("x", values, values[None].repeat(3, 0), below, False, 0)
    assert same.verdict == "noise" and same.difference == 0


def test_a_gain_that_one_constant_answer_makes_too_is_called_that():
    gain = pretraining.Difference("x", 100, 0.2, [0.31, 0.33], 0.12, 0.1, 0.14, 0.01, True, p=0.001)
    assert gain.verdict == "better"
    for constant, verdict in ((0.30, "better"), (0.32, "better, yet not above a constant answer")):
        assert replace(gain, constant=constant).verdict == verdict
