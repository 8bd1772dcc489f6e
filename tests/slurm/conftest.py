"""The sandbox, once for all tests of this folder."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.sandbox import Sandbox, skip_or_fail, why_not


@pytest.fixture(scope="package")
def sandbox():
    """A running cluster; skips with the reason where there can be none."""
    if reason := why_not():
        skip_or_fail(f"no Slurm: {reason}")
    # a short path without odd characters: slurm.conf knows no quotes, and sockets' names are limited
    with tempfile.TemporaryDirectory(prefix="slurm-") as root, Sandbox(Path(root) / "cluster") as cluster:
        yield cluster


CLUSTER = """
    [gpu]
    gpus = 2
    cpus = 2
    time = "10"
    [cpu]
    cpus = 1
    time = "10"
"""


@pytest.fixture
def slurm(sandbox, tmp_path):
    """`python -m slurm ...` in a directory of its own with an odd name: returns exit code and output."""
    here = tmp_path / 'it\'s a "5%" of $HOME'
    here.mkdir()
    (here / "cluster.toml").write_text(CLUSTER)
    environment = sandbox.environment | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}

    def run(*words, directory=here, **variables):
        done = subprocess.run(
            [sys.executable, "-m", "slurm", *map(str, words)],
            cwd=directory,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + done.stderr

    run.directory = here
    return run
