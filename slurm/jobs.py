"""A stage and a cluster become the text of an sbatch file. Pure: nothing is read, run or written here.

The text is meant to be read, and to be submitted by hand as well. Paths in it are as the user wrote them, relative to
the directory that `submit` ran in.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from job.errors import InputError
from slurm.chain import PARALLEL, RESUMABLE, TRAINING, Stage
from slurm.cluster import ClusterConfig, ContainerConfig, NodeConfig, PreflightConfig, RestartConfig
from slurm.scheduler import megabytes, minutes

_SECONDS_TO_REQUEUE = 60  # Slurm's clock of time limits ticks once in half a minute
_JOB = '"$SLURM_JOB_ID"'
_TASK = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'  # by SLURM_JOB_ID, the last of an array stands for all of them
_QUEUE_AGAIN = """\
queue_again() {
    trap '' TERM # which the batch script gets when its job is queued again
    local give_up=$((SECONDS + 600))
    until scontrol requeue %s; do # the controller may be away for minutes
        if [ "$SECONDS" -ge "$give_up" ]; then return 1; fi
        sleep 10
    done
}
"""


_SETUP_FAILED = (
    '[ "${#BASH_SOURCE[@]}" -gt 1 ] || '
    '{ echo "slurm: the environment cannot be set up: line $LINENO of the job script fails" >&2; exit 1; }'
)


@dataclass(frozen=True)
class Place:
    """Where a chain was submitted."""

    source: Path
    """the config that was submitted"""
    directory: Path
    """of scripts and logs: `directory/slurm`"""
    working_directory: Path
    """of `submit`, and of all its jobs"""
    python: str
    """the Python that runs in jobs without container and virtual environment"""

    def script(self, name: str) -> Path:
        """The sbatch file of a stage."""
        return self.directory / "slurm" / f"{name}.sbatch"

    def log(self, stage: Stage, job: str) -> Path:
        """Where the stage prints as job number `job`; %a stands for the number in an array."""
        return self.directory / "slurm" / f"{stage.name}-{job}{'-%a' if stage.array else ''}.log"


@dataclass(frozen=True)
class Request:
    """What a job asks Slurm for."""

    node: NodeConfig
    nodes: int
    tasks: int
    """processes on a node"""
    gpus: int
    """of a node"""
    time: str


def request(stage: Stage, cluster: ClusterConfig) -> Request:
    """What a stage asks for on a cluster.

    Raises `InputError` where it has more GPUs than its nodes, or no time to train before it is to save and end.
    """
    config, node = stage.config, cluster.gpu if stage.on_gpus else cluster.cpu
    parallel = config.kind in PARALLEL
    gpus = node.gpus if config.gpus is None else config.gpus
    if gpus > node.gpus:
        raise InputError(
            f"stage '{stage.name}' asks for {gpus} GPUs of a node, but the cluster description says {node.gpus}"
        )
    if not parallel:
        gpus = min(gpus, 1)
    tasks = config.tasks if config.tasks is not None else node.tasks
    tasks = (tasks or gpus or 1) if parallel else 1
    limit, signal = config.time or node.time, cluster.restart.signal_seconds
    if config.kind in TRAINING and 0 < minutes(limit) * 60 < 2 * signal:
        raise InputError(
            f"stage '{stage.name}' has a time of {limit}, at the end of which it gets {signal} s to save: that leaves "
            "less than half of it for training; give it more time, or lower restart.signal_seconds in the cluster "
            "description"
        )
    return Request(node, config.nodes, tasks, gpus, limit)


def script(stage: Stage, cluster: ClusterConfig, place: Place) -> str:
    """The sbatch file of a stage. Raises `InputError` for a path that no #SBATCH line can hold."""
    asked = request(stage, cluster)
    training = stage.config.kind in TRAINING
    body = _training(stage, cluster, place, asked) if training else _programs(stage, cluster, place, asked)
    if stage.config.kind == "watch":
        body = _watch(stage, cluster, place, asked, body)
    sections = [
        [
            "#!/bin/bash",
            f"# Stage '{stage.name}' of {_quoted(str(place.directory))}.",
            f"# Written by: python -m slurm submit {_quoted(str(place.source))}",
            f"# By itself:  sbatch {_quoted(str(place.script(stage.name)))}",
            *(f"#SBATCH {option}" for option in _options(stage, cluster, place, asked)),
        ],
        _environment(stage, cluster),
        body,
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _options(stage: Stage, cluster: ClusterConfig, place: Place, asked: Request) -> list[str]:
    node = asked.node
    # letters that are part of a word in what Slurm prints
    options = ["--job-name=" + re.sub(r"[^\w.+-]", "_", f"{place.directory.name}-{stage.name}")]
    if node.partition:
        options.append(f"--partition={_quoted(node.partition)}")
    if cluster.account:
        options.append(f"--account={_quoted(cluster.account)}")
    if cluster.qos:
        options.append(f"--qos={_quoted(cluster.qos)}")
    options += [f"--nodes={asked.nodes}", f"--ntasks-per-node={asked.tasks}"]
    if asked.gpus:
        options.append(f"--gpus-per-node={f'{node.gpu_type}:' if node.gpu_type else ''}{asked.gpus}")
    if cores := _cores_of_task(asked):
        options.append(f"--cpus-per-task={cores}")
    if memory := _memory(asked):
        options.append(f"--mem={memory}")
    options.append(f"--time={asked.time}")
    if stage.config.kind in TRAINING:
        options.append(f"--signal=USR1@{cluster.restart.signal_seconds}")
    if _goes_on(stage, asked):
        options.append(f"--signal=B:USR1@{_SECONDS_TO_REQUEUE}")
    if stage.array:
        options.append(f"--array=0-{stage.array - 1}")
    options += ["--requeue", "--open-mode=append"]
    options.append(f"--chdir={_quoted(str(place.working_directory))}")
    pattern = place.log(stage, "%A" if stage.array else "%j")
    options.append(f"--output={_quoted(str(pattern.parent).replace('%', '%%') + '/' + pattern.name)}")
    return options + list(node.directives)


def _share(asked: Request) -> float:
    """The part of a node that a job takes: that of its GPUs."""
    return asked.gpus / asked.node.gpus if asked.gpus and asked.node.gpus else 1.0


def _cores_of_task(asked: Request) -> int:
    """CPU cores of one process."""
    return max(1, int(asked.node.cpus * _share(asked)) // asked.tasks) if asked.node.cpus else 0


def _memory(asked: Request) -> str:
    """Memory of a node; empty: what Slurm gives by itself."""
    node = asked.node
    if node.memory == "0" and asked.gpus < node.gpus:  # a part of all of it is no number
        return ""
    if not node.memory or _share(asked) == 1:
        return node.memory
    return f"{max(1, int(megabytes(node.memory) * _share(asked)))}M"


def _environment(stage: Stage, cluster: ClusterConfig) -> list[str]:
    settings = cluster.environment
    lines = list(settings.setup)
    if settings.modules:
        lines.append(f"module load {shlex.join(settings.modules)}")
    if settings.virtual_environment:
        lines.append(f"source {_path(settings.virtual_environment)}/bin/activate")
    if lines:
        lines = [
            "# The first line that fails ends the job; what a sourced file goes on after does not count.",
            f"trap '{_SETUP_FAILED}' ERR",
            *lines,
            "trap - ERR",
        ]
    # srun passes all of this on, even where sbatch was told --export=NONE
    variables = {"SLURM_EXPORT_ENV": "ALL", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    variables["TOKENIZERS_PARALLELISM"] = "false"
    if stage.on_gpus:
        variables |= {"NCCL_DEBUG": "WARN", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    if stage.config.kind == "pretrain":
        # kernels start in the order they were launched in: tensor-parallel communication overlaps with computation
        variables["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"
    if settings.interface:
        variables |= dict.fromkeys(("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"), settings.interface)
    if settings.scratch:
        lines += [f"export TMPDIR={_expanded(settings.scratch)}", 'export TRITON_CACHE_DIR="$TMPDIR/triton-cache"']
    variables |= settings.variables
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return [*lines, "set -uo pipefail"]


def _programs(stage: Stage, cluster: ClusterConfig, place: Place, asked: Request) -> list[str]:
    """Run the stage's programs one after the other; the first that fails ends the job."""
    launch = _launcher(cluster, place, asked)
    resumable = _goes_on(stage, asked)
    lines = _again_at_the_limit(stage, cluster) if resumable else []
    # A shell hears a signal while it waits, but not while a program runs in its foreground.
    wait = " &\nwait $!" if resumable else ""
    for number, command in enumerate(stage.commands):
        words = command if isinstance(command, str) else shlex.join(command)
        if words.split(" ")[0] == "python":
            words = _python(cluster, place) + words.removeprefix("python")
        last = number == len(stage.commands) - 1
        if stage.config.each and last:
            lines += ["case $SLURM_ARRAY_TASK_ID in"]
            lines += [f"    {index}) set -- {shlex.join(more)} ;;" for index, more in enumerate(stage.config.each)]
            lines += ["esac"]
            words += ' "$@"'
        line = f"{launch}{words}{wait}"
        if not last:
            line = f"{{ {line}\n}} || exit" if "#" in words else f"{line} || exit"  # it may end with a comment
        lines.append(line)
    return lines


def _goes_on(stage: Stage, asked: Request) -> bool:
    """Whether the job is queued again at its time limit: it is resumable, and the limit leaves it time to do much."""
    return stage.config.kind in RESUMABLE and minutes(asked.time) * 60 > 10 * _SECONDS_TO_REQUEUE


def _again_at_the_limit(stage: Stage, cluster: ClusterConfig) -> list[str]:
    """Queue the job again when its time is nearly over."""
    return [
        _QUEUE_AGAIN % (_TASK if stage.array else _JOB),
        "# When its time is nearly over, the job is queued again: its program goes on where it stopped.",
        "again() {",
        '    echo "slurm: the time limit is near: the job is queued again" >&2',
        "    queue_again",
        "    exit",
        "}",
        "trap '' USR1",
        f'if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {cluster.restart.time_limits} ]; then trap again USR1; fi',
    ]


def _watch(stage: Stage, cluster: ClusterConfig, place: Place, asked: Request, programs: list[str]) -> list[str]:
    """Score, then queue the job again, to begin after a while, until training has ended."""
    ended = f"{_alone(cluster, place, asked)}{_python(cluster, place)} -m slurm ended"
    return [
        _QUEUE_AGAIN % _JOB,
        f"run={shlex.quote(str(stage.run))}",
        "# Has training ended? Asked before scoring, so that the last checkpoint is not missed.",
        "ended=0",
        'if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] &&',
        f'    {ended} "$run"; then',
        "    ended=1",
        "fi",
        *programs,
        "status=$?",
        'if [ "$ended" -eq 0 ]; then',
        "    queue_again || exit 1",
        f'    scontrol update JobId="$SLURM_JOB_ID" StartTime=now+{stage.config.every_minutes}minutes',
        "fi",
        'exit "$status"',
    ]


def _training(stage: Stage, cluster: ClusterConfig, place: Place, asked: Request) -> list[str]:
    """Preflight, training, and what is to happen next: `python -m slurm after` decides, from how the run ended."""
    assert stage.run is not None
    [command] = stage.commands
    assert not isinstance(command, str)
    python = _python(cluster, place)
    launch = _launcher(cluster, place, asked)
    lines = [
        _QUEUE_AGAIN % _JOB,
        f"run={shlex.quote(str(stage.run))}",
        "started=$(date +%s)",
        "status=0",
        "# where a rank says what mistake has ended it",
        'export BIOMEDGPT_MISTAKE="$run/.mistake-$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"',
    ]
    train = f"{launch}{python} {shlex.join(command[1:])} || status=$?"
    if cluster.preflight.use:
        options = _changed(cluster.preflight, PreflightConfig(), ("use",))
        lines += [
            "",
            "# Are all nodes fit? Training starts only where they are.",
            f'{launch}{python} -m slurm preflight "$run"{options} || status=$?',
            'if [ "$status" -eq 0 ]; then',
            *("    " + line for line in train.split("\n")),
            "fi",
        ]
    else:
        lines += ["", train]
    after = f'{_alone(cluster, place, asked)}{python} -m slurm after "$run" --exit-code "$status" --started "$started"'
    limits = _changed(cluster.restart, RestartConfig(), ("signal_seconds", "time_limits"))
    return [
        *lines,
        "",
        "# How did it end? The run directory says; a job that was cancelled does not come here.",
        "decision=$(",
        f"    {after}{limits}",
        ") || decision=stop",
        "case $decision in",
        "    done) exit 0 ;;",
        "    requeue*)",
        "        queue_again || exit 1",
        "        exclude=${decision#requeue}",
        '        if [ -n "$exclude" ]; then',
        '            before=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %x)',
        '            if ! scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="${before:+$before,}${exclude# }"; then',
        '                echo "slurm: Slurm does not leave out${exclude}: the job is cancelled" >&2',
        '                scancel "$SLURM_JOB_ID"',
        "            fi",
        "        fi",
        "        exit 0",
        "        ;;",
        "esac",
        'exit "$((status == 0 ? 1 : status))"',
    ]


def _launcher(cluster: ClusterConfig, place: Place, asked: Request, alone: bool = False) -> str:
    """`srun ...` in front of a program: one process per GPU, all of which end when one fails; in the container."""
    words = ["srun", "--kill-on-bad-exit=1"]
    if asked.nodes * asked.tasks > 1:
        words.append("--label")
    if alone:
        words = ["srun", "--nodes=1", "--ntasks=1"]
    elif cores := _cores_of_task(asked):
        words.append(f"--cpus-per-task={cores}")  # since Slurm 22.05 a step does not take it from the job
    container = cluster.environment.container
    if container.image and container.tool == "pyxis":
        here = str(place.working_directory)
        mounts = ",".join([f"{here}:{here}", *(m if ":" in m else f"{m}:{m}" for m in container.mounts)])
        words += [f"--container-image={container.image}", f"--container-mounts={mounts}", f"--container-workdir={here}"]
    inside = _inside(container) if container.tool == "apptainer" else ""
    return shlex.join(words) + (" \\\n    " if len(shlex.join(words)) > 60 or inside else " ") + inside


def _alone(cluster: ClusterConfig, place: Place, asked: Request) -> str:
    """What runs one of our own programs by itself: nothing, or the container."""
    container = cluster.environment.container
    if container.image and container.tool == "pyxis":
        return _launcher(cluster, place, asked, alone=True)
    return _inside(container)


def _inside(container: ContainerConfig) -> str:
    """What runs a program in an apptainer container."""
    if not container.image:
        return ""
    binds = [word for mount in container.mounts for word in ("--bind", mount)]
    return shlex.join(["apptainer", "exec", "--nv", *binds, container.image]) + " "


def _python(cluster: ClusterConfig, place: Place) -> str:
    settings = cluster.environment
    inside = settings.virtual_environment or settings.container.image
    return "python" if inside else shlex.quote(place.python)


def _changed(settings: object, defaults: object, without: Sequence[str]) -> str:
    """Options for those settings that are not as a verb has them by itself."""
    words = []
    for name, default in vars(defaults).items():
        value = getattr(settings, name)
        if name not in without and value != default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return "".join(f" {word}" for word in words)


def _quoted(value: str) -> str:
    """A value in an #SBATCH line, where Slurm understands quotes as a shell does, but a backslash is the end of it."""
    if any(ord(letter) < 32 for letter in value) or "\\" in value:
        raise InputError(
            f"{value!r} has a control character or a backslash in it, which no #SBATCH line can hold; rename it"
        )
    return shlex.quote(value)


def _expanded(path: str) -> str:
    """A path as a word of shell in which variables such as `$USER` and `${SLURM_JOB_ID}` stand for their values."""
    escaped = re.sub(r'(["\\`]|\$(?![A-Za-z_]|\{[A-Za-z_]\w*\}))', r"\\\1", path)
    return f'"{escaped}"' if "$" in path else shlex.quote(path)


def _path(path: str) -> str:
    """A path as a word of shell; a leading ~/ is the home directory."""
    if path.startswith("~/"):
        return "~/" + shlex.quote(path[2:])
    return shlex.quote(path)
