"""One rank hangs, raises or dies: every other one ends in the stated time, with a sentence that says what happened."""

import signal
import time

import pytest

from parallel.layout import Layout
from tests.faults.jobs import ForkedJob, run_job
from tests.faults.runs import config_of

SHAPES = {
    "pipeline2": (2, Layout(pipeline=2, timeout_seconds=5)),
    "tensor2-pipeline2": (4, Layout(tensor=2, pipeline=2, timeout_seconds=5)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_hang_of_one_rank_ends_the_others_in_time(name, inputs, tmp_path):
    world, layout = SHAPES[name]
    config = config_of(tmp_path / "run", inputs, layout, steps=1000)
    config.checkpoint.every_steps = 0
    with ForkedJob(world, config) as job:
        job.wait_for_step(2)
        job.signal(signal.SIGSTOP, ranks=[1])
        began = time.monotonic()
        others = [rank for rank in range(world) if rank != 1]
        codes = job.wait(15, others)
        assert 4 < time.monotonic() - began < 10
        assert codes == [2] * len(others), job.output()
        assert any("waited 5 s (parallel.timeout_seconds) for another rank" in job.output(rank) for rank in others)
        assert "Traceback" not in job.output()
        log = (tmp_path / "run" / "logs" / "attempt-1" / "rank-00000.log").read_text()
        assert "Traceback" in log  # where the rank stood, for whoever looks into it


def test_exception_in_one_rank_ends_all_with_its_message(inputs, tmp_path):
    def breaks_at_step_3(rank):
        if rank == 1:
            from pretrain.trainer import Trainer

            step, calls = Trainer.step, []

            def instead(self):
                calls.append(1)
                if len(calls) == 3:
                    raise KeyError("a defect of ours")
                return step(self)

            Trainer.step = instead

    began = time.monotonic()
    codes, output = run_job(4, config_of(tmp_path / "run", inputs, Layout(tensor=2, pipeline=2)), breaks_at_step_3)
    assert codes == [2, 1, 2, 2] and time.monotonic() - began < 30, output
    assert output.count("Traceback") == 1 and "KeyError: 'a defect of ours'" in output
    assert "lost another rank" in output


def test_death_of_one_rank_is_noticed_at_once(inputs, tmp_path):
    config = config_of(tmp_path / "run", inputs, Layout(tensor=2, pipeline=2), steps=1000)
    config.checkpoint.every_steps = 0
    with ForkedJob(4, config) as job:
        job.wait_for_step(2)
        job.signal(signal.SIGKILL, ranks=[3])
        assert job.wait(5) == [2, 2, 2, -signal.SIGKILL], job.output()
        assert "Traceback" not in job.output() and "lost another rank" in job.output()
