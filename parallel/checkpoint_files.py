"""Finding a checkpoint directory and proving its files, without torch or process groups.

*.distcp  .metadata         torch.distributed.checkpoint: the tensors and their index
common.pt  metadata.json    what megatron-core adds
hf/                         config, generation config and tokenizer of the model
manifest.json               size and checksum of every file above; its presence makes the checkpoint count
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from job import manifest
from job.directory import RunDirectory
from job.errors import InputError
from job.files import sha256_file

STAGE = "checkpoint"
MODEL_FOLDER = "hf"


def find_checkpoint(directory: Path) -> Path:
    """The checkpoint that `directory` is, or the newest one where it is a run directory.

    Raises `InputError` where it is neither.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"checkpoint directory {directory} does not exist")
    run = RunDirectory(directory)
    if not run.checkpoints.is_dir():
        return directory
    if run.latest.is_file():
        return run.checkpoints / run.latest.read_text(encoding="utf-8").strip()
    complete = run.complete_checkpoints()
    if not complete:
        raise InputError(f"run directory {directory} has no complete checkpoint yet")
    return complete[0]


def verify_file(directory: Path, name: str, expected: dict[str, Any]) -> None:
    """Compare one file with its manifest entry; raises `InputError` naming it where it is absent, cut or damaged."""
    file = directory / name
    if not file.is_file():
        raise InputError(f"checkpoint file {file} is missing; copy the checkpoint again")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise InputError(f"checkpoint file {file} has {size} bytes, its manifest says {expected['bytes']}: it is cut")
    if sha256_file(file) != expected["sha256"]:
        raise InputError(f"checkpoint file {file} does not match its SHA-256 in the manifest: it is damaged")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The checkpoint's manifest; raises `InputError` where `directory` holds no finished checkpoint."""
    return manifest.read(directory, STAGE)
