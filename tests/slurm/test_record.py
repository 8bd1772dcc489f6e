"""Who is at work on a run directory: pointers, damaged records, two submits at once, and whether training has ended."""

import json
import shutil
import time
from pathlib import Path

import pytest

from job import restarts
from job.directory import RunDirectory
from job.errors import InputError
from job.restarts import Ending
from job.state import RunState, write_state
from slurm import ended, record, scheduler


def entry(name, job, run=None):
    return record.Entry(name, name, job, [], f"runs/chain/slurm/{name}-{job}.log", str(run) if run else None)


@pytest.fixture
def known(monkeypatch, tmp_path):
    """A Slurm that knows these jobs, by id: their states."""
    jobs = {}

    def info(job):
        if jobs.get(job) == "silent":
            raise InputError("scontrol show: Unable to contact slurm controller")
        return scheduler.JobInfo(job, (jobs[job],)) if job in jobs else None

    monkeypatch.setattr(scheduler, "info", info)
    monkeypatch.setattr(scheduler, "available", lambda: True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return jobs


def test_a_run_directory_that_is_the_chains_own_by_another_spelling(tmp_path, known):
    directory = tmp_path / "runs" / "same"
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    for spelling in (directory, tmp_path / "link" / "same", tmp_path / "runs" / ".." / "runs" / "same"):
        record.write(Path("runs/same"), tmp_path / "chain.toml", [entry("pretrain", "7", spelling)])
        assert [stage.job for stage in record.read(directory)] == ["7"]
    known["7"] = "PENDING"
    assert [stage.job for stage in record.active(directory)] == ["7"]


def test_pointers(tmp_path, known):
    chain, run, other = (tmp_path / name for name in ("chain", "run", "other"))
    record.write(chain, tmp_path / "chain.toml", [entry("pretrain", "7", run), entry("export", "8")])
    assert [stage.job for stage in record.read(run)] == ["7", "8"]
    record.write(other, tmp_path / "other.toml", [entry("export", "9")], earlier=[entry("pretrain", "7", run)])
    assert [stage.job for stage in record.read(other)] == ["7", "9"]
    assert [stage.job for stage in record.read(run)] == ["7", "8"]  # what is only remembered takes no run directory
    record.record_file(chain).write_text(json.dumps({"chain": str(run)}))
    with pytest.raises(InputError, match="points to itself"):
        record.read(run)


def test_a_chain_that_was_removed_does_not_keep_its_run_directory(tmp_path, known):
    chain, run = tmp_path / "chain", tmp_path / "run"
    record.write(chain, tmp_path / "chain.toml", [entry("pretrain", "7", run)])
    known["7"] = "RUNNING"
    assert record.active(run) and record.exists(run)
    shutil.rmtree(chain)
    assert not record.active(run) and not record.exists(run)
    with pytest.raises(InputError, match=r"run/slurm/chain.json names .*/chain.json, which is gone; submit"):
        record.read(run)


WITHOUT_A_JOB = {"name": "a", "kind": "b", "job": None, "after": [], "log": "l", "run": None}


@pytest.mark.parametrize(
    "content", [[], {}, 5, {"chain": 5}, {"format_version": 1, "stages": [WITHOUT_A_JOB], "working_directory": "/"}]
)
def test_a_damaged_record(content, tmp_path):
    record.record_file(tmp_path).parent.mkdir()
    record.record_file(tmp_path).write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"chain\.json is not a record of what was submitted; remove it"):
        record.read(tmp_path)


def test_a_record_that_cannot_be_read(tmp_path):
    record.record_file(tmp_path).mkdir(parents=True)
    with pytest.raises(InputError, match=r"chain\.json cannot be read .*; remove it, and see"):
        record.active(tmp_path)


def test_two_submits_at_once(tmp_path):
    directories = [tmp_path / "chain", tmp_path / "run", tmp_path / "chain" / ".." / "run"]
    with record.submitting(directories), pytest.raises(InputError, match="run is being submitted by another process"):
        record.submitting([tmp_path / "run"]).__enter__()
    with record.submitting([tmp_path / "run"]):
        pass


def ask(run, capsys):
    code = ended.main([str(run)])
    return code, capsys.readouterr().err


def test_training_has_ended(tmp_path, known, capsys):
    """Whatever ended it: asked is Slurm, not what a killed run has left."""
    run = tmp_path / "run"
    record.write(tmp_path / "chain", tmp_path / "chain.toml", [entry("pretrain", "7", run), entry("watch", "8", run)])
    write_state(RunDirectory(run), RunState("running", 1))
    known["8"] = "RUNNING"  # the watch that asks
    for state in ("PENDING", "RUNNING", "COMPLETING"):
        known["7"] = state
        assert ask(run, capsys) == (1, "")
    for state in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"):
        known["7"] = state
        assert ask(run, capsys) == (0, "")
    del known["7"]  # forgotten
    assert ask(run, capsys) == (0, "")
    known["7"] = "silent"
    code, told = ask(run, capsys)
    assert code == 1 and "unknown: scontrol show: Unable to contact" in told


def test_a_job_that_was_submitted_by_hand_is_training_too(tmp_path, known, capsys, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    record.write(run.path, tmp_path / "run.toml", [entry("pretrain", "7", run.path)])
    known.update({"7": "FAILED", "9": "RUNNING"})
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    write_state(run, RunState("running", 2))
    assert ask(run.path, capsys)[0] == 1
    (run.path / "state.json").write_text('{"sta')
    assert ask(run.path, capsys)[0] == 0
    assert ask(tmp_path / "nothing", capsys)[0] == 0


def test_without_slurms_commands_the_run_directory_is_asked(tmp_path, known, capsys, monkeypatch):
    monkeypatch.setattr(scheduler, "available", lambda: False)
    run = RunDirectory(tmp_path / "run")
    assert ask(run.path, capsys)[0] == 1
    write_state(run, RunState("running", 1))
    restarts.append(run, Ending("7", 0, 137, 1, 0, "killed", "requeue"))
    assert ask(run.path, capsys)[0] == 1
    restarts.append(run, Ending("7", 1, 137, 2, 0, "killed", "stop"))
    assert ask(run.path, capsys)[0] == 0
    time.sleep(0.01)
    write_state(run, RunState("running", 3))  # begun again since
    assert ask(run.path, capsys)[0] == 1
