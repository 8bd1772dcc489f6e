"""`pretrain --dry-run`: what a config would do, worked out from manifests and sizes alone, without torch."""

from __future__ import annotations

import os
from pathlib import Path

from job.config import dump
from job.directory import RunDirectory
from job.errors import InputError
from job.schedule import warm_up_warning
from parallel.checkpoint_files import read_manifest
from pretrain.config import PretrainConfig
from pretrain.inputs import Inputs, check_continuation, open_inputs


def describe(config: PretrainConfig) -> str:
    """The resolved config, then layout, tokens, epochs per source, checkpoints to be, and where the run would go on.

    The number of processes comes from WORLD_SIZE; without it, one replica of the model is assumed. Raises `InputError`
    for whatever would stop the run itself.
    """
    layout, train, data = config.parallel, config.train, config.data
    replica = layout.tensor * layout.pipeline * layout.context
    world = int(os.environ.get("WORLD_SIZE", replica))
    inputs = open_inputs(config, world)
    shape, order, steps = inputs.shape, inputs.order, inputs.steps
    tokens = order.tokens()
    epochs = order.epochs(steps * train.global_batch)
    run = RunDirectory(Path(config.directory))
    lines = [
        dump(config),
        f"model       {shape.family}, {shape.parameters:,} parameters, {shape.layers} layers in stages of "
        f"{layout.stages(shape.layers)}",
        f"layout      {layout.describe(world)} on {world} processes",
        f"step        {train.global_batch} x {data.sequence_length} = {config.tokens_per_step:,} tokens, "
        f"{inputs.micro_batches} micro-batches of {train.micro_batch} on each data-parallel rank",
        f"run         {steps:,} steps, {steps * config.tokens_per_step:,} tokens, "
        f"{steps * config.tokens_per_step * shape.flops_per_token(data.sequence_length):.3g} model FLOPs",
        *(
            f"source      {name}: {tokens[name]:,} tokens, weight {order.weights[name]:.3f}, {epochs[name]:.2f} epochs"
            + (", loss by its masks" if name in order.masked else "")
            for name in order.names
        ),
        f"checkpoints {_checkpoints(config, run, steps)}",
        f"directory   {run.path}: {_state(config, inputs, run)}",
    ]
    if warning := warm_up_warning(steps, config.schedule):
        lines.append(f"warning     {warning}")
    return "\n".join(lines)


def _checkpoints(config: PretrainConfig, run: RunDirectory, steps: int) -> str:
    every, keep = config.checkpoint.every_steps, config.checkpoint.keep
    planned = [*range(every, steps, every), steps] if every else [steps]
    shown = ", ".join(run.checkpoint(step).name for step in planned[:3])
    more = f", ... {run.checkpoint(planned[-1]).name}" if len(planned) > 3 else ""
    kept = f"the newest {keep} kept" if keep else "all kept"
    minutes = f", and one every {config.checkpoint.every_minutes:g} minutes" if config.checkpoint.every_minutes else ""
    return f"{len(planned)} by step ({shown}{more}){minutes}; {kept}"


def _state(config: PretrainConfig, inputs: Inputs, run: RunDirectory) -> str:
    """Where the run would go on. The checksums of tensors are left to the run itself: they would take minutes."""
    damaged: list[str] = []
    for path in run.checkpoint_directories():
        try:
            body = read_manifest(path)
        except InputError as error:
            damaged.append(str(error))
            continue
        check_continuation(path, body, config, inputs)
        done = f"step {body['step']:,} of {inputs.steps:,}"
        state = f"complete, {done}" if body["step"] >= inputs.steps else f"would continue from {path.name}, {done}"
        return f"{state}; passes over what is damaged ({'; '.join(damaged)})" if damaged else state
    if damaged or run.latest.exists():
        why = damaged[0] if damaged else f"{run.latest} names one, but there is none"
        raise InputError(
            f"no checkpoint in {run.checkpoints} is whole ({why}); restore one from a copy, or start again in a new "
            "run directory"
        )
    return "would start"
