"""The same promises for alignment runs: killed, stopped, hanging or poisoned, they continue and say what happened."""

import os
import random
import signal
import time

import pytest
import torch

from align.train import train
from job import config as configs
from tests.align.conftest import align_inputs  # noqa: F401  (a fixture)
from tests.align.runs import assert_equal_checkpoints, final, make_config
from tests.faults.jobs import ForkedJob, complete_job, run_job, samples_in_order, start_torchrun
from tests.training import losses, metrics_rows

STEPS = 6


def config_of(directory, inputs, stage=2, **changes):
    config = make_config(directory, inputs, stage, "lora", dropout=0.1, steps=STEPS, validate_at_start=False, **changes)
    config.train.validate_questions = 1
    return config


@pytest.fixture(scope="module")
def whole(align_inputs, tmp_path_factory):  # noqa: F811
    """A run that nobody disturbed."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    complete_job(2, config_of(directory, align_inputs), command=train)
    return directory


def test_killed_at_random_moments(align_inputs, whole, tmp_path):  # noqa: F811
    generator = random.Random(time.time_ns())
    for _ in range(2):  # a second start must survive what the first left
        step, delay = generator.randrange(1, STEPS - 1), generator.uniform(0, 0.4)
        print(f"killing at step {step} after {delay:.3f} s")  # shown where the test fails
        with ForkedJob(2, config_of(tmp_path / "run", align_inputs), command=train) as job:
            job.wait_for_step(step)
            time.sleep(delay)
            job.signal(signal.SIGKILL)
            job.wait(5)
    complete_job(2, config_of(tmp_path / "run", align_inputs), command=train)
    assert_equal_checkpoints(final(tmp_path / "run"), final(whole))
    rows = {row["step"]: row for row in metrics_rows(tmp_path / "run") if "train/loss" in row}
    assert losses(rows.values()) == losses(metrics_rows(whole))
    assert samples_in_order(tmp_path / "run") == samples_in_order(whole)


def test_stop_file_saves_and_ends(align_inputs, whole, tmp_path):  # noqa: F811
    config = config_of(tmp_path / "run", align_inputs)
    with ForkedJob(2, config, command=train) as job:
        job.wait_for_step(1)
        (tmp_path / "run" / "stop").touch()
        assert job.wait(30) == [0, 0], job.output()
        assert "stopping as asked" in job.output(0)
    complete_job(2, config, command=train)
    assert_equal_checkpoints(final(tmp_path / "run"), final(whole))


def test_hang_of_one_rank_ends_the_other_in_time(align_inputs, tmp_path):  # noqa: F811
    config = config_of(tmp_path / "run", align_inputs, stage=3)
    config.train.steps, config.checkpoint.every_steps, config.parallel.timeout_seconds = 1000, 0, 5
    with ForkedJob(2, config, command=train) as job:
        job.wait_for_step(1)
        job.signal(signal.SIGSTOP, ranks=[1])
        assert job.wait(20, [0]) == [2], job.output()
        assert "waited 5 s (parallel.timeout_seconds) for another rank" in job.output(0)
        assert "Traceback" not in job.output(0)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_non_finite_gradient_stops_before_the_weights(stage, align_inputs, tmp_path):  # noqa: F811
    def poison_step_2(rank):
        from align.trainer import Trainer

        take = Trainer._take_batches

        def instead(self):
            prepared = take(self)
            if self.progress.step == 1 and self.rank == 1:
                parameter = self.model.molecule_adapter.projection.bias
                parameter.register_hook(lambda gradient: gradient * torch.nan)
            return prepared

        Trainer._take_batches = instead

    config = config_of(tmp_path / "run", align_inputs, stage)
    config.checkpoint.every_steps = 1
    codes, output = run_job(2, config, poison_step_2, command=train)
    assert codes == [2, 2], output
    told = [line for line in output.splitlines() if line.startswith("error")]
    assert len(told) == 1 and "step 2" in told[0] and "nan" in told[0] and "questions 6 to 11" in told[0], output
    assert final(tmp_path / "run").name == "step-00000001"
    assert [row["step"] for row in metrics_rows(tmp_path / "run") if "health/nonfinite" in row] == [2]


def test_torchrun_without_a_compiler(align_inputs, whole, tmp_path):  # noqa: F811
    """As a user starts it: no compiler on PATH, nothing compiled before; to the same bits as forked ranks."""
    configs.save(config_of(tmp_path / "run", align_inputs), tmp_path / "align.toml")
    (tmp_path / "empty").mkdir()
    bare = {"PATH": str(tmp_path / "empty"), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    process = start_torchrun(2, tmp_path / "align.toml", output=tmp_path / "output", module=("align", "train"), **bare)
    try:
        code = process.wait(120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    output = (tmp_path / "output").read_text()
    assert code == 0, output
    assert not (tmp_path / "extensions").exists()
    assert_equal_checkpoints(final(tmp_path / "run"), final(whole))
    noise = [line for line in output.splitlines() if "warning" in line.lower() or "[INFO]" in line]
    assert not noise, noise
