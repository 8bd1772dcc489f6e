"""Jobs that a test may kill: forked ranks (cheap) or a real torchrun, with their output and exit codes kept."""

import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch

from job.errors import run_command
from pretrain.train import train
from tests.conftest import REPOSITORY
from tests.ranks.fork import free_port
from tests.training import metrics_rows

torch.set_num_threads(1)


def _rank(config, prepare, rank, world, port, output, command):
    """What one forked rank does: what`python -m pretrain` does (or `command`), with its output in a file."""
    os.setpgid(0, 0)
    gc.freeze()  # megatron-core collects garbage at each save, which is slow over everything that pytest has imported
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
    )
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    status = 1
    try:
        if prepare is not None:
            prepare(rank)
        run_command(lambda: command(config))
    except SystemExit as leaving:
        status = leaving.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


class ForkedJob:
    """`world` ranks of a training run. `prepare(rank)` runs in each rank before it starts, to plant a fault."""

    def __init__(self, world, config, prepare=None, command=train):
        self.directory = Path(config.directory)
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        name = f"{self.directory.name}-output-{time.monotonic_ns()}"
        self.outputs = [self.directory.parent / f"{name}-{rank}" for rank in range(world)]
        context, port = multiprocessing.get_context("fork"), free_port()
        self.ranks = [
            context.Process(target=_rank, args=(config, prepare, rank, world, port, self.outputs[rank], command))
            for rank in range(world)
        ]

    def __enter__(self):
        for process in self.ranks:
            process.start()
        return self

    def __exit__(self, *_):
        for process in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()

    def signal(self, number, ranks=None):
        """Send a signal to some ranks (None: all)."""
        for rank, process in enumerate(self.ranks):
            if ranks is None or rank in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def wait(self, seconds, ranks=None):
        """Exit codes (minus the signal where one ended it); fails where a rank is still there after `seconds`."""
        deadline = time.monotonic() + seconds
        chosen = [process for rank, process in enumerate(self.ranks) if ranks is None or rank in ranks]
        for process in chosen:
            process.join(max(0.0, deadline - time.monotonic()))
        alive = [rank for rank, process in enumerate(self.ranks) if process in chosen and process.exitcode is None]
        assert not alive, f"ranks {alive} still run after {seconds} s:\n{self.output()}"
        return [process.exitcode for process in chosen]

    def output(self, rank=None):
        """What a rank (None: all ranks) printed."""
        paths = self.outputs if rank is None else [self.outputs[rank]]
        return "".join(path.read_text() for path in paths if path.exists())

    def wait_for_step(self, step, seconds=60):
        """Return once metrics.jsonl shows `step`."""
        deadline = time.monotonic() + seconds
        while last_step(self.directory) < step:
            assert time.monotonic() < deadline, f"no step {step} in {seconds} s:\n{self.output()}"
            assert any(process.is_alive() for process in self.ranks), f"ended before step {step}:\n{self.output()}"
            time.sleep(0.005)


def run_job(world, config, prepare=None, seconds=60, command=train):
    """A job to its end: its exit codes and all its output."""
    with ForkedJob(world, config, prepare, command) as job:
        return job.wait(seconds), job.output()


def complete_job(world, config, prepare=None, command=train):
    """A job that must succeed; returns its output."""
    codes, output = run_job(world, config, prepare, command=command)
    assert codes == [0] * world, output
    return output


def last_step(directory):
    """The last training step that metrics.jsonl has a whole line of; -1 without any."""
    try:
        lines = (Path(directory) / "metrics.jsonl").read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return -1
    return max((int(line.split('"step": ')[1].split(",")[0]) for line in lines if line.endswith("\n")), default=-1)


def samples_in_order(directory):
    """(first, last) sample of every step, the highest attempt's where a step was redone."""
    rows = {}
    for row in metrics_rows(directory):
        if "train/loss" in row and row["attempt"] >= rows.get(row["step"], row)["attempt"]:
            rows[row["step"]] = row
    return [(rows[step]["first_sample"], rows[step]["last_sample"]) for step in sorted(rows)]


def start_torchrun(processes, config_file, *words, output, module=("pretrain",), **environment):
    """A real `torchrun -m pretrain` in a process group of its own; its output goes to the file `output`."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        "--master-port",
        str(free_port()),
        "--shutdown-timeout",
        "3",
        "-m",
        *module,
        str(config_file),
        *words,
    ]
    always = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo"}
    environment = os.environ | always | environment
    with open(output, "ab") as handle:
        return subprocess.Popen(
            command, stdout=handle, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
