"""The run directory: its lock, its attempts, its checkpoints, its manifest, its metrics, and being asked to stop."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from job import manifest
from job.directory import RunDirectory, RunLock
from job.errors import InputError
from job.stop import StopRequest
from job.track import Tracker, read_rows
from tests.conftest import REPOSITORY


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


def checkpoint(run, step, whole=True):
    path = run.checkpoint(step)
    path.mkdir(parents=True)
    if whole:
        manifest.write(path, "checkpoint", {}, [], {"step": step})
    return path


def child(code, *words):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )


HOLD = """
import sys, time
from pathlib import Path
from job.directory import RunDirectory, RunLock
lock = RunLock(RunDirectory(Path(sys.argv[1])))
print("held", flush=True)
time.sleep(60)
"""


def test_lock_names_its_holder_and_ends_with_it(run, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    holder = child(HOLD, run.path)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError) as caught:
            RunLock(run)
        assert f"is in use by process {holder.pid} on {socket.gethostname()} (job 4711) since " in str(caught.value)
    finally:
        holder.kill()
        holder.communicate()
    lock = RunLock(run)  # no file to remove by hand after a kill
    assert f"process {os.getpid()} " in (run.path / "lock").read_text()
    lock.release()
    RunLock(run).release()


def test_a_file_system_without_locks_is_not_in_use(run, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InputError, match=r"cannot be locked \(Function not implemented\); mount .* 'flock'"):
        RunLock(run)


def test_attempts_count_on(run):
    assert run.next_attempt() == 1
    for name in ("attempt-1", "attempt-10", "attempt-9", "attempt-2.old"):
        (run.path / "logs" / name).mkdir(parents=True)
    assert run.next_attempt() == 11
    assert run.log_file(3, 7) == run.path / "logs" / "attempt-3" / "rank-00007.log"


def test_checkpoints_newest_first(run):
    for step in (5, 100, 20):
        checkpoint(run, step)
    damaged = checkpoint(run, 300, whole=False)
    (run.checkpoints / "step-00000100.bak").mkdir()
    (run.checkpoints / ".step-00000400.writing").mkdir()
    names = ["step-00000300", "step-00000100", "step-00000020", "step-00000005"]
    assert [path.name for path in run.checkpoint_directories()] == names
    assert [path.name for path in run.complete_checkpoints()] == names[1:]
    run.point_latest(run.checkpoint(100))
    assert run.latest.read_text() == "step-00000100\n"

    assert run.set_aside(damaged).name == "damaged-step-00000300"
    run.remove_checkpoint(run.checkpoint(5))
    assert [path.name for path in run.checkpoint_directories()] == names[1:3]


def test_leftovers_of_a_kill_are_removed_and_nothing_else(run):
    checkpoint(run, 2)
    for name in (".step-00000004.writing", ".step-00000001.removing"):
        (run.checkpoints / name / "deep").mkdir(parents=True)
    (run.path / ".latest.123.tmp").write_text("half")
    (run.path / "metrics.jsonl").write_text("{}\n")
    run.remove_leftovers()
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["step-00000002"]
    assert sorted(path.name for path in run.path.iterdir()) == ["checkpoints", "metrics.jsonl"]


def test_manifest_says_what_made_a_directory(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    manifest.write(first, "data_shards build", {"seed": 1}, [], {"counts": {"tokens": 7}})
    manifest.write(second, "checkpoint", {"lr": 2e-5}, [manifest.reference(first)], {"step": 3})
    body = manifest.read(second, "checkpoint")
    assert body["config"] == {"lr": 2e-5} and body["step"] == 3 and "torch" in body["packages"]
    assert body["code_version"].startswith("0.")
    assert [entry["stage"] for entry in manifest.chain(second)] == ["checkpoint", "data_shards build"]
    (first / "manifest.json").write_text((first / "manifest.json").read_text().replace('"tokens": 7', '"tokens": 8'))
    assert [entry["stage"] for entry in manifest.chain(second)] == ["checkpoint"]  # no longer what it was made from


MANIFESTS = {
    "does not exist": None,
    "is not valid JSON": b"{",
    "is not a manifest: it holds a list": b"[]",
    "was made by stage 'export', but a directory made by 'checkpoint' is needed": b'{"stage": "export"}',
    "has format version 99, newer than this code": b'{"stage": "checkpoint", "format_version": 99}',
}


@pytest.mark.parametrize("words", MANIFESTS)
def test_bad_manifest(words, tmp_path):
    if MANIFESTS[words] is not None:
        (tmp_path / "manifest.json").write_bytes(MANIFESTS[words])
    with pytest.raises(InputError) as caught:
        manifest.read(tmp_path, "checkpoint")
    assert words in str(caught.value) and str(tmp_path / "manifest.json") in str(caught.value)


def test_any_flipped_bit_of_a_manifest_is_noticed(tmp_path):
    manifest.write(tmp_path, "checkpoint", {"lr": 2e-5}, [], {"step": 3, "consumed_samples": 24})
    path = tmp_path / "manifest.json"
    good = path.read_bytes()
    body = manifest.read(tmp_path, "checkpoint")
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            read = manifest.read(tmp_path, "checkpoint")
        except InputError:
            continue
        # what passes is a flip in the checksum's own name
        assert {key: read[key] for key in body} == body and len(read) == len(body) + 1, place


def tracker(run, attempt):
    return Tracker(run, attempt, {}, project="p", name=None, mode="disabled")


def test_highest_attempt_wins_and_a_cut_line_is_left_out(run):
    run.path.mkdir()
    first = tracker(run, 1)
    for step in (1, 2, 3):
        first.log(step, {"train/loss": 4.0, "mem/allocated_gib": 1.0, "train/tokens": step}, first_sample=step)
        first.log(step, {"val/loss/a": 5.0, "train/tokens": step})
    first.close()
    with open(run.metrics, "a") as handle:
        handle.write('{"step": 4, "attempt": 1, "train/lo')
    assert len(read_rows(run.metrics)) == 6
    second = tracker(run, 2)  # on another device, which does not report memory
    second.log(2, {"train/loss": 3.0, "train/tokens": 2}, first_sample=2)
    second.close()
    assert all(json.loads(line) for line in run.metrics.read_text().splitlines())
    rows = [row for row in read_rows(run.metrics) if "train/loss" in row]
    assert [(row["step"], row["attempt"], row["train/loss"]) for row in rows] == [(1, 1, 4.0), (2, 2, 3.0), (3, 1, 4.0)]
    assert sum("val/loss/a" in row for row in read_rows(run.metrics)) == 3


def test_rows_are_on_disk_at_once(run):
    run.path.mkdir()
    open_tracker = tracker(run, 1)
    open_tracker.log(1, {"train/loss": 4.0, "train/tokens": 1})
    assert read_rows(run.metrics)[0]["train/loss"] == 4.0
    open_tracker.close()


ASKED = """
import sys, time
from pathlib import Path
from job.stop import StopRequest
stop = StopRequest(Path(sys.argv[1]))
print("ready", flush=True)
deadline = time.monotonic() + 20
while not stop.requested() and time.monotonic() < deadline:
    time.sleep(0.01)
print(stop.reason, flush=True)
while "twice" in sys.argv:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_signals_ask_to_stop(number, tmp_path):
    process = child(ASKED, tmp_path / "stop")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == f"signal {number.name}\n"
    assert process.returncode == 0


def test_file_asks_to_stop(tmp_path):
    process = child(ASKED, tmp_path / "stop")
    assert process.stdout.readline() == "ready\n"
    (tmp_path / "stop").touch()
    assert process.communicate(timeout=10)[0] == f"file {tmp_path / 'stop'}\n"


def test_second_interrupt_interrupts(tmp_path):
    process = child(ASKED, tmp_path / "stop", "twice")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "signal SIGINT\n"
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=10)[1]


def test_end_of_torchrun_asks_to_stop(tmp_path):
    """A parent that starts the process as torchrun does, and is killed."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ASKED!r}, sys.argv[1]])"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "stop")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "TORCHELASTIC_RUN_ID": "run"},
    )
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    assert parent.stdout.readline() == "torchrun has ended\n"
    parent.communicate()


COMMAND = """
import sys
from job.errors import InputError, run_command
def main():
    if sys.argv[1] == "mistake":
        raise InputError("file x is cut", everywhere="everywhere" in sys.argv)
    if sys.argv[1] == "defect":
        raise KeyError("ours")
    if sys.argv[1] == "interrupt":
        raise KeyboardInterrupt
    return int(sys.argv[1])
run_command(main)
"""


@pytest.mark.parametrize(
    "words, rank, status, told",
    [
        (["0"], "0", 0, ""),
        (["7"], "0", 7, ""),
        (["mistake"], "0", 2, "error: file x is cut\n"),
        (["mistake"], "3", 2, "error (rank 3): file x is cut\n"),
        (["mistake", "everywhere"], "0", 2, "error: file x is cut\n"),
        (["mistake", "everywhere"], "3", 2, ""),
        (["interrupt"], "0", 130, "interrupted\n"),
    ],
)
def test_exit_status_and_message(words, rank, status, told):
    command = [sys.executable, "-c", COMMAND, *words]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RANK": rank}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (status, told)


def test_the_first_mistake_is_kept_in_a_file(tmp_path):
    """Only of ranks that say it, and only the first; a place that cannot be written is no further error."""
    file = tmp_path / "run" / "mistake"

    def fails(rank, *words):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RANK": rank, "BIOMEDGPT_MISTAKE": str(file)}
        command = [sys.executable, "-c", COMMAND, *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment).returncode

    assert fails("1", "mistake", "everywhere") == 2 and fails("0", "defect") == 1 and not file.exists()
    assert fails("0", "mistake") == 2 and file.read_text() == "file x is cut\n"
    file.write_text("before\n")
    assert fails("1", "mistake") == 2 and file.read_text() == "before\n"
    file = file / "no folder"
    assert fails("0", "mistake") == 2


def test_defect_keeps_its_traceback():
    process = child(COMMAND, "defect")
    told = process.communicate(timeout=10)[1]
    assert process.returncode == 1 and "Traceback" in told and "KeyError: 'ours'" in told


def test_job_needs_no_torch():
    code = "import job.config, job.directory, job.errors, job.files, job.manifest, job.stop, job.track, sys; "
    began = time.monotonic()
    process = child(code + "print('torch' in sys.modules, 'wandb' in sys.modules)")
    assert process.communicate(timeout=20)[0] == "False False\n"
    assert time.monotonic() - began < 10


def test_stop_request_restores_nothing_it_was_not_asked_for(tmp_path):
    """Without signal and file nothing is requested."""
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    try:
        assert not StopRequest(tmp_path / "stop").requested()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_other_ranks_leave_the_first_one_time_to_speak():
    """torchrun ends all ranks when one has left: the first must not be ended before it has printed.

    A rank that is ended while it waits tells of the mistake by its exit status, not of the signal.
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "RANK": "1", "TORCHELASTIC_RUN_ID": "run"}
    process = subprocess.Popen([sys.executable, "-c", COMMAND, "mistake", "everywhere"], env=environment)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2)
    process.terminate()
    assert process.wait(2) == 2
