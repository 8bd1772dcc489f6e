"""`status` tells the dead from the living, and says what it can where Slurm is silent or a file is damaged."""

import json

import pytest

from job import restarts
from job.directory import RunDirectory
from job.errors import InputError
from job.restarts import Ending
from job.state import RunState, write_state
from slurm import record, scheduler, status


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A run of 100 steps that came to step 40 in job 7, which still says that it is running."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "runs" / "a directory with a name that is far longer than the lines of a terminal are wide"
    path.mkdir(parents=True)
    write_state(RunDirectory(path), RunState("running", 2, step=40, steps=100))
    row = {"step": 40, "attempt": 2, "time": 0.0, "train/loss": 5.0, "train/tokens": 4000, "perf/step_s": 3600.0}
    (path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    log = path / "slurm" / "pretrain-7.log"
    record.write(path, tmp_path / "run.toml", [record.Entry("pretrain", "pretrain", "7", [], str(log), str(path))])
    return RunDirectory(path)


@pytest.fixture
def show(run, monkeypatch, capsys):
    """What `status` prints where Slurm says that the job is in a state."""

    def shown(state):
        monkeypatch.setattr(scheduler, "info", lambda job: scheduler.JobInfo(job, (state,)) if state else None)
        assert status.main([str(run.path)]) == 0
        return capsys.readouterr().out

    return shown


def test_a_run_at_work(run, show):
    told = show("RUNNING")
    assert "running, attempt 2" in told and "step 40 of 100" in told and "2d12h left" in told, told
    assert str(run.path / "slurm" / "pretrain-7.log") in told  # on one line, however long


@pytest.mark.parametrize(
    "state, follows", [("FAILED", "has ended"), ("CANCELLED", "has ended"), (None, "has ended"), ("PENDING", "begins")]
)
def test_a_run_that_was_killed(state, follows, show):
    told = show(state)
    assert f"attempt 2 ended without a last word; job 7 {follows}" in told, told
    assert "running" not in told and " left" not in told


def test_a_crash_loop(run, show):
    """The next start is under way, and has not come to train."""
    restarts.append(run, Ending("7", 0, 137, 2, 0, "a process was ended by SIGKILL", "requeue"))
    told = show("RUNNING")
    assert "attempt 2 ended without a last word; job 7 begins again" in told and " left" not in told, told
    restarts.append(run, Ending("7", 1, 137, 2, 0, "no newer checkpoint", "stop"))
    assert "job 7 gave up: no newer checkpoint" in show("FAILED")


def test_slurm_is_silent(run, monkeypatch, capsys):
    asked = []

    def info(job):
        asked.append(job)
        raise InputError("scontrol show: Unable to contact slurm controller")

    monkeypatch.setattr(scheduler, "info", info)
    body = json.loads(record.record_file(run.path).read_text())
    body["stages"].append(body["stages"][0] | {"name": "export", "kind": "export", "job": "8", "run": None})
    record.record_file(run.path).write_text(json.dumps(body))
    assert status.main([str(run.path)]) == 0
    told = capsys.readouterr().out
    assert asked == ["7"]  # each time may take a minute
    assert "Slurm does not answer" in told and "Unable to contact slurm controller" in told
    assert "running when it last wrote, attempt 2" in told and "step 40 of 100" in told and " left" not in told


def test_damaged_files(run, show):
    (run.path / "state.json").write_text('{"status": "run')
    told = show("RUNNING")
    assert "state.json is not valid JSON" in told and "step 40 |" in told, told
    run.metrics.write_text("{\n")
    assert "metrics.jsonl is damaged" in show("RUNNING")


@pytest.mark.parametrize(
    "row", ['{"step": 4, "train/loss": 3.0}', '{"step": 4, "train/loss": null, "train/tokens": 1, "time": 0.0}', "5"]
)
def test_rows_of_another_kind(row, run, show):
    run.metrics.write_text(row + "\n")
    assert "metrics.jsonl is damaged" in show("RUNNING")


def test_values_of_another_type(run, show):
    state = json.loads((run.path / "state.json").read_text())
    for steps in (None, "many"):
        (run.path / "state.json").write_text(json.dumps(state | {"steps": steps}))
        told = show("RUNNING")
        assert f"state.json is not the state of a run (steps is {steps!r}); remove it" in told, told
    ending = {"job": "7", "start": 0, "exit_code": 1, "attempt": 1, "checkpoint": 0, "reason": "", "decision": "stop"}
    (run.path / "restarts.jsonl").write_text(json.dumps(ending | {"time": "noon"}) + "\n")
    assert "gave up" not in show("RUNNING")
