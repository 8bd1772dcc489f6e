"""What tests of training runs share: a small config over the real inputs, and how to read what a run leaves."""

import contextlib
import io
import json
from pathlib import Path

import matplotlib.pyplot  # noqa: F401  (imported before ranks are forked: training needs it, and this takes a second)
import torch
from torch.distributed.checkpoint import FileSystemReader, state_dict_loader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from transformers import LlamaConfig  # noqa: F401  (likewise)

from job.training import CheckpointConfig, ScheduleConfig, TrackingConfig
from parallel.layout import Layout
from pretrain.config import DataConfig, ModelConfig, OptimizerConfig, PretrainConfig, SourceConfig, TrainConfig
from pretrain.train import train

SEQUENCE, BATCH, STEPS, RATE = 128, 8, 5, 1e-3


def make_config(directory, inputs, layout=None, micro_batch=2, steps=STEPS, precision="fp32", validate=0, **changes):
    """A run of a few steps over `inputs`; `changes` are whole sections, or `base` for another checkpoint.

    It is validated at its end, on as little as goes; with `validate`, on so many windows, and at its start as well.
    """
    return PretrainConfig(
        directory=str(directory),
        model=ModelConfig(changes.pop("base", None) or inputs.base),
        data=DataConfig([SourceConfig(inputs.shards if inputs else "", "articles")], SEQUENCE, seed=7),
        parallel=layout or Layout(),
        train=TrainConfig(
            steps=steps,
            global_batch=BATCH,
            micro_batch=micro_batch,
            precision=precision,
            validate_samples=validate or 2,
            validate_at_start=validate > 0,
        ),
        optimizer=OptimizerConfig(lr=RATE),
        schedule=ScheduleConfig("constant", warmup=2),
        checkpoint=changes.pop("checkpoint", CheckpointConfig()),
        tracking=changes.pop("tracking", TrackingConfig(mode="disabled")),
        **changes,
    )


def quietly(config):
    """Train without console lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        return train(config)


def metrics_rows(directory):
    """Rows of a run's metrics.jsonl as written, redone steps included."""
    with open(Path(directory) / "metrics.jsonl", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def training_tokens(shards) -> int:
    """Tokens of the training split, summed over the manifest's shards."""
    body = json.loads((Path(shards) / "manifest.json").read_text())
    return sum(shard["tokens"] for shard in body["splits"]["train"])


def losses(rows):
    """The training losses of rows, in their order."""
    return [row["train/loss"] for row in rows if "train/loss" in row]


def checkpoint_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a distributed checkpoint by name, optimizer included, read by torch's own loader."""
    state = {}
    state_dict_loader._load_state_dict(
        state, FileSystemReader(checkpoint), planner=_EmptyStateDictLoadPlanner(), no_dist=True
    )
    found = {}

    def collect(name, value):
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                collect(f"{name}.{key}", item)
        elif isinstance(value, (list, tuple)):
            for number, item in enumerate(value):
                collect(f"{name}[{number}]", item)

    collect("", state)
    return found


def assert_equal_checkpoints(first: Path, second: Path) -> None:
    """Bit-equal weights and optimizer states."""
    one, other = checkpoint_tensors(first), checkpoint_tensors(second)
    assert one.keys() == other.keys()
    assert len(one) > 30  # weights and both moments of every layer
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} tensors differ, such as {different[:3]}"
