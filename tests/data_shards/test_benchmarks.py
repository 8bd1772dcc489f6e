"""The benchmark scripts run, prove equal content and print their tables; the figures of a smoke run mean nothing."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


def run(script, real_data, output, timeout=200):
    words = [sys.executable, str(REPOSITORY / "benchmarks" / script), "--smoke", "--data", str(real_data)]
    words += ["--tokenizer", str(real_data / "llama_tokenizer"), "--repeats", "1", "--output", str(output)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, cwd=output.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, json.loads(output.read_text())


@pytest.mark.real
def test_read_windows(real_data, tmp_path):
    shown, result = run("read_windows.py", real_data, tmp_path / "result.json")
    assert "windows equal to megatron-core's in its document order" in shown
    assert "| 256, webdataset |" in shown
    rates = result["results"]["256"]
    assert len(rates) == 5
    assert all(0 < rate["min"] <= rate["median"] <= rate["max"] for rate in rates.values())


@pytest.mark.real
def test_tokenise(real_data, tmp_path):
    if importlib.util.find_spec("datatrove") is None:
        pytest.skip("datatrove is not installed (pip install 'biomedgpt[bench]')")
    shown, result = run("tokenise.py", real_data, tmp_path / "result.json")
    assert "ids identical in all" in shown
    assert "| datatrove DocumentTokenizer |" in shown
    assert all(0 < rate["min"] <= rate["max"] for rate in result["results"].values())
