"""`python -m slurm submit CONFIG.toml`: write an sbatch file per stage, submit them as a chain, say where all will be.

DIRECTORY/slurm/STAGE.sbatch     what was submitted
DIRECTORY/slurm/STAGE-JOB.log    what the job printed, each line with its rank
DIRECTORY/slurm/chain.json       stages and job ids, for `status` and `cancel`
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from job.directory import RunDirectory
from job.errors import InputError
from job.files import write_text
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
    parser.add_argument("--from", dest="first", metavar="STAGE", help="submit this stage and those after it")
    parser.add_argument("--dry-run", action="store_true", help="print every job, write and submit nothing")
    options, changes = parser.parse_known_args(arguments)
    if options.nodes is not None and options.nodes < 1:
        raise InputError(f"--nodes must be at least 1, not {options.nodes}")
    cluster = clusters.load(options.cluster)
    chain = chains.read(options.config, changes, options.nodes)
    stages = _from(chain, options.first)
    place = jobs.Place(chain.source, chain.directory, Path.cwd(), sys.executable)
    texts = {stage.name: jobs.script(stage, cluster, place) for stage in stages}
    if scheduler.available():
        _check_cluster(stages, cluster)
    elif not options.dry_run:
        raise InputError("sbatch is not here: run this where jobs are submitted, or see what it would do: --dry-run")
    if options.dry_run:
        for stage in stages:
            waits = f" (after {', '.join(stage.after)})" if stage.after else ""
            print(f"----- {place.script(stage.name)}{waits}\n{texts[stage.name]}")
        return 0
    _check_outputs(stages)
    _submit(chain, stages, texts, place)
    return 0


def _from(chain: chains.Chain, first: str | None) -> list[chains.Stage]:
    """The stages to submit: all, or one and those that come after it."""
    names = [stage.name for stage in chain.stages]
    if first is None:
        return list(chain.stages)
    if first not in names:
        raise InputError(f"--from {first}: {chain.source} has no such stage; it has {', '.join(names)}")
    return list(chain.stages[names.index(first) :])


def _check_outputs(stages: Sequence[chains.Stage]) -> None:
    for stage in stages:
        if stage.to is not None and stage.to.exists():
            raise InputError(
                f"stage '{stage.name}' would make {stage.to}, which exists already; remove it, or submit the stages "
                "after it with --from"
            )
        environment = stage.config.config
        if environment and not Path(environment).is_file():
            raise InputError(f"stage '{stage.name}': {environment} does not exist")


def _check_cluster(stages: Sequence[chains.Stage], cluster: clusters.ClusterConfig) -> None:
    """Raise `InputError` where the live cluster has no nodes such as the stages ask for."""
    for stage in stages:
        asked = jobs.request(stage, cluster)
        listed = scheduler.partitions(asked.node.gpu_type)
        mine = [p for p in listed if (p.name == asked.node.partition if asked.node.partition else p.is_default)]
        where = f"partition '{asked.node.partition}'" if asked.node.partition else "the default partition"
        said = f"the cluster description, for stage '{stage.name}',"
        if not mine:
            raise InputError(f"{said} names {where}; sinfo lists {', '.join(sorted({p.name for p in listed}))}")
        memory = scheduler.megabytes(asked.node.memory)
        fit = [p for p in mine if p.gpus >= asked.gpus and p.cpus >= asked.node.cpus and p.memory_mb >= memory]
        if not fit:
            wanted = f"{asked.gpus} GPUs, {asked.node.cpus} CPUs and {memory:,.0f} MB of memory"
            most = " or ".join(sorted({f"{p.gpus} GPUs, {p.cpus} CPUs and {p.memory_mb:,} MB" for p in mine}))
            raise InputError(f"{said} asks for {wanted}; {where} has {most} a node")
        if (nodes := sum(p.nodes for p in fit)) < asked.nodes:
            raise InputError(f"{said} asks for {asked.nodes} nodes; {where} has {nodes} such nodes that respond")
        longest = max(p.minutes for p in fit)
        if scheduler.minutes(asked.time) > longest:
            limit = f"{math.floor(longest / 60)}:{longest % 60:02.0f}:00"
            raise InputError(f"{said} asks for a time of {asked.time}; {where} allows {limit}")


def _submit(chain: chains.Chain, stages: Sequence[chains.Stage], texts: dict[str, str], place: jobs.Place) -> None:
    if active := record.active(chain.directory):
        names = ", ".join(f"{entry.name} ({entry.job})" for entry in active)
        raise InputError(f"{chain.directory}: {names} still wait or run; python -m slurm cancel {chain.directory}")
    ids: dict[str, str] = {}
    entries = []
    try:
        for stage in stages:
            if stage.config.kind in chains.TRAINING and stage.run is not None:
                RunDirectory(stage.run).stop_file.unlink(missing_ok=True)  # it asked an earlier job
            path = place.script(stage.name)
            write_text(path, texts[stage.name])
            condition = "after" if stage.config.kind == "watch" else "afterok"
            ids[stage.name] = scheduler.submit(path, [ids[name] for name in stage.after if name in ids], condition)
            log = str(place.log(stage)).replace("%j", ids[stage.name]).replace("%A", ids[stage.name])
            run = str(stage.run) if stage.config.kind in chains.TRAINING else None
            entries.append(record.Entry(stage.name, stage.config.kind, ids[stage.name], list(stage.after), log, run))
            record.write(chain.directory, chain.source, entries)  # at once: what is submitted can be cancelled
    except InputError as error:
        if ids:
            scheduler.cancel(list(ids.values()))
        raise InputError(f"{error}; nothing is left submitted") from None
    width = max(len(stage.name) for stage in stages)
    for stage, entry in zip(stages, entries):
        makes = stage.run or stage.to
        print(f"{stage.name:<{width}}  job {entry.job}  log {entry.log}" + (f"  makes {makes}" if makes else ""))
    print(f"\nhow far it is: python -m slurm status {chain.directory}")
    print(f"to cancel it:  python -m slurm cancel {chain.directory}")
