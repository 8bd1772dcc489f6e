"""Asked to stop, by a signal to any rank or by a file: checkpoint at a step boundary, exit 0, same weights after."""

import re
import signal

import pytest

from job import restarts
from job.directory import RunDirectory
from tests.faults.jobs import ForkedJob, complete_job, run_job, samples_in_order
from tests.faults.runs import IN_ORDER, LAYOUTS, config_of, final
from tests.training import assert_equal_checkpoints


def ask_by_signal(number, rank):
    return lambda job: job.signal(number, ranks=[rank])


def ask_by_file(job):
    (job.directory / "stop").touch()


@pytest.mark.parametrize(
    "ask, reason",
    [
        (ask_by_signal(signal.SIGUSR1, 1), "by another rank"),
        (ask_by_signal(signal.SIGTERM, 0), "signal SIGTERM"),
        (ask_by_file, "stop"),
    ],
    ids=["usr1-to-rank-1", "term-to-rank-0", "stop-file"],
)
def test_stop_and_continue(ask, reason, inputs, undisturbed, tmp_path):
    world, layout = LAYOUTS["data2"]
    config = config_of(tmp_path / "run", inputs, layout)
    config.checkpoint.every_steps = 0
    with ForkedJob(world, config) as job:
        job.wait_for_step(2)
        ask(job)
        assert job.wait(15) == [0, 0], job.output()
        stopped = re.search(r"stopping as asked \((.*)\): checkpoint at step (\d+)", job.output())
        assert stopped and reason in stopped[1] and 2 <= int(stopped[2]) < 8, job.output()
    assert (tmp_path / "run" / "latest").read_text() == f"step-{int(stopped[2]):08d}\n"

    output = complete_job(world, config)  # the stop file of before is gone: it asked the attempt before
    assert f"step {stopped[2]}," in output
    assert_equal_checkpoints(final(tmp_path / "run"), final(undisturbed("data2")))
    assert samples_in_order(tmp_path / "run") == IN_ORDER


def test_a_job_that_is_queued_again_honours_the_file(inputs, tmp_path, monkeypatch):
    """Touched while the job waits: training does not begin. How its first start ended is noted by then."""
    world, layout = LAYOUTS["data2"]
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.stop_file.touch()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    codes, output = run_job(world, config_of(run.path, inputs, layout))
    assert codes == [2, 2] and f"asked to stop by {run.stop_file}" in output and "Traceback" not in output
    assert run.stop_file.exists() and run.next_attempt() == 1
    assert [(ending.job, ending.start, ending.exit_code) for ending in restarts.read(run)] == [("7", 0, None)]
