"""A small alignment run over real rows, and how to read what it leaves."""

import contextlib
import dataclasses
import gzip
import io
import json
from pathlib import Path

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (imported before ranks are forked: it takes seconds)
import matplotlib.pyplot  # noqa: F401  (likewise)
import torch
from safetensors.torch import load_file

from align.config import (
    AlignConfig,
    DataConfig,
    ModelConfig,
    MoleculeConfig,
    ParallelConfig,
    ProteinConfig,
    SourceConfig,
    TrainConfig,
    TuneConfig,
)
from align.esm import create_protein_encoder
from align.questions import FUNCTION, Question
from align.settings import LoraSettings, PromptSettings
from align.train import train
from align.trainer import Trainer  # noqa: F401  (likewise)
from job.directory import RunDirectory
from job.training import AdamWConfig, CheckpointConfig, ScheduleConfig, TrackingConfig
from tests.align.question_sets import chebi_questions, write_set

STEPS, BATCH, RATE = 4, 6, 1e-3


@dataclasses.dataclass(frozen=True)
class AlignInputs:
    """What the runs of these tests read."""

    language_model: str
    """stories260K: five layers, tied embeddings, 512 positions"""
    molecule_weights: str
    """a published GCN"""
    protein_weights: str
    """a random ESM-2 of two layers"""
    chebi: str
    """real ChEBI-20 rows"""
    yeast: str
    """real rows about yeast proteins"""


def yeast_questions(real_data: Path, count: int) -> list[Question]:
    """Real rows about yeast proteins, in file order."""
    with gzip.open(real_data / "yeast_protein_text" / "yeast_sgd.open.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count))]
    return [
        Question(f"yeast:{row['accession']}", FUNCTION, row["description"], proteins=(row["sequence"],))
        for row in rows
        if row["description"]
    ]


def make_align_inputs(real_data: Path, folder: Path) -> AlignInputs:
    """Real rows of both kinds, built into question shards, and models."""
    short = [q for q in chebi_questions(real_data, 400) if len(q.molecules[0]) < 80 and len(q.answer) < 300]
    write_set(folder / "chebi", short[:60], short[60:70])
    proteins = [q for q in yeast_questions(real_data, 400) if len(q.proteins[0]) < 200 and len(q.answer) < 300]
    write_set(folder / "yeast", proteins[:30], proteins[30:35])
    create_protein_encoder(2, 32, 4, seed=1).esm.save_pretrained(folder / "esm")
    return AlignInputs(
        f"{real_data}/stories260K/hf",
        f"{real_data}/gnn_checkpoints/gcn_contextpred.pth",
        f"{folder}/esm",
        f"{folder}/chebi",
        f"{folder}/yeast",
    )


def make_config(directory, inputs, stage=2, mode="adapters", precision="fp32", **changes):
    """A run of a few steps; `changes` are fields of [train], or whole sections."""
    sections = {name: changes.pop(name) for name in list(changes) if name in AlignConfig.__dataclass_fields__}
    molecule = {"kind": "gcn", "weights": inputs.molecule_weights}
    if mode in ("encoders", "all"):  # a small one from random weights: batch norms are synchronised
        molecule = {"kind": "gin", "layers": 2, "width": 32}
    values = {
        "directory": str(directory),
        "model": ModelConfig(inputs.language_model, max_length=512),
        "molecule": MoleculeConfig(**molecule),
        "protein": ProteinConfig(weights=inputs.protein_weights),
        "prompt": PromptSettings(system="Answer. "),  # the published words are most of a row of this tokenizer's
        "tune": TuneConfig(mode, LoraSettings(rank=4, dropout=changes.pop("dropout", 0.0))),
        "data": DataConfig([SourceConfig(inputs.chebi), SourceConfig(inputs.yeast)], token_budget=1000, seed=7),
        "parallel": ParallelConfig(stage, timeout_seconds=20),
        "train": TrainConfig(
            steps=STEPS,
            global_batch=BATCH,
            precision=precision,
            validate_questions=3,
            validate_at_start=True,
            samples=0,
        ),
        "optimizer": AdamWConfig(lr=RATE),
        "schedule": ScheduleConfig("constant", warmup=2),
        "checkpoint": CheckpointConfig(every_steps=2),
        "tracking": TrackingConfig(mode="disabled"),
    }
    config = AlignConfig(**(values | sections))
    for name, value in changes.items():
        setattr(config.train, name, value)
    return config


def quietly(config):
    """Train without console lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        return train(config)


def checkpoint_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, moments, buffers."""
    tensors = {}
    for file in sorted(Path(path).glob("*.safetensors")):
        tensors |= {f"{file.stem}/{name}": value for name, value in load_file(file).items()}
    return tensors


def final(directory) -> Path:
    """The newest checkpoint of a run."""
    run = RunDirectory(Path(directory))
    return run.checkpoints / run.latest.read_text().strip()


def assert_equal_checkpoints(first, second, tolerance=0.0):
    """Equal weights, optimizer states and buffers."""
    one, other = checkpoint_tensors(first), checkpoint_tensors(second)
    assert one.keys() == other.keys() and len(one) >= 12
    for name, value in one.items():
        if tolerance:
            torch.testing.assert_close(value, other[name], atol=tolerance, rtol=1e-3, msg=name)
        else:
            assert torch.equal(value, other[name]), name
