"""metrics.jsonl is the source of truth, W&B mirrors it, and neither holds a secret."""

import json
import math
import os
import re
import struct
import zlib

import matplotlib.image
import pytest
import wandb  # noqa: F401  (imported before ranks are forked: it takes a second)
from wandb.proto import wandb_internal_pb2

from pretrain.config import CheckpointConfig, TrackingConfig
from tests.faults.jobs import complete_job
from tests.training import BATCH, SEQUENCE, make_config, metrics_rows, training_tokens

SECRET = "0123456789abcdef0123456789abcdef01234567"
TRAINING = {
    "train/loss",
    "train/grad_norm",
    "train/lr",
    "train/tokens",
    "train/epoch/articles",
    "perf/tokens_per_sec_per_device",
    "perf/tflops_per_device",
    "perf/step_s",
    "perf/forward_backward_s",
    "perf/optimizer_s",
    "perf/data_wait_s",
    "perf/goodput",
}
VALIDATION = {f"val/{what}/{source}" for what in ("loss", "perplexity") for source in ("pubmed", "pmc")}
CHECKPOINT = {"checkpoint/stall_s", "checkpoint/write_s", "checkpoint/bytes"}


def log_records(file):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB, crc, length and kind before each piece)."""
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    position, pieces = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        data = content[position + 7 : position + 7 + length]
        assert zlib.crc32(data, zlib.crc32(bytes([kind]))) == checksum
        position += 7 + length
        pieces = data if kind in (1, 2) else pieces + data
        if kind in (1, 4):
            yield pieces


def wandb_records(file, kind):
    for content in log_records(file):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == kind:
            yield getattr(record, kind)


def wandb_rows(file):
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        for history in wandb_records(file, "history")
    ]


@pytest.fixture(scope="module")
def tracked(inputs, tmp_path_factory):
    """A run of three steps, and its continuation to five by a second attempt, tracked by W&B without a network."""
    directory = tmp_path_factory.mktemp("tracked") / "my-run"
    for steps in (3, 5):
        config = make_config(
            directory,
            inputs,
            steps=steps,
            checkpoint=CheckpointConfig(every_steps=2, keep=0),
            tracking=TrackingConfig(project="articles", mode="offline"),
            validate=2,
        )
        before = os.environ.get("WANDB_API_KEY")
        os.environ["WANDB_API_KEY"] = SECRET
        try:
            complete_job(1, config)
        finally:
            os.environ.pop("WANDB_API_KEY")
            if before is not None:
                os.environ["WANDB_API_KEY"] = before
    return directory


def names(row):
    return {key for key in row if "/" in key}


def test_rows_have_the_documented_names(tracked, inputs):
    rows = metrics_rows(tracked)
    kinds = [names(row) for row in rows]
    training = [row for row in rows if "train/loss" in row]
    assert all(names(row) == TRAINING for row in training)  # on a CPU, whose peak is unknown, there is no MFU
    assert VALIDATION | {"train/tokens"} in kinds and CHECKPOINT | {"train/tokens"} in kinds
    assert set().union(*kinds) == TRAINING | VALIDATION | CHECKPOINT
    assert [(row["step"], row["attempt"]) for row in training] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]
    for row in training:
        assert row["first_sample"] == (row["step"] - 1) * BATCH and row["last_sample"] == row["step"] * BATCH - 1
        assert row["train/tokens"] == row["step"] * BATCH * SEQUENCE
        assert row["train/epoch/articles"] == pytest.approx(row["train/tokens"] / training_tokens(inputs.shards))
    validated = next(row for row in rows if "val/loss/pmc" in row)
    assert validated["val/perplexity/pmc"] == pytest.approx(math.exp(validated["val/loss/pmc"]))
    assert validated["step"] == 0 and validated["train/tokens"] == 0
    saved = next(row for row in rows if "checkpoint/bytes" in row)
    files = (tracked / "checkpoints" / f"step-{saved['step']:08d}").rglob("*")
    total = sum(file.stat().st_size for file in files if file.is_file() and file.name != "manifest.json")
    assert saved["checkpoint/bytes"] == total


def test_wandb_file_equals_metrics(tracked):
    files = sorted((tracked / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # one per attempt, of one run
    run_id = (tracked / "wandb-id").read_text().strip()
    assert all(file.name == f"run-{run_id}.wandb" for file in files)
    runs = [next(iter(wandb_records(file, "run"))) for file in files]
    assert [(run.run_id, run.project, run.display_name) for run in runs] == [(run_id, "articles", "my-run")] * 2
    axes = [(metric.glob_name, metric.step_metric) for metric in wandb_records(files[0], "metric")]
    assert ("*", "train/tokens") in axes
    mirrored = [row for file in files for row in wandb_rows(file)]
    written = metrics_rows(tracked)
    assert len(mirrored) == len(written) > 10
    for there, here in zip(mirrored, written):
        assert {key: value for key, value in there.items() if not key.startswith("_")} == {
            key: value for key, value in here.items() if key not in ("time", "first_sample", "last_sample")
        }


def test_no_secret_in_the_run_directory(tracked):
    files = [file for file in tracked.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


def test_loss_plot_is_a_picture(tracked):
    pixels = matplotlib.image.imread(tracked / "loss.png")
    assert pixels.shape[0] > 500 and pixels.shape[1] > 800
    assert len({tuple(color) for color in pixels.reshape(-1, pixels.shape[-1])[::7].tolist()}) > 10


def test_console_line_of_a_step(tracked, inputs):
    log = complete_job(1, make_config(tracked.parent / "console", inputs, steps=2))
    pattern = (
        r"step 1/2 \| loss \d\.\d{4} \| grad norm \d+\.\d{3} \| lr \d\.\d\de-\d\d \| [\d,]+ tok/s/device \| "
        r"data \d+\.\d% \| (\d+s|\d+m\d\ds) left"
    )
    assert len(re.findall(pattern, log)) == 1, log
