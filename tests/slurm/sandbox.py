"""A real Slurm cluster of a few virtual nodes on this machine: Debian's packages, no systemd, no containers.

Each node is a slurmd in namespaces of its own (host name, processes, mounts), so that cutting its power is one SIGKILL
and nothing survives it. Nodes share the loopback network and all files. What differs from a cluster: there are no
cgroups (nothing is pinned, limited or accounted) and no accounting database.
"""

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
CPUS, GPUS = 8, 2  # of each node, whatever the machine has; no devices are behind the GPUs

_CONFIG = """\
ClusterName=sandbox
SlurmctldHost=ctl(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a job that is queued again starts after cred_expire at the earliest: 120 s by default, 5 at the least
AuthInfo=socket={root}/run/munge.sock,cred_expire=5
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
CompleteWait=0
KillWait={kill_wait}
SlurmdTimeout=15
InactiveLimit=0
MinJobAge=86400
ReturnToService=2
JobRequeue=1
# ports are made of job ids: two sandboxes at once should not meet
FirstJobId={first_job}
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=2:00:00 DefaultTime=30 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=low Nodes=ALL MaxTime=2:00:00 DefaultTime=30 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
"""
# Without cgroups a process whose parent has died is lost sight of, and outlives its job. So the step daemon adopts such
# orphans: PR_SET_CHILD_SUBREAPER (36) by prctl, which is system call 157, or 167 on arm.
_STEP_DAEMON = """\
#!/usr/bin/perl
syscall({prctl}, 36, 1, 0, 0, 0) == 0 or warn "subreaper: $!";
exec {{ "{slurmstepd}" }} "slurmstepd", @ARGV;
"""
# $1: host name, $2: the sandbox's directory
_BOOT = """\
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs shm /dev/shm
cd /
"""
_CONTROLLER = """\
munged --foreground --force --num-threads=2 --key-file="$2/munge.key" --socket="$2/run/munge.sock" \
    --pid-file="$2/run/munged.pid" --log-file="$2/log/munged.log" --seed-file="$2/run/munge.seed" &
until [ -S "$2/run/munge.sock" ]; do sleep 0.05; done
slurmctld -D -i -f "$2/slurm.conf"
"""
_NODE = 'slurmd -D -N "$1" -f "$2/slurm.conf" -d "$2/stepd"'


def why_not():
    """Why no sandbox can be started here; None where it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm of our own needs Linux and root"
    if subprocess.run(["unshare", "--uts", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        return "this machine does not let us make namespaces (unshare)"
    return missing_packages(*PACKAGES)


def missing_packages(*programs):
    """Why programs of Debian's packages are not here; None where they are.

    With BIOMEDGPT_INSTALL_PACKAGES=1 (as in `make test`) what is missing is installed first.
    """
    if "/usr/sbin" not in os.environ["PATH"].split(":"):
        os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [PACKAGES.get(program, program) for program in programs if not shutil.which(program)]
    if not missing:
        return None
    why = f"these packages are not installed: {', '.join(missing)}"
    if os.environ.get("BIOMEDGPT_INSTALL_PACKAGES") != "1":
        return f"{why}; `make test` installs them, as root on Debian and Ubuntu"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return f"{why}, and installing them needs root and apt-get"
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    for command in (["apt-get", "update"], install):
        done = subprocess.run(command, capture_output=True, text=True, env=quiet, stdin=subprocess.DEVNULL)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            return f"{why}, and `{' '.join(command)}` failed: {' '.join(last)}"
    return None


def skip_or_fail(reason):
    """Skip the test for a reason; with BIOMEDGPT_REQUIRE_SLURM=1 (as in CI) fail."""
    if os.environ.get("BIOMEDGPT_REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class Sandbox:
    """A cluster of `nodes` nodes, named node1, node2, ...; all its files lie in `root`."""

    def __init__(self, root: Path, nodes: int = 3, kill_wait: int = 5):
        self.root, self.nodes = root, [f"node{number}" for number in range(1, nodes + 1)]
        self._machines: dict[str, subprocess.Popen] = {}
        for folder in ("run", "log", "state", "spool", "dev"):
            (root / folder).mkdir(parents=True)
        port = _free_ports(nodes + 1)
        lines = [f"127.0.0.1 {name}" for name in ("localhost", "ctl", *self.nodes)]
        (root / "hosts").write_text("\n".join(lines) + "\n")
        described = [
            f"NodeName={name} NodeAddr=127.0.0.1 Port={port + number} CPUs={CPUS} RealMemory=100000 Gres=gpu:{GPUS} "
            "State=UNKNOWN"
            for number, name in enumerate(self.nodes, 1)
        ]
        self.config = root / "slurm.conf"
        self.config.write_text(
            _CONFIG.format(
                root=root,
                port=port,
                nodes="\n".join(described),
                kill_wait=kill_wait,
                first_job=random.SystemRandom().randrange(1, 500_000),
            )
        )
        for number in range(GPUS):
            (root / "dev" / f"gpu{number}").symlink_to("/dev/null")
        (root / "gres.conf").write_text(f"Name=gpu File={root}/dev/gpu[0-{GPUS - 1}]\n")
        (root / "munge.key").write_bytes(os.urandom(128))
        (root / "munge.key").chmod(0o600)
        stepd = root / "stepd"
        prctl = 167 if os.uname().machine == "aarch64" else 157
        stepd.write_text(_STEP_DAEMON.format(prctl=prctl, slurmstepd=shutil.which("slurmstepd")))
        stepd.chmod(0o755)
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))
        } | {"SLURM_CONF": str(self.config)}

    def __enter__(self):
        self._boot("ctl", _CONTROLLER)
        self._wait_until(lambda: (self.root / "run" / "munge.sock").exists(), 30, "munged")
        for name in self.nodes:
            self.start_node(name, wait=False)
        self._wait_until(lambda: all(self.is_up(name) for name in self.nodes), 60, "all nodes")
        return self

    def __exit__(self, *_):
        for name in list(self._machines):
            self.cut(name)

    def call(self, *words, seconds=120, check=True, **options):
        """Run a command (sbatch, squeue, ...) with this cluster as its Slurm; returns what it printed."""
        done = subprocess.run(
            words, capture_output=True, text=True, env=self.environment, timeout=seconds, check=False, **options
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}, {done.stdout}\n{done.stderr}"
        return done.stdout

    def is_up(self, name):
        """Whether jobs may start on a node."""
        state = self.call("sinfo", "--noheader", "--nodes", name, "--partition=main", "--format=%t", check=False)
        return state.strip() in ("idle", "mix", "alloc", "comp", "plnd")

    def start_node(self, name, wait=True):
        """Switch a node on."""
        (self.root / "spool" / name).mkdir(exist_ok=True)
        self._boot(name, _NODE)
        if wait:
            self._wait_until(lambda: self.is_up(name), 30, name)

    def cut(self, name):
        """Cut a node's power: SIGKILL to everything on it."""
        machine = self._machines.pop(name)
        for child in _children(machine.pid):  # its first process: all others die with it, and then `unshare` ends
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, 9)
        try:
            machine.wait(10)
        except subprocess.TimeoutExpired:
            machine.kill()
            machine.wait()

    def inside(self, name, *words):
        """Run a command in a node, where process numbers are the node's own; returns what it printed."""
        [first] = _children(self._machines[name].pid)
        return self.call("nsenter", f"--target={first}", "--uts", "--mount", "--pid", "--", *words, check=False)

    def ranks_on(self, name, program):
        """Process numbers, in a node, of the ranks of `python -m program` that run there."""
        return self.inside(name, "pgrep", "--full", f"^[^ ]*python[^ ]* -m {program}").split()

    def field(self, job, name):
        """A field of `scontrol show job`."""
        text = self.call("scontrol", "--oneliner", "show", "job", str(job))
        return re.search(rf"\b{name}=(\S*)", text)[1]

    def state(self, job):
        """JobState of a job."""
        return self.field(job, "JobState")

    def wait(self, job, seconds, until=("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")):
        """Wait until a job is in one of some states, by default until it has ended; returns the state."""
        self._wait_until(lambda: self.state(job) in until, seconds, lambda: f"job {job}, which is {self.state(job)}")
        return self.state(job)

    def _boot(self, name, script):
        command = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        if shutil.which("setpriv"):
            command = ["setpriv", "--pdeathsig", "KILL", *command]  # nothing outlives the tests
        with open(self.root / "log" / f"{name}.out", "ab") as output:
            self._machines[name] = subprocess.Popen(
                [*command, "bash", "-c", _BOOT + script, "bash", name, str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self.environment,
            )

    def _wait_until(self, condition, seconds, what):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                told = what() if callable(what) else what
                raise AssertionError(f"waited {seconds} s for {told}\n{self._logs()}")
            time.sleep(0.3)

    def _logs(self):
        logs = [*self.root.glob("log/*.out"), self.root / "log" / "slurmctld.log"]
        return "\n".join(f"{log.name}:\n{log.read_text(errors='replace')[-1500:]}" for log in logs if log.exists())


def _children(process):
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in text.split()]


def _free_ports(count):
    """The first of `count` ports in a row on which nothing listens, below those of outgoing connections."""
    while True:
        base = random.SystemRandom().randrange(10_000, 14_900)
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in range(base, base + count):
                sockets.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return base
