"""`python -m align export RUN_OR_CHECKPOINT MODEL_DIR`: what a run has trained, with what it was trained on, to use."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from align.config import AlignConfig, ParallelConfig
from job import config as configs
from job import manifest
from job.errors import InputError
from parallel.checkpoint_files import find_checkpoint, verify_file

EXPORT_STAGE = "align export"

DESCRIPTION = """Make a model directory of an alignment run: settings, tokenizer, adapters, encoders and, where it was
trained, the language model. One process is enough, and neither DeepSpeed nor the run's devices are needed.

  python -m align export runs/biomedgpt-10b models/biomedgpt-10b
  python -m align ask models/biomedgpt-10b --molecule CCO "Please describe this molecule."
"""


def main(arguments: Sequence[str]) -> int:
    """Export, and say what was made."""
    parser = argparse.ArgumentParser(
        prog="python -m align export", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a run directory (its newest checkpoint) or one checkpoint")
    parser.add_argument("model", type=Path, help="the model directory to make")
    parser.add_argument(
        "--copy-language-model",
        action="store_true",
        help="copy a frozen language model into it, instead of referring to where it lies",
    )
    options, changes = parser.parse_known_args(arguments)
    export(options.source, options.model, options.copy_language_model, changes)
    print(f"{options.model} is an aligned model; ask it: python -m align ask {options.model} ...", file=sys.stderr)
    return 0


def export(source: Path, directory: Path, copy_language_model: bool = False, changes: Sequence[str] = ()) -> None:
    """Write the model directory of a run or a checkpoint.

    `changes` are options of the run's config, for what has moved since: `--model.language_model NEW`. Raises
    `InputError` where `directory` exists, the checkpoint is damaged or incomplete, or what was frozen is no longer
    what it was, byte for byte.
    """
    from safetensors.torch import load_file

    from align import assemble
    from align.checkpoint import BUFFERS, CONFIG, STAGE, WEIGHTS, check_trained

    if directory.exists():
        raise InputError(f"{directory} exists already; remove it or choose another directory")
    path = find_checkpoint(source)
    body = manifest.read(path, STAGE)
    for name, expected in sorted(body["files"].items()):
        if name in (WEIGHTS, BUFFERS, CONFIG):  # what continuing needs besides may be gone
            verify_file(path, name, expected)
    config = configs.parse(AlignConfig, [str(path / CONFIG), *changes], "python -m align export", DESCRIPTION)
    config.parallel = ParallelConfig(stage=0)  # one process that holds everything
    for part, checksum in assemble.frozen_checksums(config).items():
        if body["frozen"].get(part) != checksum:
            raise InputError(f"the {part} is not the one that {path} was trained with; restore its files")
    model = assemble.build(config)
    check_trained(path, body, model)
    state = load_file(path / WEIGHTS) | load_file(path / BUFFERS)
    for name, tensor in state.items():
        if not tensor.numel():
            raise InputError(f"{path / WEIGHTS}: {name} has no elements: it was saved without its values")
    facts = _facts(config, body, path)
    model.save_pretrained(directory, state, copy_language_model, facts)
    manifest.write(directory, EXPORT_STAGE, configs.as_dict(config), [manifest.reference(path)], {"training": facts})


def _facts(config: AlignConfig, body: dict[str, Any], path: Path) -> dict[str, Any]:
    """What the model card says of the training."""
    names = [source["name"] for source in body["data"]["order"]["sources"]]
    data = []
    for name, reference in zip(names, body["inputs"]):
        counts = [
            shard["questions"]
            for source in body["data"]["order"]["sources"]
            if source["name"] == name
            for shard in source["shards"]
        ]
        data.append({"name": name, "questions": sum(counts), "manifest_sha256": reference["manifest_sha256"]})
    return {
        "data": data,
        "molecule_encoder": config.molecule.weights,
        "protein_encoder": config.protein.weights,
        "trained": config.tune.mode,
        "steps": body["step"],
        "questions": body["consumed_samples"],
        "learning_rate": config.optimizer.lr,
        "checkpoint": path.name,
    }
