"""`align train --dry-run`: what a config would do, worked out from manifests and headers alone, without torch."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from align.config import AlignConfig
from align.inputs import open_inputs
from job.config import dump
from job.directory import RunDirectory
from job.errors import InputError


def describe(config: AlignConfig) -> str:
    """The resolved config, then sizes of what is trained and frozen, steps, epochs per source, and checkpoints.

    The number of processes comes from WORLD_SIZE. Raises `InputError` for whatever would stop the run itself.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    inputs = open_inputs(config)
    order, train = inputs.order, config.train
    asked = inputs.steps * train.global_batch
    epochs, run = order.epochs(asked), RunDirectory(Path(config.directory))
    found = run.complete_checkpoints()
    lines = [
        dump(config),
        *_parts(config),
        f"layout      ZeRO stage {config.parallel.stage} on {world} process{'es' * (world > 1)}, language model "
        f"{'registered' if config.registers_language_model else 'outside'}, offload {config.parallel.offload}",
        f"step        {train.global_batch} questions in micro-batches of at most {config.data.token_budget:,} tokens",
        f"run         {inputs.steps:,} steps, {asked:,} questions",
        *(
            f"source      {name}: {len(questions):,} questions, weight {order.weights[name]:.3f}, "
            f"{epochs[name]:.2f} epochs, {len(inputs.validation.get(name, ())):,} for validation"
            for name, questions in zip(order.names, order.sets)
        ),
        f"directory   {run.path}: " + (f"would continue from {found[0].name}" if found else "would start"),
    ]
    return "\n".join(lines)


def _parts(config: AlignConfig) -> list[str]:
    """One line for each part that has its weights in safetensors files: how large, trained or frozen."""
    model = Path(config.model.language_model)
    fate = "trained" if config.trains_whole_language_model else "frozen"
    fate += ", with LoRA" if config.tune.mode == "lora" else ""
    lines = [f"model       {_count(model)} parameters of the language model, {fate}"]
    fate = "trained" if config.trains_encoders else "frozen"
    if config.molecule.use:
        given = config.molecule
        origin = given.weights or "random weights"
        lines.append(f"molecules   {given.kind.upper()} {given.layers} x {given.width} from {origin}, {fate}")
    if config.protein.use:
        lines.append(f"proteins    ESM-2 from {config.protein.weights}, {fate}")
    return lines


def _count(directory: Path) -> str:
    """Parameters in a directory's safetensors files, read from their headers."""
    total = 0
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with open(file, "rb") as handle:
                header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        except (OSError, ValueError, MemoryError):
            raise InputError(f"{file} is not a whole safetensors file; copy it again") from None
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        total += sum(math.prod(shape) for shape in shapes)
    return f"{total:,}" if total else "?"
