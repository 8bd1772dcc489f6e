"""SIGKILL at any moment, then the same command again: the same weights, and no sample lost or repeated."""

import random
import signal
import time

import pytest

from job.track import read_rows
from tests.faults.jobs import ForkedJob, complete_job, samples_in_order
from tests.faults.runs import IN_ORDER, LAYOUTS, STEPS, config_of, final
from tests.training import assert_equal_checkpoints, losses, metrics_rows


@pytest.mark.parametrize("name, kills", [("data2", 2), ("tensor2-pipeline2", 1)])
def test_whole_job_killed_at_a_random_moment(name, kills, inputs, undisturbed, tmp_path):
    world, layout = LAYOUTS[name]
    generator = random.Random(time.time_ns())
    for _ in range(kills):  # a second start must survive what the first left
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
    assert losses(read_rows(tmp_path / "run" / "metrics.jsonl")) == losses(metrics_rows(undisturbed(name)))


def test_one_rank_killed_at_a_random_moment(inputs, undisturbed, tmp_path):
    world, layout = LAYOUTS["data2"]
    step, rank = random.Random(time.time_ns()).randrange(1, STEPS - 2), random.Random(time.time_ns()).randrange(world)
    print(f"killing rank {rank} at step {step}")
    with ForkedJob(world, config_of(tmp_path / "run", inputs, layout)) as job:
        job.wait_for_step(step)
        job.signal(signal.SIGKILL, ranks=[rank])
        codes = job.wait(10)
        assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 2, job.output()
    complete_job(world, config_of(tmp_path / "run", inputs, layout))
    assert_equal_checkpoints(final(tmp_path / "run"), final(undisturbed("data2")))
    assert samples_in_order(tmp_path / "run") == IN_ORDER


@pytest.mark.parametrize(
    "before, after", [("tensor2", "pipeline2"), ("data2", "one"), ("tensor2", "tensor2-pipeline2")]
)
def test_killed_and_restarted_at_another_layout(before, after, inputs, undisturbed, tmp_path):
    world, layout = LAYOUTS[before]
    with ForkedJob(world, config_of(tmp_path / "run", inputs, layout)) as job:
        job.wait_for_step(5)
        job.signal(signal.SIGKILL)
        job.wait(5)
    world, layout = LAYOUTS[after]
    output = complete_job(world, config_of(tmp_path / "run", inputs, layout))
    assert "continuing from" in output
    curve = losses(read_rows(tmp_path / "run" / "metrics.jsonl"))
    assert curve == pytest.approx(losses(metrics_rows(undisturbed("data2"))), abs=1e-4)
    assert samples_in_order(tmp_path / "run") == IN_ORDER
