"""`python -m slurm submit CONFIG.toml`: write an sbatch file per stage, submit them as a chain, say where all will be.

DIRECTORY/slurm/STAGE.sbatch     what was submitted
DIRECTORY/slurm/STAGE-JOB.log    what the job printed, each line with its rank
DIRECTORY/slurm/chain.json       stages and job ids, for `status` and `cancel`
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from job import config as configs
from job.directory import RunDirectory
from job.errors import InputError
from job.files import write_text
from pretrain.config import PretrainConfig
from slurm import chain as chains
from slurm import cluster as clusters
from slurm import jobs, record, scheduler

DESCRIPTION = """Submit a chain of stages, or a training run and the export of its model, to Slurm.

  python -m slurm submit configs/llama2-7b.toml --cluster my-cluster.toml --dry-run     show the jobs, submit nothing
  python -m slurm submit configs/llama2-7b.toml --cluster my-cluster.toml --nodes 8
  python -m slurm submit configs/demo/chain.toml --from pretrain                        what is before it is there
  ... --train.micro_batch 2                                                  any key of a training config, overridden

A training job that reaches its time limit, is preempted, crashes or hangs is queued again and continues; submitted
again, after it ended for good, it continues, too. The cluster is described in a TOML file: see slurm/cluster.toml.
"""


def main(arguments: Sequence[str]) -> int:
    """Read, check, write, submit."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm submit",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.toml", help="a chain, or a pretrain or align config")
    parser.add_argument("--cluster", type=Path, metavar="FILE", help=f"cluster description ({clusters.DEFAULT})")
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of a training run (chains say it themselves)")
    parser.add_argument("--from", dest="first", metavar="STAGE", help="submit this stage and those that wait for it")
    parser.add_argument("--dry-run", action="store_true", help="print jobs and what is amiss, write and submit nothing")
    options, changes = parser.parse_known_args(arguments)
    if options.nodes is not None and options.nodes < 1:
        raise InputError(f"--nodes must be at least 1, not {options.nodes}")
    cluster = clusters.load(options.cluster)
    chain = chains.read(options.config, changes, options.nodes)
    stages = _from(chain, options.first)
    place = jobs.Place(chain.source, chain.directory, Path.cwd(), sys.executable)
    texts = {stage.name: jobs.script(stage, cluster, place) for stage in stages}
    checks: list[Callable[[], None]] = [
        lambda: _check_environment(cluster),
        lambda: _check_outputs(stages),
        lambda: _check_inputs(stages, cluster),
        lambda: _check_cluster(stages, cluster),
    ]
    if options.dry_run:
        for stage in stages:
            waits = f" (after {', '.join(stage.after)})" if stage.after else ""
            print(f"----- {place.script(stage.name)}{waits}\n{texts[stage.name]}", flush=True)
        for check in checks:
            _warn(check)
        return 0
    if not scheduler.available():
        raise InputError("sbatch is not here: run this where jobs are submitted, or see what it would do: --dry-run")
    for check in checks:
        check()
    _submit(chain, stages, texts, place)
    return 0


def _warn(check: Callable[[], None]) -> None:
    """Say what a check finds, and go on."""
    try:
        check()
    except InputError as error:
        print(f"warning: {error}", file=sys.stderr, flush=True)


def _from(chain: chains.Chain, first: str | None) -> list[chains.Stage]:
    """The stages to submit: all, or one and those that wait for it, directly or not."""
    names = [stage.name for stage in chain.stages]
    if first is None:
        return list(chain.stages)
    if first not in names:
        raise InputError(f"--from {first}: {chain.source} has no such stage; it has {', '.join(names)}")
    taken = {first}
    for stage in chain.stages:  # in an order in which each comes after those that it waits for
        if taken.intersection(stage.after):
            taken.add(stage.name)
    return [stage for stage in chain.stages if stage.name in taken]


def _check_environment(cluster: clusters.ClusterConfig) -> None:
    """Raise `InputError` where the Python environment of the jobs is not there."""
    if settings := cluster.environment.virtual_environment:
        file = Path(settings).expanduser() / "bin" / "activate"
        if not file.is_file():
            raise InputError(
                f"the cluster description names environment.virtual_environment {settings}, but {file} does not exist; "
                "make it (`make .venv/.installed` makes .venv), or name another"
            )


def _check_outputs(stages: Sequence[chains.Stage]) -> None:
    """Raise `InputError` where an export would overwrite something."""
    for stage in stages:
        if stage.to is not None and stage.to.exists():
            raise InputError(
                f"stage '{stage.name}' would make {stage.to}, which exists already; remove it, or submit the stages "
                "after it with --from"
            )


def _check_inputs(stages: Sequence[chains.Stage], cluster: clusters.ClusterConfig) -> None:
    """Raise `InputError` where a training run would refuse its layout, model or data.

    Model and data of a stage that waits for others are not looked at: these may make them. In a container paths may be
    others than here: what is wrong with them is a warning then.
    """
    submitted = {stage.name for stage in stages}
    for stage in stages:
        if stage.config.kind == "pretrain":
            _check_layout(stage, cluster)
        if stage.config.kind in chains.TRAINING and not submitted.intersection(stage.after):
            check = functools.partial(_check_run, stage, cluster)
            _warn(check) if cluster.environment.container.image else check()


def _check_layout(stage: chains.Stage, cluster: clusters.ClusterConfig) -> None:
    """Do layout and batch fit the processes of a pretraining stage? That is arithmetic, before there is a model."""
    asked = jobs.request(stage, cluster)
    config = configs.parse(PretrainConfig, [stage.config.config, *stage.config.arguments], "pretrain", "")
    try:
        config.parallel.micro_batches(config.train.global_batch, config.train.micro_batch, asked.nodes * asked.tasks)
    except InputError as error:
        raise _refusal(stage, asked, str(error)) from None


def _check_run(stage: chains.Stage, cluster: clusters.ClusterConfig) -> None:
    """Ask the stage's program, with as many processes as the stage will have. It needs no torch for that."""
    asked = jobs.request(stage, cluster)
    [command] = stage.commands
    done = subprocess.run(
        [sys.executable, *command[1:], "--dry-run"],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"WORLD_SIZE": str(asked.nodes * asked.tasks), "RANK": "0"},
    )
    if done.returncode:
        told = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise _refusal(stage, asked, told[-1].removeprefix("error: "))


def _refusal(stage: chains.Stage, asked: jobs.Request, said: str) -> InputError:
    nodes = f"{asked.nodes} node{'s' * (asked.nodes > 1)}"
    return InputError(f"stage '{stage.name}' ({nodes} x {asked.tasks} process{'es' * (asked.tasks > 1)}): {said}")


def _check_cluster(stages: Sequence[chains.Stage], cluster: clusters.ClusterConfig) -> None:
    """Raise `InputError` where the live cluster, if there is one, has no nodes such as the stages ask for."""
    if not scheduler.available():
        return
    listed = functools.cache(_partitions)
    for stage in stages:
        asked = jobs.request(stage, cluster)
        said = f"the cluster description, for stage '{stage.name}',"
        known = {p.name for p in listed(asked.node.gpu_type)}
        names = asked.node.partition.split(",") if asked.node.partition else []
        if missing := [name for name in names if name not in known]:
            raise InputError(f"{said} names partition '{missing[0]}'; sinfo lists {', '.join(sorted(known)) or 'none'}")
        default = [p.name for p in listed(asked.node.gpu_type) if p.is_default]
        if not (names or default):
            some = f"name one of {', '.join(sorted(known))}" if known else "it lists no nodes that respond at all"
            raise InputError(f"{said} names no partition, and sinfo lists no default; {some}")
        problems = []
        for name in names or default[:1]:  # of several, Slurm takes the first that has room
            nodes = [p for p in listed(asked.node.gpu_type) if p.name == name]
            problems.append(_misfit(asked, nodes, f"partition '{name}'" if names else "the default partition"))
        if all(problems):
            raise InputError(f"{said} asks for {'; and '.join(filter(None, problems))}")


def _partitions(gpu_type: str) -> list[scheduler.Partition]:
    try:
        return scheduler.partitions(gpu_type)
    except InputError as error:
        raise InputError(f"what jobs ask for cannot be compared with the cluster: {error}") from None


def _misfit(asked: jobs.Request, nodes: Sequence[scheduler.Partition], where: str) -> str | None:
    """What a stage asks for that a partition has not; None where it has all."""
    memory = scheduler.megabytes(asked.node.memory)
    fit = [p for p in nodes if p.gpus >= asked.gpus and p.cpus >= asked.node.cpus and p.memory_mb >= memory]
    if not fit:
        wanted = f"{asked.gpus} GPUs, {asked.node.cpus} CPUs and {memory:,.0f} MB of memory"
        most = " or ".join(sorted({f"{p.gpus} GPUs, {p.cpus} CPUs and {p.memory_mb:,} MB" for p in nodes}))
        return f"{wanted}; {where} has {most} a node"
    if (count := sum(p.nodes for p in fit)) < asked.nodes:
        return f"{asked.nodes} nodes; {where} has {count} such nodes that respond"
    longest = max(p.minutes for p in fit)
    if scheduler.minutes(asked.time) > longest:
        return f"a time of {asked.time}; {where} allows {math.floor(longest / 60)}:{longest % 60:02.0f}:00"
    return None


def _submit(chain: chains.Chain, stages: Sequence[chains.Stage], texts: dict[str, str], place: jobs.Place) -> None:
    """Submit stages whose directories nobody else is at work in."""
    runs = [stage.run for stage in stages if stage.config.kind in chains.TRAINING and stage.run is not None]
    with record.submitting([chain.directory, *runs]):
        for directory in dict.fromkeys([chain.directory, *runs]):
            if active := record.active(directory):
                names = ", ".join(f"{entry.name} ({entry.job})" for entry in active)
                raise InputError(f"{directory}: {names} still wait or run; {_command('cancel', directory)}")
        entries = _submit_all(chain, stages, texts, place)
    width = max(len(stage.name) for stage in stages)
    for stage, entry in zip(stages, entries):
        makes = stage.run or stage.to
        print(f"{stage.name:<{width}}  job {entry.job}  log {entry.log}" + (f"  makes {makes}" if makes else ""))
    print(f"\nhow far it is: {_command('status', chain.directory)}")
    print(f"to cancel it:  {_command('cancel', chain.directory)}")


def _submit_all(
    chain: chains.Chain, stages: Sequence[chains.Stage], texts: dict[str, str], place: jobs.Place
) -> list[record.Entry]:
    """Submit all stages, or none; returns what was submitted."""
    ids: dict[str, str] = {}
    entries: list[record.Entry] = []
    earlier: list[record.Entry] = []
    if record.exists(chain.directory):
        others = {stage.name for stage in chain.stages} - {stage.name for stage in stages}
        earlier = [entry for entry in record.read(chain.directory) if entry.name in others]
    try:
        for stage in stages:
            if stage.config.kind in chains.TRAINING and stage.run is not None:
                RunDirectory(stage.run).stop_file.unlink(missing_ok=True)  # it asked an earlier job
            path = place.script(stage.name)
            write_text(path, texts[stage.name])
            condition = "after" if stage.config.kind == "watch" else "afterok"
            with _uninterrupted():  # else a job would be there that nobody knows of
                ids[stage.name] = scheduler.submit(path, [ids[name] for name in stage.after if name in ids], condition)
                log = str(place.log(stage, ids[stage.name]))
                run = str(stage.run) if stage.config.kind in chains.TRAINING else None
                entry = record.Entry(stage.name, stage.config.kind, ids[stage.name], list(stage.after), log, run)
                entries.append(entry)
                # at once: what is submitted can be cancelled
                record.write(chain.directory, chain.source, entries, earlier)
    except (InputError, KeyboardInterrupt) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        raise InputError(f"{reason}; {_withdraw(list(ids.values()), chain.directory)}") from None
    return entries


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the end of this; programs that it starts do not get them at all."""
    numbers, came = (signal.SIGINT, signal.SIGTERM), list[int]()
    handlers = [signal.signal(number, lambda number, _: came.append(number)) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # which those programs inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        for late in came:
            signal.raise_signal(late)


def _withdraw(ids: Sequence[str], directory: Path) -> str:
    """Cancel what was submitted; returns what is left of it, in words."""
    try:
        if ids:
            scheduler.cancel(ids)
    except InputError as error:
        return f"jobs {', '.join(ids)} are left ({error}): {_command('cancel', directory)}"
    return "nothing is left submitted"


def _command(verb: str, directory: Path) -> str:
    """A command line of ours, to be pasted into a shell."""
    return shlex.join(["python", "-m", "slurm", verb, str(directory)])
