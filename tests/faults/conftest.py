"""Every test here is also a test that nothing outlives it."""

import contextlib
import ctypes
import os
import time

import psutil
import pytest

from tests.faults.jobs import complete_job
from tests.faults.runs import LAYOUTS, config_of

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def _descendants():
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_ZOMBIE:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
            else:
                found.append(process)
    return found


@pytest.fixture(autouse=True)
def no_survivors():
    """Fails where a process, orphaned or not, is left ten seconds after the test (W&B's monitor looks up every five).

    This process adopts what its descendants leave behind (a "subreaper"), so that orphans are seen too.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = {process.pid for process in _descendants()}
    yield
    deadline = time.monotonic() + 10
    while left := [process for process in _descendants() if process.pid not in before]:
        if time.monotonic() > deadline:
            told = [" ".join(process.cmdline()) or process.name() for process in left]
            for process in left:
                process.kill()
            pytest.fail(f"processes outlive the test: {told}")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def undisturbed(inputs, tmp_path_factory):
    """By layout, the directory of a run that nobody disturbed."""
    made = {}

    def run(name):
        if name not in made:
            world, layout = LAYOUTS[name]
            made[name] = tmp_path_factory.mktemp("undisturbed") / name
            complete_job(world, config_of(made[name], inputs, layout))
        return made[name]

    return run
