"""Where tests find real data, and what happens where it is missing."""

import gc
import os
from pathlib import Path

import pytest

# Several tests run at once, and most models here are small: threads would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.inputs import Inputs, make_inputs

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = Path(os.environ.get("BIOMEDGPT_TEST_DATA", REPOSITORY.parent / "shared" / "data" / "open"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of our own."""
    parser.addoption("--write-losses", action="store_true", help="write tests/assets/losses/*.txt from this run")
    parser.addoption("--write-golden", action="store_true", help="write tests/slurm/golden/*.sbatch from this run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files go first, so that no process is left with them at the end; Slurm's not all at once."""
    longest = ("tests/slurm/test_chain", "tests/slurm/test_jobs", "tests/faults/", "tests/slurm/", "tests/align/")

    def place(item: pytest.Item) -> int:
        return next((number for number, name in enumerate(longest) if item.nodeid.startswith(name)), len(longest))

    gc.freeze()  # hundreds of imported libraries need not be looked through again and again
    items.sort(key=place)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real articles, tokenizers and checkpoints; skips the test where a user's clone has none.

    With BIOMEDGPT_REQUIRE_DATA=1 (as in CI) a missing folder is a failure instead.
    """
    if not REAL_DATA.is_dir():
        reason = f"real data not found at {REAL_DATA}; set BIOMEDGPT_TEST_DATA to its folder"
        if os.environ.get("BIOMEDGPT_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return REAL_DATA


@pytest.fixture(scope="session")
def inputs(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Shards of real articles and a real trained model, made once per session."""
    return make_inputs(real_data, tmp_path_factory.mktemp("inputs"))
