"""A wheel, away from the checkout, answers every verb's --help."""

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERBS = [
    *([package] for package in ("data_shards", "parallel", "pretrain", "align", "eval", "slurm")),
    *(
        [package, verb]
        for package in ("data_shards", "parallel", "align", "slurm")
        for verb in importlib.import_module(f"{package}.__main__").VERBS
    ),
]


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """The wheel's content in a directory of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    # without isolation: nothing is downloaded
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("biomedgpt-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_help_from_a_wheel_without_torch(words, installed, tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = {[*words, '--help']!r}\n"
        f"try: runpy.run_module({words[0]!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('FROM', sys.modules['job'].__file__)\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "100"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    text, _, origin = done.stdout.rpartition("FROM ")
    assert text.startswith("usage:") and len(text.splitlines()) >= 5
    assert Path(origin.strip()).is_relative_to(installed), "the checkout was imported, not the wheel"


def test_files_that_are_no_code_are_in_the_wheel(installed):
    found = {str(path.relative_to(installed)) for path in (installed / "eval").rglob("*") if path.is_file()}
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "eval" / "tasks").rglob("*") if path.is_file()}
    expected = {name for name in expected if "__pycache__" not in name} | {"eval/reports/published.toml"}
    assert len(expected) > 40 and expected <= found, expected - found
