"""What follows from how a training job ended."""

import os
import subprocess
import sys

import pytest

from job import restarts
from job.directory import RunDirectory
from job.files import write_json
from job.restarts import Ending
from job.state import RunState, write_state
from slurm.after import decide
from slurm.cluster import RestartConfig
from tests.conftest import REPOSITORY

LIMITS = RestartConfig(without_progress=2, exclude_nodes=2)


def decided(exit_code=137, status=None, reason=None, mistake=None, checkpoint=100, stop=False, bad=(), history=()):
    state = RunState(status, 2, 120, 500, reason=reason) if status else None
    decision = decide(
        exit_code=exit_code,
        state=state,
        mistake=mistake,
        checkpoint=checkpoint,
        stop_asked=stop,
        bad_nodes=dict(bad),
        history=history,
        limits=LIMITS,
    )
    return decision.action, decision.reason


@pytest.mark.parametrize(
    "ended, action, reason",
    [
        (dict(exit_code=0, status="complete"), "done", "complete (500 steps)"),
        (dict(exit_code=1, status="complete"), "done", "complete"),  # a rank that stumbles over its own exit
        (dict(exit_code=0, status="stopped", reason="signal SIGUSR1"), "requeue", "step 120 (signal SIGUSR1)"),
        (dict(exit_code=0, status="stopped", reason="file run/stop", stop=True), "stop", "file 'stop'"),
        (dict(exit_code=137, status="running"), "requeue", "ended by SIGKILL without a last word"),
        (dict(exit_code=75, status="failed", reason="no step for 99 s"), "requeue", "no step for 99 s"),
        (dict(exit_code=2, status="failed", reason="disk is full"), "stop", "disk is full"),
        (dict(exit_code=2, status="failed", reason="lost another rank, which has ended"), "requeue", "lost another"),
        (dict(exit_code=2), "stop", "exit code 2 before training began"),
        # of two ranks or more: srun tells how it ended the others
        (dict(exit_code=143, mistake="no shards in nowhere"), "stop", "no shards in nowhere"),
        (dict(exit_code=137, status="failed", reason="disk is full", mistake="disk is full"), "stop", "disk is full"),
        (dict(exit_code=2, mistake="lost another rank, which has ended (Broken pipe)"), "requeue", "exit code 2"),
        (dict(exit_code=137, mistake="waited 9 s for another rank, which hangs"), "requeue", "SIGKILL"),
        (dict(exit_code=1, status="complete", mistake="cannot write plot.png"), "done", "complete"),
        (dict(exit_code=0), "stop", "without a word"),
        (dict(exit_code=3, bad=[("n1", "no disk")]), "requeue", "n1: no disk"),
    ],
)
def test_endings(ended, action, reason):
    found = decided(**ended)
    assert found[0] == action and reason in found[1], found


def test_crash_loop_gives_up_only_without_progress():
    again = [Ending("7", start, 137, start, 100, "killed", "requeue") for start in range(2)]
    assert decided(history=again[:1])[0] == "requeue"
    action, reason = decided(history=again)
    assert action == "stop" and "no newer checkpoint than step 100 in 2 restarts" in reason and "SIGKILL" in reason
    assert decided(history=again, checkpoint=200)[0] == "requeue"
    assert decided(history=[*again, Ending("7", 2, 1, 3, 100, "gave up", "stop")])[0] == "requeue"  # submitted again


def test_what_slurm_queues_again_is_no_crash():
    unseen = [Ending("7", start, None, None, 100, "Slurm queued the job again", "requeue") for start in range(4)]
    assert decided(history=unseen)[0] == "requeue"
    killed = [Ending("7", start, 137, start, 100, "killed", "requeue") for start in (4, 5)]
    assert "in 2 restarts" in decided(history=[killed[0], *unseen, killed[1]])[1]


def test_bad_nodes_are_bounded():
    before = Ending("7", 0, 3, None, 0, "bad", "requeue", ["n1"])
    assert decided(exit_code=3, bad=[("n2", "slow")], history=[before])[0] == "requeue"
    action, reason = decided(exit_code=3, bad=[("n2", "slow"), ("n3", "slow")], history=[before])
    assert action == "stop" and "2 may be excluded" in reason
    action, reason = decided(exit_code=3, bad=[("n1", "slow")], history=[before])
    assert action == "stop" and "leave out n1, and did not" in reason


def after(run, exit_code, started, start):
    """`python -m slurm after` as a job script calls it: its words, and what it says to the log."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(start)}
    words = [sys.executable, "-m", "slurm", "after", str(run), "--exit-code", exit_code, "--started", started]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_verb_reads_the_run_directory(tmp_path, monkeypatch):
    """A state of an earlier start says nothing; starts that nobody saw end are noted; preflight counts once."""
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    write_state(run, RunState("complete", 1, 8, 8))
    assert after(run.path, 2, 0, 0)[0] == "stop\n"  # refused: another job is at work, or has been
    (run.path / "restarts.jsonl").unlink()
    for start in range(3):  # of another job
        restarts.append(run, Ending("6", start, 137, start, 0, "killed", "requeue"))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    write_state(run, RunState("complete", 1, 8, 8))
    assert after(run.path, 137, 9e9, 0)[0] == "requeue\n"
    write_json(restarts.preflight_file(run.path), {"job": "7", "start": 2, "bad_nodes": {"n1": "no disk", "n3": "x"}})
    assert after(run.path, 3, 9e9, 2) == ("requeue n1,n3\n", "slurm: n1: no disk; n3: x: the job is queued again\n")
    assert after(run.path, 0, 0, 3)[0] == "done\n"
    found = [(ending.start, ending.decision, ending.excluded) for ending in restarts.read(run)[3:]]
    assert found == [(0, "requeue", []), (1, "requeue", []), (2, "requeue", ["n1", "n3"]), (3, "done", [])]
    assert "Slurm queued the job again" in restarts.read(run)[4].reason


def test_a_start_that_was_never_at_work_has_made_no_checkpoint(tmp_path):
    """Its job was refused before training: what the run that is at work saves meanwhile is not its progress."""
    run = RunDirectory(tmp_path / "run")
    for start in range(4):
        run.checkpoint(start).mkdir(parents=True)
        (run.checkpoint(start) / "manifest.json").touch()
        told, log = after(run.path, 143, 0, start)
    assert told == "stop\n" and "no newer checkpoint than step 0 in 3 restarts" in log


def test_the_mistake_that_a_rank_leaves_is_believed_once(tmp_path):
    run = RunDirectory(tmp_path / "run")
    file = restarts.mistake_file(run, "7", 1)
    run.path.mkdir()
    file.write_text("no shards in nowhere\n")
    assert after(run.path, 143, 0, 0)[0] == "requeue\n"
    assert after(run.path, 143, 0, 1) == ("stop\n", "slurm: no shards in nowhere: the job ends here\n")
    assert not file.exists() and restarts.read(run)[-1].reason == "no shards in nowhere"
    restarts.mistake_file(run.path, "7", 2).touch()  # the disk had no room for the sentence
    assert after(run.path, 143, 0, 2)[0] == "stop\n"


def test_damaged_records_end_no_job(tmp_path):
    """Each is left out with a warning that names it; a line that was cut short is cut off."""
    run = RunDirectory(tmp_path / "run")
    restarts.append(run, Ending("7", 0, 137, 1, 0, "killed", "requeue"))
    lines = run.path / "restarts.jsonl"
    whole = lines.read_bytes()
    lines.write_bytes(whole + b'{"job": "7", "sta')
    (run.path / "state.json").write_text('{"status": "runn')
    write_json(restarts.preflight_file(run.path), {})
    told, log = after(run.path, 137, 0, 1)
    assert told == "requeue\n" and "state.json is not valid JSON" in log and "preflight.json is not what" in log
    assert [ending.start for ending in restarts.read(run)] == [0, 1] and lines.read_bytes().startswith(whole + b"{")

    lines.write_bytes(b'{"job": "7"}\n\xff\xfe\n[1]\n' + lines.read_bytes())
    told, log = after(run.path, 137, 0, 2)
    assert told == "requeue\n" and log.count("is not a restart and is left out") == 3
    assert [ending.start for ending in restarts.read(run)] == [0, 1, 2]
