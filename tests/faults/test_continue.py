"""What may change between two starts of a run, and what may not."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from data_shards import build
from tests.faults.jobs import ForkedJob, complete_job, run_job, samples_in_order
from tests.faults.runs import LAYOUTS, STEPS, config_of, final
from tests.training import BATCH, assert_equal_checkpoints

ONE = LAYOUTS["one"][1]


@pytest.fixture
def halfway(inputs, tmp_path):
    """A run that ended after four steps."""
    complete_job(1, config_of(tmp_path / "run", inputs, ONE, steps=4))
    return tmp_path / "run"


def refusal(config):
    """The one sentence of a job of two ranks, which must leave the run as it was."""
    metrics = Path(config.directory) / "metrics.jsonl"
    before = metrics.read_bytes()
    codes, output = run_job(2, config)
    assert codes == [2, 2] and "Traceback" not in output, output
    assert metrics.read_bytes() == before
    told = [line for line in output.splitlines() if line.startswith("error")]
    assert len(told) == 1, output
    return told[0]


def test_other_articles_are_refused_with_the_first_difference(halfway, inputs, real_data, tmp_path):
    config = tmp_path / "build.toml"
    config.write_text(f"""
        tokenizer = "{inputs.hugging_face}"
        output = "{tmp_path}/other"
        workers = 1
        [[sources]]
        name = "pmc"
        format = "pmc"
        paths = ["{real_data}/jats_fulltext/pubchunks.open.tar.gz"]
        [sharding]
        validation_fraction = 0.2
    """)
    build.main([str(config)])
    other = dataclasses.replace(inputs, shards=str(tmp_path / "other"))
    told = refusal(config_of(halfway, other, ONE))
    assert re.search(r"step-00000004 was trained on other data: sources\[0\]\.\S+ was .*, is now ", told), told


def test_shards_of_another_checksum_are_refused(halfway, inputs, tmp_path):
    """Same names and counts: only the checksum of one shard differs."""
    copy = shutil.copytree(inputs.shards, tmp_path / "copy")
    body = json.loads((copy / "manifest.json").read_text())
    shard = body["splits"]["train"][0]
    before, shard["sha256"] = shard["sha256"], "0" * 64
    body.pop("manifest_checksum")
    (copy / "manifest.json").write_text(json.dumps(body))
    told = refusal(config_of(halfway, dataclasses.replace(inputs, shards=str(copy)), ONE))
    assert f"sources[0].shards[0].sha256 was '{before}', is now '{'0' * 64}'" in told


@pytest.mark.parametrize("key, value, was", [("seed", 8, 7), ("sequence_length", 64, 128)])
def test_another_order_is_refused(key, value, was, halfway, inputs):
    config = config_of(halfway, inputs, ONE)
    setattr(config.data, key, value)
    assert f"{key} was {was}, is now {value}" in refusal(config)


def test_the_same_shards_at_another_place_go_on(halfway, inputs, undisturbed, tmp_path):
    moved = shutil.copytree(inputs.shards, tmp_path / "moved")
    complete_job(1, config_of(halfway, dataclasses.replace(inputs, shards=str(moved)), ONE))
    assert_equal_checkpoints(final(halfway), final(undisturbed("one")))


def test_another_batch_size_neither_loses_nor_repeats_a_sample(halfway, inputs):
    config = config_of(halfway, inputs, ONE)
    config.train.global_batch = 4
    complete_job(2, config)
    first = [(step * BATCH, step * BATCH + BATCH - 1) for step in range(4)]
    assert samples_in_order(halfway) == first + [(start, start + 3) for start in range(4 * BATCH, 4 * BATCH + 16, 4)]
    assert len(samples_in_order(halfway)) == STEPS


def test_second_job_on_a_run_directory_is_refused(inputs, tmp_path):
    config = config_of(tmp_path / "run", inputs, ONE, steps=500)
    config.checkpoint.every_steps = 0
    with ForkedJob(1, config) as job:
        job.wait_for_step(1)
        codes, output = run_job(2, config)
        assert codes == [2, 2], output
        (told,) = output.splitlines()
        assert f"is in use by process {job.ranks[0].pid} on {socket.gethostname()}" in told
        assert job.ranks[0].is_alive() and job.ranks[0].pid != os.getpid()
        job.signal(signal.SIGTERM)
        assert job.wait(15) == [0]
    assert (tmp_path / "run" / "lock").read_text() == ""
