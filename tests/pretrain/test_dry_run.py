"""The dry run says what would happen, in seconds and without torch."""

import subprocess
import sys
import time

import pytest

from job import config as configs
from job.directory import RunDirectory
from parallel.layout import Layout
from pretrain.config import CheckpointConfig, PretrainConfig
from tests.conftest import REPOSITORY
from tests.faults.jobs import complete_job
from tests.training import make_config, training_tokens

WITHOUT_TORCH = """
import runpy, sys
sys.argv = ["pretrain", *sys.argv[1:]]
try:
    runpy.run_module("pretrain", run_name="__main__")
finally:
    heavy = sorted({"torch", "megatron", "transformers", "wandb", "matplotlib"} & set(sys.modules))
    print("heavy modules:", heavy)
"""


def run_dry(*words, **environment):
    """Output of the command, which must not have imported anything heavy, and the seconds it took."""
    began = time.monotonic()
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), **environment}
    result = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert "heavy modules: []" in result.stdout, result.stdout + result.stderr
    return result, time.monotonic() - began


@pytest.fixture
def config_file(inputs, tmp_path):
    checkpoints = CheckpointConfig(every_steps=50, every_minutes=30, keep=3)
    config = make_config(tmp_path / "run", inputs, Layout(tensor=2, pipeline=2), checkpoint=checkpoints)
    config.train.steps, config.train.epochs = None, 2.0
    configs.save(config, tmp_path / "pretrain.toml")
    return tmp_path / "pretrain.toml"


def test_says_layout_tokens_epochs_and_checkpoints(config_file, inputs, tmp_path):
    result, seconds = run_dry(str(config_file), "--dry-run", WORLD_SIZE="8")
    assert result.returncode == 0 and seconds < 10, result.stderr
    lines = {line.split(" ")[0]: " ".join(line.split()[1:]) for line in result.stdout.splitlines() if line}
    assert lines["layout"] == "tensor 2 (sequence parallel) x pipeline 2 x data 2 on 8 processes"
    assert lines["step"].startswith("8 x 128 = 1,024 tokens, 2 micro-batches of 2")
    assert lines["model"] == "llama, 260,032 parameters, 5 layers in stages of [3, 2]"
    tokens = training_tokens(inputs.shards)
    steps = -(-2 * tokens // 1024)
    assert lines["run"].startswith(f"{steps} steps, {steps * 1024:,} tokens,")
    assert lines["source"] == f"articles: {tokens:,} tokens, weight 1.000, 2.00 epochs"
    assert lines["checkpoints"] == (
        f"{-(-steps // 50)} by step (step-00000050, step-00000100, step-00000150, ... step-{steps:08d}), and one every "
        "30 minutes; the newest 3 kept"
    )
    assert lines["directory"] == f"{tmp_path / 'run'}: would start"
    assert not (tmp_path / "run").exists()  # it touched nothing
    text = result.stdout.split("model       ")[0]
    (tmp_path / "printed.toml").write_text(text)
    printed = configs.parse(PretrainConfig, [str(tmp_path / "printed.toml")], "pretrain", "")
    assert printed == configs.parse(PretrainConfig, [str(config_file)], "pretrain", "")


def test_planned_checkpoints_are_those_that_training_writes(inputs, tmp_path):
    config = make_config(tmp_path / "run", inputs, steps=5, checkpoint=CheckpointConfig(every_steps=2, keep=0))
    configs.save(config, tmp_path / "pretrain.toml")
    before, _ = run_dry(str(tmp_path / "pretrain.toml"), "--dry-run")
    assert "3 by step (step-00000002, step-00000004, step-00000005); all kept" in before.stdout
    complete_job(1, config)
    written = [path.name for path in RunDirectory(tmp_path / "run").complete_checkpoints()]
    assert written == ["step-00000005", "step-00000004", "step-00000002"]
    after, _ = run_dry(str(tmp_path / "pretrain.toml"), "--dry-run")
    assert "run: complete, step 5 of 5" in after.stdout


def test_says_where_it_would_go_on_or_why_not(inputs, tmp_path):
    config = make_config(tmp_path / "run", inputs, steps=3, checkpoint=CheckpointConfig(every_steps=2, keep=0))
    configs.save(config, tmp_path / "pretrain.toml")
    complete_job(1, config)
    longer = [str(tmp_path / "pretrain.toml"), "--dry-run", "--train.steps", "9"]
    result, _ = run_dry(*longer)
    assert "run: would continue from step-00000003, step 3 of 9\n" in result.stdout

    result, _ = run_dry(*longer, "--data.seed", "8")  # as the run itself would refuse it
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "step-00000003 was trained on other data: " in result.stderr and "seed" in result.stderr

    shape = tmp_path / "run" / "checkpoints" / "step-00000003" / "hf" / "config.json"
    whole = shape.read_text()
    shape.write_text(whole.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 0.1'))
    assert shape.read_text() != whole
    result, _ = run_dry(*longer)
    assert result.returncode == 2 and "step-00000003 holds another model than model.path" in result.stderr
    shape.write_text(whole)

    manifest = tmp_path / "run" / "checkpoints" / "step-00000003" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 3', '"step": 4'))
    result, _ = run_dry(*longer)
    assert "would continue from step-00000002, step 2 of 9; passes over what is damaged" in result.stdout
    (tmp_path / "run" / "checkpoints" / "step-00000002" / "manifest.json").unlink()
    result, _ = run_dry(*longer)
    assert result.returncode == 2 and "no checkpoint in" in result.stderr and "is whole" in result.stderr


def test_warm_up_longer_than_the_run(inputs, tmp_path):
    config = make_config(tmp_path / "run", inputs, steps=3)
    config.schedule.warmup = 12
    configs.save(config, tmp_path / "pretrain.toml")
    told = "schedule.warmup is 12 steps, but the run has only 3: the learning rate ends at 25% of optimizer.lr"
    result, _ = run_dry(str(tmp_path / "pretrain.toml"), "--dry-run")
    assert f"warning     {told}" in result.stdout
    assert f"warning: {told}\n" in complete_job(1, config)
    result, _ = run_dry(str(tmp_path / "pretrain.toml"), "--dry-run", "--schedule.warmup", "3")
    assert "warning" not in result.stdout


def test_refuses_in_one_sentence(config_file):
    result, _ = run_dry(str(config_file), "--dry-run", "--parallel.tensor", "3")
    assert result.returncode == 2
    assert result.stderr == "error: parallel.tensor 3 does not divide the model's 8 attention heads\n"
    result, _ = run_dry(str(config_file), "--dry-run", WORLD_SIZE="6")
    assert result.returncode == 2
    assert "tensor 2 x pipeline 2 x context 1 = 4 does not divide the 6 processes" in result.stderr


def test_help_is_quick_and_light():
    result, seconds = run_dry("--help")
    assert result.returncode == 0 and "torchrun" in result.stdout
    assert seconds < 3  # 0.5 s on an idle machine
