"""The same under a real torchrun: messages once, nothing left behind, the same weights after a kill."""

import os
import random
import re
import signal
import time

import psutil
import pytest

from job import config as configs
from parallel.layout import Layout
from tests.faults.jobs import last_step, samples_in_order, start_torchrun
from tests.faults.runs import IN_ORDER, LAYOUTS, STEPS, config_of, final
from tests.training import assert_equal_checkpoints


@pytest.fixture
def torchrun(tmp_path):
    """Starts `torchrun -m pretrain`; whatever still runs at the end of the test is killed."""
    started = []

    def start(processes, config, *words):
        configs.save(config, tmp_path / "pretrain.toml")
        process = start_torchrun(processes, tmp_path / "pretrain.toml", *words, output=tmp_path / "output")
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for_step(directory, step, process, seconds=90):
    deadline = time.monotonic() + seconds
    while last_step(directory) < step:
        assert process.poll() is None and time.monotonic() < deadline, (directory.parent / "output").read_text()
        time.sleep(0.02)


def test_kill_of_everything_and_restart(inputs, undisturbed, torchrun, tmp_path):
    world, layout = LAYOUTS["data2"]
    config = config_of(tmp_path / "run", inputs, layout)
    first = torchrun(world, config)
    wait_for_step(tmp_path / "run", random.Random(time.time_ns()).randrange(1, STEPS - 1), first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    second = torchrun(world, config)
    assert second.wait(120) == 0, (tmp_path / "output").read_text()
    assert_equal_checkpoints(final(tmp_path / "run"), final(undisturbed("data2")))
    assert samples_in_order(tmp_path / "run") == IN_ORDER


def test_kill_of_torchrun_alone_leaves_no_rank_behind(inputs, torchrun, tmp_path):
    """Its ranks notice at the next step, save, and end: a restart finds the directory free."""
    config = config_of(tmp_path / "run", inputs, Layout(), steps=100_000)
    config.checkpoint.every_steps = 0
    job = torchrun(2, config)
    wait_for_step(tmp_path / "run", 2, job)
    os.kill(job.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while not (tmp_path / "run" / "loss.png").exists():
        assert time.monotonic() < deadline, (tmp_path / "output").read_text()
        time.sleep(0.05)
    output = (tmp_path / "output").read_text()
    assert re.search(r"stopping as asked \((torchrun has ended|by another rank)\): checkpoint at step \d+", output)


def test_hang_of_one_rank(inputs, torchrun, tmp_path):
    """The others end by themselves; torchrun then ends what hangs, at once where it still answers to SIGTERM."""
    config = config_of(tmp_path / "run", inputs, Layout(pipeline=2, timeout_seconds=6), steps=100_000)
    config.checkpoint.every_steps = 0
    job = torchrun(2, config)
    wait_for_step(tmp_path / "run", 2, job)
    waiting, hanging = sorted(psutil.Process(job.pid).children(), key=lambda process: process.environ()["RANK"])
    hanging.suspend()
    waiting.wait(15)
    assert "waited 6 s (parallel.timeout_seconds) for another rank" in (tmp_path / "output").read_text()
    hanging.resume()  # or else torchrun needs half a minute until it kills
    assert job.wait(15) != 0


def test_mistake_is_told_once(inputs, torchrun, tmp_path):
    config = config_of(tmp_path / "run", inputs, Layout())
    assert torchrun(2, config, "--train.micro_bach", "3").wait(60) != 0
    output = (tmp_path / "output").read_text()
    assert output.count("unknown key 'train.micro_bach'; did you mean 'train.micro_batch'?") == 1, output
    assert "exitcode  : 2" in output
