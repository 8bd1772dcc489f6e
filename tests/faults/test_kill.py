"""SIGKILL at any moment, then the same command again: the same weights, and no sample lost or repeated."""

import random
import signal
import time

import pytest
import wandb  # noqa: F401  (imported before ranks are forked: it takes a second)

from job.track import read_rows
from job.training import TrackingConfig
from tests.faults.jobs import ForkedJob, complete_job, samples_in_order
from tests.faults.runs import IN_ORDER, LAYOUTS, STEPS, config_of, final
from tests.training import assert_equal_checkpoints, losses, make_config, metrics_rows


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


def test_killed_run_keeps_every_printed_row_and_leaves_no_process(inputs, tmp_path):
    """W&B's file loses its tail in a crash, metrics.jsonl does not, and it reads back after a cut."""
    config = make_config(tmp_path / "run", inputs, steps=300, tracking=TrackingConfig(mode="offline"))
    with ForkedJob(1, config) as job:
        job.wait_for_step(4)
        job.signal(signal.SIGKILL)
        job.wait(5)
        printed = job.output().count("tok/s/device")
    metrics = tmp_path / "run" / "metrics.jsonl"
    rows = [row for row in read_rows(metrics) if "train/loss" in row]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)) and 3 <= printed <= len(rows)

    cut = metrics.read_bytes()[:-20]  # as a kill or a power cut in the middle of a write leaves it
    metrics.write_bytes(cut)
    assert len(read_rows(metrics)) == len(rows) - 1
    config.train.steps = 2
    complete_job(1, config)
    again = metrics_rows(tmp_path / "run")  # every line parses: the cut one is gone, the new ones follow
    assert [row["attempt"] for row in again[: len(rows) - 1]] == [1] * (len(rows) - 1)
    assert [row["step"] for row in again[len(rows) - 1 :] if "train/loss" in row] == [1, 2]
    best = {row["step"]: row["attempt"] for row in read_rows(metrics) if "train/loss" in row}
    assert best[1] == best[2] == 2 and best[3] == 1
