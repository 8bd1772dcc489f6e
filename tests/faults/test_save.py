"""SIGKILL in every phase of a checkpoint, and a disk that fills up during one."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from job.directory import RunDirectory
from parallel import checkpoint
from tests.faults.jobs import complete_job, run_job, samples_in_order
from tests.faults.runs import IN_ORDER, LAYOUTS, config_of, final
from tests.training import assert_equal_checkpoints

KILLED_AT = "step-00000004"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def during_save_of_step_4(action):
    """Run `action` when this rank begins to write the second checkpoint, then write it."""
    save = checkpoint.save

    def instead(path, *rest):
        if path.name == KILLED_AT:
            action()
        return save(path, *rest)

    checkpoint.save = instead


def before_anything(rank):
    if rank == 0:
        during_save_of_step_4(die)


def in_the_middle_of_a_file(rank):
    """The tensors are in the file's first half, nothing is synced: what a power cut would leave."""

    def dies_in_fsync(descriptor):
        os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
        die()

    if rank == 1:
        during_save_of_step_4(lambda: setattr(os, "fsync", dies_in_fsync))


def around_rename(before, after):
    rename = Path.rename

    def instead(self, target):
        named = Path(target).name == KILLED_AT
        if named and before:
            die()
        result = rename(self, target)
        if named and after:
            die()
        return result

    Path.rename = instead


def before_the_rename(rank):
    if rank == 0:
        around_rename(True, False)


def after_the_rename(rank):
    if rank == 0:
        around_rename(False, True)


def while_an_old_one_is_removed(rank):
    """The first file of the old checkpoint is gone, the rest is there."""
    remove = shutil.rmtree

    def instead(path, **options):
        if Path(path).name == ".step-00000002.removing":
            next(file for file in sorted(Path(path).rglob("*")) if file.is_file()).unlink()
            die()
        remove(path, **options)

    if rank == 0:
        shutil.rmtree = instead


PHASES = {
    before_anything: "step-00000002",
    in_the_middle_of_a_file: "step-00000002",
    before_the_rename: "step-00000002",
    after_the_rename: "step-00000004",
    while_an_old_one_is_removed: "step-00000004",
}


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.__name__)
def test_killed_during_a_save(phase, inputs, undisturbed, tmp_path):
    world, layout = LAYOUTS["data2"]
    config = config_of(tmp_path / "run", inputs, layout, keep=1)
    codes, output = run_job(world, config, phase, seconds=30)
    assert -signal.SIGKILL in codes and 0 not in codes, output
    survivor = next(code for code in codes if code != -signal.SIGKILL)
    assert survivor == 2 and "Traceback" not in output, output
    assert "another rank" in output

    output = complete_job(world, config)
    assert f"continuing from {RunDirectory(tmp_path / 'run').checkpoints / PHASES[phase]}" in output
    assert_equal_checkpoints(final(tmp_path / "run"), final(undisturbed("data2")))
    assert samples_in_order(tmp_path / "run") == IN_ORDER
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000008"]
    assert (tmp_path / "run" / "latest").read_text() == "step-00000008\n"
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_latest_names_the_checkpoint_that_a_complete_run_ended_with(inputs, tmp_path):
    """Killed between the last checkpoint and `latest`: nothing is left to train, and no old one may be exported."""

    def dies_before_latest(rank):
        point = RunDirectory.point_latest

        def instead(self, path):
            if path.name == "step-00000004":
                die()
            point(self, path)

        RunDirectory.point_latest = instead

    config = config_of(tmp_path / "run", inputs, LAYOUTS["one"][1], steps=4)
    assert run_job(1, config, dies_before_latest)[0] == [-signal.SIGKILL]
    assert (tmp_path / "run" / "latest").read_text() == "step-00000002\n"
    complete_job(1, config)
    assert (tmp_path / "run" / "latest").read_text() == "step-00000004\n"


@contextlib.contextmanager
def tiny_disk(place, kilobytes):
    """A file system of that size at `place`; skips where this machine does not let us mount one."""
    place.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def kilobytes_of(directory):
    return sum(-(-file.stat().st_size // 4096) * 4 for file in directory.rglob("*") if file.is_file())


@pytest.mark.parametrize("room", [0, 8, 600])
def test_disk_full_during_a_save(room, inputs, undisturbed, tmp_path):
    """With no room for anything, for the small files only, for a part of the tensors."""
    world, layout = LAYOUTS["data2"]
    config = config_of(tmp_path / "run", inputs, layout)
    checkpoints = tmp_path / "run" / "checkpoints"
    with tiny_disk(checkpoints, 40_000):
        shutil.copytree(undisturbed("data2") / "checkpoints" / "step-00000004", checkpoints / "step-00000004")
        assert kilobytes_of(checkpoints / "step-00000004") > 3000
        free = shutil.disk_usage(checkpoints).free // 1024
        (checkpoints / "filler").write_bytes(bytes(1024) * (free - room))
        began = time.monotonic()
        codes, output = run_job(world, config, seconds=30)
        assert codes == [2, 2] and time.monotonic() - began < 30
        assert "Traceback" not in output
        told = [line for line in output.splitlines() if line.startswith("error: cannot write checkpoint")]
        assert len(told) == 1 and "No space left" in told[0] and "step-00000006" in told[0], output
        assert sorted(path.name for path in checkpoints.iterdir()) == ["filler", "step-00000004"]

        (checkpoints / "filler").unlink()
        complete_job(world, config)
        assert_equal_checkpoints(final(tmp_path / "run"), final(undisturbed("data2")))


def test_file_size_limit_during_a_save(inputs, tmp_path):
    """A quota that stops large files: works without root."""

    def limited(rank):
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    codes, output = run_job(2, config_of(tmp_path / "run", inputs, LAYOUTS["data2"][1]), limited, seconds=30)
    assert codes == [2, 2] and "Traceback" not in output, output
    assert sum(line.startswith("error: cannot write checkpoint") for line in output.splitlines()) == 1, output
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_disk_full_for_metrics(inputs, tmp_path):
    """Metrics are the source of truth: a row that cannot be written ends the run in a sentence."""
    config = config_of(tmp_path / "run", inputs, LAYOUTS["data2"][1], steps=200)
    config.checkpoint.every_steps = 0
    with tiny_disk(tmp_path / "run", 28):
        codes, output = run_job(2, config, seconds=30)
        assert codes == [2, 2] and "Traceback" not in output, output
        assert "metrics.jsonl" in output and "No space left" in output, output
