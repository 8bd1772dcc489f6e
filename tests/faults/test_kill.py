"""SIGKILL at any moment, then the same command again: the same weights, and no sample lost or repeated."""

import random
import signal
import time

import pytest

from tests.faults.jobs import ForkedJob, complete_job, samples_in_order
from tests.faults.runs import IN_ORDER, LAYOUTS, STEPS, config_of, final
from tests.training import assert_equal_checkpoints, losses, metrics_rows


@pytest.mark.parametrize("name", ["data2", "tensor2", "tensor2-pipeline2"])
def test_whole_job_killed_at_a_random_moment(name, inputs, undisturbed, tmp_path):
    world, layout = LAYOUTS[name]
    generator = random.Random(time.time_ns())
    for _ in range(2):  # killed twice: the second start must survive what the first left
        step, delay = generator.randrange(1, STEPS - 2), generator.uniform(0, 0.4)
        print(f"killing at step {step} after {delay:.3f} s")  # shown where the test fails
        with ForkedJob(world, config_of(tmp_path / "run", inputs, layout)) as job:
            job.wait_for_step(step)
            time.sleep(delay)
            job.signal(signal.SIGKILL)
            job.wait(5)
    complete_job(world, config_of(tmp_path / "run", inputs, layout))
    assert_equal_checkpoints(final(tmp_path / "run"), final(undisturbed(name)))
    assert samples_in_order(tmp_path / "run") == IN_ORDER
    assert losses(metrics_rows(undisturbed(name)))[-1] == losses(metrics_rows(tmp_path / "run"))[-1]
