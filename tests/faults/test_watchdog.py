"""A step that never ends ends the job, long before a collective's timeout; what takes long by nature does not."""

import dataclasses
import json
import signal
import time

import pytest

from job.directory import RunDirectory
from job.state import read_state
from job.training import CheckpointConfig, HealthConfig
from parallel.watchdog import EXIT_CODE
from tests.faults.jobs import ForkedJob, complete_job
from tests.training import make_config

WATCHFUL = HealthConfig(hang_factor=10.0, hang_minimum_seconds=3.0)


def watchful(directory, inputs, **changes):
    config = make_config(directory, inputs, **changes)
    return dataclasses.replace(config, health=WATCHFUL)


def test_stopped_rank_is_noticed_and_the_run_goes_on_later(inputs, tmp_path):
    config = watchful(tmp_path / "run", inputs, steps=400, checkpoint=CheckpointConfig(every_steps=5))
    with ForkedJob(2, config) as job:
        job.wait_for_step(7)
        job.signal(signal.SIGSTOP, {1})
        began = time.monotonic()
        assert job.wait(60, {0}) == [EXIT_CODE]
        assert time.monotonic() - began < 45  # a collective would wait for parallel.timeout_seconds, 600
        assert "a rank hangs" in job.output(0)
    stacks = (tmp_path / "run" / "logs" / "attempt-1" / "stacks-rank-00000.txt").read_text()
    assert "most recent call first" in stacks and "parallel/loop.py" in stacks  # it says where the rank waited
    state = read_state(RunDirectory(tmp_path / "run"))
    assert state.status == "failed" and state.reason.startswith("no step for ")
    assert state.checkpoint % 5 == 0 and state.checkpoint >= 5
    last = state.checkpoint
    complete_job(2, dataclasses.replace(config, train=dataclasses.replace(config.train, steps=last + 2)))
    state = read_state(RunDirectory(tmp_path / "run"))
    assert (state.status, state.step, state.checkpoint, state.attempt) == ("complete", last + 2, last + 2, 2)


def test_long_validation_and_checkpoint_are_no_hang(inputs, tmp_path):
    def slow(rank):
        from pretrain.trainer import Trainer

        for name in ("validate", "save"):
            quick = getattr(Trainer, name)
            setattr(Trainer, name, lambda self, quick=quick: time.sleep(5) or quick(self))

    config = watchful(tmp_path / "run", inputs, steps=6, checkpoint=CheckpointConfig(every_steps=4))
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, validate_every=5, validate_at_start=False)
    )
    complete_job(2, config, prepare=slow)


def test_state_of_a_run_that_is_asked_to_stop_and_of_one_that_fails(inputs, tmp_path):
    run = RunDirectory(tmp_path / "run")
    config = make_config(run.path, inputs, steps=400)
    with ForkedJob(1, config) as job:
        job.wait_for_step(2)
        assert read_state(run).status == "running" and read_state(run).steps == 400
        job.signal(signal.SIGUSR2)  # stacks, and nothing else
        job.signal(signal.SIGUSR1)
        assert job.wait(60) == [0]
    state = read_state(run)
    assert state.status == "stopped" and state.reason == "signal SIGUSR1" and state.checkpoint == state.step >= 2
    assert "most recent call first" in (run.path / "logs" / "attempt-1" / "stacks-rank-00000.txt").read_text()

    manifest = run.checkpoint(state.step) / "manifest.json"
    manifest.write_text(json.dumps({"stage": "another"}))
    with ForkedJob(1, config) as job:
        assert job.wait(60) == [2]
    after = read_state(run)
    assert after.status == "failed" and "no checkpoint" in after.reason and after.attempt == 2


@pytest.mark.parametrize(("factor", "seconds", "limit"), [(10, 1, 20.0), (10, 60, 60.0)])
def test_limit(factor, seconds, limit, tmp_path):
    from parallel.watchdog import Watchdog

    run = RunDirectory(tmp_path)
    run.log_file(1, 0).parent.mkdir(parents=True)
    watchdog = Watchdog(run, 1, 0, HealthConfig(float(factor), float(seconds)))
    watchdog.step(100.0)
    watchdog.step(2.0)
    assert watchdog.limit() == float("inf")
    watchdog.step(2.0)
    assert watchdog.limit() == limit
    watchdog.close()
