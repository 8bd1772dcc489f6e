"""What is submitted together: a chain of stages from a TOML file, or one training config with the export of its model.

[[stages]]                       each waits for the one before it, or for those that `after` names
name = "shards"
kind = "shards"                  shards, pretrain, align, export, eval, watch, command
config = "configs/corpus.toml"
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from job import config as configs
from job.directory import check_directory
from job.errors import InputError
from slurm.cluster import NO_SECRETS, TIME, secret_in

Kind = Literal["shards", "pretrain", "align", "export", "eval", "watch", "command"]

PROGRAMS: dict[str, list[str]] = {
    "shards": ["data_shards", "build"],
    "pretrain": ["pretrain"],
    "align": ["align", "train"],
    "eval": ["eval"],
    "watch": ["eval", "watch"],
}
TRAINING = ("pretrain", "align")
RESUMABLE = ("shards", "eval")
"""Kinds that do not train, and go on where they stopped."""
PARALLEL = (*TRAINING, "eval")
"""Kinds that run as many processes at once, on several nodes."""
_ON_GPUS = (*PARALLEL, "watch")


@dataclass
class StageConfig:
    """One job."""

    name: str
    """how files, jobs and `after` call it"""
    kind: Kind
    """shards: `data_shards build`; pretrain; align: `align train`; export: a run's model, for transformers; eval;
    watch: score a run's checkpoints as they appear; command: any commands"""
    config: str = ""
    """TOML file of shards, pretrain or align"""
    arguments: list[str] = field(default_factory=list)
    """words after it: changes of the config, or all that `eval` is asked"""
    each: list[list[str]] = field(default_factory=list)
    """an array job: one task for each entry, whose words come after `arguments`"""
    parts: int = 0
    """shards: read the input in this many jobs at once, before the job that builds (0: that one does it all)"""
    commands: list[str] = field(default_factory=list)
    """of kind command: lines of shell, each one program, run one after the other"""
    run: str = ""
    """export, watch: name of the training stage (unset: the last one before it); a watch begins when it begins"""
    to: str = ""
    """export: the model directory to make (unset: `model` in the run directory)"""
    every_minutes: int = 30
    """watch: time between two looks for new checkpoints"""
    after: list[str] | None = None
    """stages that must have succeeded (unset: the one before, watches left out)"""
    node: Literal["auto", "gpu", "cpu"] = "auto"
    """which of the cluster's nodes (auto: gpu for pretrain, align, eval and watch)"""
    nodes: int = 1
    """how many of them; more than one for pretrain, align and eval only"""
    gpus: int | None = None
    """of a node (unset: what the cluster description says)"""
    tasks: int | None = None
    """processes on a node (likewise); only one for other kinds than pretrain, align and eval"""
    time: str = ""
    """longest time (likewise)"""


@dataclass
class ChainConfig:
    """A chain of jobs."""

    directory: str = ""
    """where its scripts and logs go, in the folder `slurm`"""
    stages: list[StageConfig] = field(default_factory=list)
    """the jobs"""

    def __post_init__(self) -> None:
        check_directory(self.directory, "scripts and logs are to go")
        if not self.stages:
            raise ValueError("there are no [[stages]]")
        seen: dict[str, StageConfig] = {}
        for stage in self.stages:
            _check(stage, seen)
            seen[stage.name] = stage
        for stage in self.stages:
            if stage.parts and (taken := _parts_name(stage)) in seen:
                raise ValueError(f"stage '{taken}' needs another name: the parts of stage '{stage.name}' have it")


def _parts_name(stage: StageConfig) -> str:
    """What the array job is called that reads the input of a stage with `parts`."""
    return f"{stage.name}-parts"


def _check(stage: StageConfig, before: dict[str, StageConfig]) -> None:
    """Raise `ValueError` where a stage does not make sense after those before it."""
    where = f"stage '{stage.name}'"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", stage.name):
        raise ValueError(f"{where}: a name has letters, digits, '.', '-' and '_' only")
    if stage.name in before:
        raise ValueError(f"{where} is there twice")
    for other in stage.after or ():
        if other not in before:
            raise ValueError(f"{where} comes after '{other}', which is no stage before it")
    with_config = stage.kind in (*TRAINING, "shards")
    if with_config != bool(stage.config):
        raise ValueError(f"{where}: 'config' is {'missing' if with_config else f'not for kind {stage.kind}'}")
    if (stage.kind == "command") != bool(stage.commands):
        raise ValueError(f"{where}: 'commands' belongs to kind command, and to no other")
    if stage.parts and stage.kind != "shards":
        raise ValueError(f"{where}: 'parts' belongs to kind shards")
    if stage.each and stage.kind not in ("eval", "command"):
        raise ValueError(f"{where}: 'each' belongs to kinds eval and command")
    if stage.kind in ("export", "watch"):
        trained = [name for name, other in before.items() if other.kind in TRAINING]
        if not trained or (stage.run and stage.run not in trained):
            raise ValueError(f"{where} needs a stage of kind pretrain or align before it ({stage.run or 'none is'})")
    if stage.kind == "watch" and (stage.after is not None or stage.every_minutes < 1):
        raise ValueError(f"{where} begins when its training begins, and looks every minute at most")
    if stage.time and not TIME.fullmatch(stage.time):
        raise ValueError(f"{where}: time is '{stage.time}'; write minutes, HH:MM:SS or DAYS-HH:MM:SS")
    if stage.kind not in PARALLEL and (stage.nodes > 1 or stage.tasks not in (None, 1)):
        raise ValueError(
            f"{where}: kind {stage.kind} is one process on one node; 'nodes' and 'tasks' are for {', '.join(PARALLEL)}"
        )
    for key, texts in (
        ("commands", stage.commands),
        ("arguments", [" ".join(stage.arguments)]),
        ("each", [" ".join(words) for words in stage.each]),
    ):
        if secret := next(filter(None, map(secret_in, texts)), None):
            raise ValueError(f"{where}: {secret} in '{key}' {NO_SECRETS}")
    if stage.nodes < 1 or stage.parts < 0 or min(stage.gpus or 0, stage.tasks or 0) < 0:
        raise ValueError(f"{where}: nodes, parts, gpus and tasks cannot be negative, and one node is the least")


@dataclass(frozen=True)
class Stage:
    """A stage with everything worked out that its config leaves open."""

    config: StageConfig
    after: tuple[str, ...]
    commands: tuple[str | tuple[str, ...], ...]
    """words of each program, the first of which is `python`; or a line of shell"""
    run: Path | None = None
    """run directory of a training stage, or of the one that a watch looks at"""
    to: Path | None = None
    """directory that an export makes"""
    array: int = 0
    """jobs of an array; 0: it is none"""

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.config.name

    @property
    def on_gpus(self) -> bool:
        """Whether it takes the cluster's GPU nodes."""
        return self.config.node == "gpu" or (self.config.node == "auto" and self.config.kind in _ON_GPUS)


@dataclass(frozen=True)
class Chain:
    """What is submitted."""

    source: Path
    directory: Path
    stages: tuple[Stage, ...]


def read(path: Path, changes: Sequence[str], nodes: int | None) -> Chain:
    """The chain of a file: its stages, or a training run and the export of its model.

    Args:
        path: a chain, or the config of a pretraining or alignment run.
        changes: `--section.key value` words for a training run's config.
        nodes: of a training run.

    Every config that a stage names is read by the stage's own program, so that a wrong key is found now and not in the
    night. Raises `InputError`.
    """
    kind = _kind(path)
    if kind is None:
        config = configs.parse(ChainConfig, [str(path), *changes], "chain", "Stages that are submitted together.")
        if nodes is not None:
            raise InputError(f"{path} is a chain: say 'nodes' in its stages, not with --nodes")
        return Chain(path, Path(config.directory), _resolve(config.stages))
    if secret := secret_in(" ".join(changes)):
        raise InputError(f"{secret} on the command line {NO_SECRETS}")
    training = StageConfig("pretrain" if kind == "pretrain" else "align", kind, str(path), list(changes))  # type: ignore[arg-type]
    stages = _resolve([replace(training, nodes=nodes or 1), StageConfig("export", "export")])
    assert stages[0].run is not None
    return Chain(path, stages[0].run, stages)


def _kind(path: Path) -> str | None:
    """`pretrain` or `align` for the config of such a run, None for a chain."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    if "stages" in content:
        return None
    model = content.get("model")
    if isinstance(model, dict) and model.keys() & {"path", "language_model"}:
        return "pretrain" if "path" in model else "align"
    raise InputError(
        f"{path} has neither [[stages]] (a chain) nor model.path (pretraining) nor model.language_model (alignment)"
    )


def _resolve(stages: Sequence[StageConfig]) -> tuple[Stage, ...]:
    resolved: dict[str, Stage] = {}
    for number, stage in enumerate(stages):
        before = [other.name for other in stages[:number] if other.kind != "watch"]
        after = before[-1:] if stage.after is None else stage.after
        if stage.kind == "command":
            resolved[stage.name] = Stage(stage, tuple(after), tuple(stage.commands), array=len(stage.each))
            continue
        trained = [other for other in resolved.values() if other.config.kind in TRAINING]
        run = to = None
        if stage.kind in TRAINING:
            run = Path(_resolved_config(stage)["directory"])
            words = [*PROGRAMS[stage.kind], stage.config]
        elif stage.kind == "shards":
            _resolved_config(stage)
            words = [*PROGRAMS[stage.kind], stage.config]
        elif stage.kind == "eval":
            words = list(PROGRAMS[stage.kind])
        else:
            of = resolved[stage.run] if stage.run else trained[-1]
            assert of.run is not None
            if stage.kind == "watch":
                run, after = of.run, [of.name]
                words = [*PROGRAMS["watch"], str(run), "--once"]
            else:
                to = Path(stage.to) if stage.to else of.run / "model"
                words = ["parallel" if of.config.kind == "pretrain" else "align", "export", str(of.run), str(to)]
        command = ("python", "-m", *words, *stage.arguments)
        if stage.parts:
            parts = replace(stage, name=_parts_name(stage))
            line = f'{shlex.join(command)} --part "$SLURM_ARRAY_TASK_ID/{stage.parts}"'
            resolved[parts.name] = Stage(parts, tuple(after), (line,), array=stage.parts)
            after = [parts.name]
        resolved[stage.name] = Stage(stage, tuple(after), (command,), run, to, len(stage.each))
    return tuple(resolved.values())


def _resolved_config(stage: StageConfig) -> dict[str, Any]:
    """The config that a stage's program makes of file and changes, read by that program."""
    words = [sys.executable, "-m", *PROGRAMS[stage.kind], stage.config, *stage.arguments, "--print_config"]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace")
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"stage '{stage.name}': {told[-1].removeprefix('error: ')}")
    return tomllib.loads(done.stdout)
