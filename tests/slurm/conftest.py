"""The sandbox, once for all tests of this folder."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.slurm.sandbox import Sandbox, why_not


@pytest.fixture(scope="package")
def sandbox():
    """A running cluster; skips with the reason where there can be none.

    With BIOMEDGPT_REQUIRE_SLURM=1 (as in CI) that is a failure instead.
    """
    if reason := why_not():
        if os.environ.get("BIOMEDGPT_REQUIRE_SLURM") == "1":
            pytest.fail(reason)
        pytest.skip(f"no Slurm: {reason}")
    # a short path without odd characters: slurm.conf knows no quotes, and sockets' names are limited
    with tempfile.TemporaryDirectory(prefix="slurm-") as root, Sandbox(Path(root) / "cluster") as cluster:
        yield cluster
