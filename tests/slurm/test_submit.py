"""`submit` on a real Slurm: chains run in order and end where a stage fails, names are odd, refusals a sentence.

What it decides by itself is tried without one, further down.
"""

import os
import re
import signal
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from job.errors import InputError
from slurm import chain as chains
from slurm import record, scheduler, submit
from slurm.scheduler import JobInfo, Partition
from tests.conftest import REPOSITORY
from tests.slurm.chains import stages


def test_chain_of_commands_under_an_odd_name(slurm, sandbox):
    """Two stages, an array, and one that fails; what comes after it never runs."""
    here = slurm.directory
    (here / "chain.toml").write_text("""
        directory = "runs 50%/chain's"
        [[stages]]
        name = "first"
        kind = "command"
        commands = ["python -c 'print(\\"made by\\", 1)' > first.txt", "cat first.txt *.toml"]
        [[stages]]
        name = "many"
        kind = "command"
        commands = ["printf '%s|'"]
        each = [["a b", "it's"], ["$HOME", "c"]]
        [[stages]]
        name = "fails"
        kind = "command"
        commands = ["cat missing.txt # comment", "touch never.txt"]
        [[stages]]
        name = "never"
        kind = "command"
        commands = ["touch never.txt"]
        [[stages]]
        name = "aside"
        kind = "command"
        after = ["first"]
        commands = ["touch aside.txt"]
    """)
    code, dry = slurm("submit", "chain.toml", "--cluster", "cluster.toml", "--dry-run")
    assert code == 0 and dry.count("#!/bin/bash") == 5 and not (here / "runs 50%").exists()
    code, output = slurm("submit", "chain.toml", "--cluster", "cluster.toml")
    assert code == 0, output
    directory = here / "runs 50%" / "chain's"
    submitted = stages(directory)
    assert all(stage["job"] in output for stage in submitted.values())
    assert (directory / "slurm" / "first.sbatch").read_text() in dry
    for name, state in (
        ("first", "COMPLETED"), ("aside", "COMPLETED"), ("fails", "FAILED"), ("never", "CANCELLED")
    ):  # fmt: skip
        assert sandbox.wait(submitted[name]["job"], 60) == state, name
    assert (here / submitted["first"]["log"]).read_text().startswith("made by 1\n")
    logs = sorted(path.read_text() for path in directory.glob("slurm/many-*.log"))
    assert logs == ["$HOME|c|", "a b|it's|"]
    assert (here / "aside.txt").exists() and not (here / "never.txt").exists()
    code, told = slurm("status", directory, directory=here / "runs 50%")
    assert code == 0 and [told.count(word) for word in ("COMPLETED", "FAILED", "CANCELLED")] == [3, 1, 1], told
    assert slurm("cancel", directory) == (0, "nothing waits or runs\n")


def test_cancel_and_submit_again(slurm, sandbox):
    here = slurm.directory
    (here / "chain.toml").write_text("""
        directory = "runs/chain"
        [[stages]]
        name = "long"
        kind = "command"
        commands = ["sleep 600"]
        [[stages]]
        name = "later"
        kind = "command"
        commands = ["touch later.txt"]
    """)
    words = ("submit", "chain.toml", "--cluster", "cluster.toml")
    assert slurm(*words)[0] == 0
    first = stages(here / "runs" / "chain")
    sandbox.wait(first["long"]["job"], 30, until=("RUNNING",))
    code, told = slurm(*words)
    assert code == 2 and "still wait or run" in told
    code, told = slurm("status", "runs/chain")
    assert code == 0 and "RUNNING" in told and "PENDING (Dependency)" in told
    code, told = slurm("cancel", "runs/chain")
    assert code == 0 and told.count("cancelled") == 2
    assert {sandbox.wait(stage["job"], 30) for stage in first.values()} == {"CANCELLED"}
    assert slurm(*words, "--from", "later")[0] == 0
    again = stages(here / "runs" / "chain")
    assert again["long"] == first["long"] and again["later"]["job"] != first["later"]["job"]
    assert sandbox.wait(again["later"]["job"], 30) == "COMPLETED" and (here / "later.txt").exists()


EVALUATION = '[[stages]]\nname = "b"\nkind = "eval"\narguments = ["model"]\n'


@pytest.mark.parametrize(
    "cluster, chain, words",
    [
        ('[cpu]\npartition = "big"', "", "sinfo lists low, main"),
        ("[cpu]\ncpus = 100", "", "100 CPUs and 0 MB of memory; the default partition has 2 GPUs, 8 CPUs and "),
        ('[cpu]\nmemory = "9T"', "", "9,437,184 MB of memory; the default partition has"),
        ("", f"{EVALUATION}nodes = 9", "asks for 9 nodes; the default partition has 3 such nodes"),
        ('[cpu]\ntime = "3:00:00"', "", "allows 2:00:00"),
        ("[gpu]\ngpus = 4", 'node = "gpu"\ngpus = 5', "the cluster description says 4"),
        ('[cpu]\npartition = "main,big"', "", "names partition 'big'; sinfo lists low, main"),
        ('[cpu]\npartition = "low,main"\ncpus = 100', "", "partition 'low' has 2 GPUs, 8 CPUs and "),
        ("", 'after = ["x"]', "no stage before it"),
    ],
)
def test_what_the_cluster_has_not(cluster, chain, words, slurm):
    here = slurm.directory
    (here / "cluster.toml").write_text(cluster or '[cpu]\ntime = "10"\n')
    stage = '[[stages]]\nname = "a"\nkind = "command"\ncommands = ["true"]\n'
    (here / "chain.toml").write_text(f'directory = "runs"\n{stage}{chain}\n')
    code, told = slurm("submit", "chain.toml", "--cluster", "cluster.toml")
    assert code == 2 and words in told and told.startswith("error: "), told
    assert not (here / "runs").exists()


def test_without_slurm_a_dry_run_still_shows_everything(slurm, tmp_path):
    here = slurm.directory
    stage = '[[stages]]\nname = "a"\nkind = "command"\ncommands = ["true"]\n'
    (here / "chain.toml").write_text(f'directory = "runs"\n{stage}')
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    bare = {"PATH": str(tmp_path / "bin")}
    code, told = slurm("submit", "chain.toml", "--cluster", "cluster.toml", **bare)
    assert code == 2 and "sbatch is not here" in told
    code, told = slurm("submit", "chain.toml", "--cluster", "cluster.toml", "--dry-run", **bare)
    assert code == 0 and "#SBATCH --nodes=1" in told


COMMAND = {"kind": "command", "commands": ["true"]}
CHAIN = {
    "shards": COMMAND,
    "base": COMMAND | {"after": []},
    "train": {"kind": "pretrain", "config": "configs/llama2-7b.toml", "after": ["shards", "base"]},
    "watch": {"kind": "watch"},
    "export": COMMAND,
    "score": COMMAND,
    "aside": COMMAND | {"after": []},
    "last": COMMAND | {"after": ["export", "aside"]},
}


class Scheduler:
    """Takes jobs, and answers as it is told."""

    def __init__(self):
        self.states, self.after = {}, {}
        self.partitions = [Partition("main", True, 3, 8, 100_000, 2, 120.0)]
        self.refuses = None

    def submit(self, script, after, condition="afterok"):
        if self.refuses == script.stem:
            raise InputError("sbatch: no")
        job = str(len(self.states) + 1)
        self.states[job], self.after[job] = "PENDING", list(after)
        return job

    def cancel(self, jobs):
        self.states.update(dict.fromkeys(jobs, "CANCELLED"))

    def info(self, job):
        return JobInfo(job, (self.states[job],)) if job in self.states else None

    def listed(self, gpu_type=""):
        if not self.partitions:
            raise InputError("sinfo --noheader: no controller")
        return self.partitions


@pytest.fixture
def taken(monkeypatch, tmp_path):
    """A Slurm that is none, and a directory to submit from, with configs/, cluster.toml and a chain of eight stages."""
    fake = Scheduler()
    for name in ("submit", "cancel", "info"):
        monkeypatch.setattr(scheduler, name, getattr(fake, name))
    monkeypatch.setattr(scheduler, "available", lambda: True)
    monkeypatch.setattr(scheduler, "partitions", fake.listed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "cluster.toml").write_text('[gpu]\ntasks = 8\ntime = "60"\n[cpu]\ntime = "60"\n')
    chain = {"directory": "runs/chain", "stages": [{"name": name} | stage for name, stage in CHAIN.items()]}
    (tmp_path / "chain.toml").write_text(tomli_w.dumps(chain))
    return fake


def asked(*words):
    return submit.main([*words, "--cluster", "cluster.toml"])


@pytest.mark.parametrize(
    "first, names",
    [
        ("base", "base train watch export score last"),
        ("train", "train watch export score last"),
        ("export", "export score last"),
        ("aside", "aside last"),
        ("last", "last"),
    ],
)
def test_from_takes_those_that_wait_for_it(first, names, taken):
    chain = chains.read(Path("chain.toml"), [], None)
    assert [stage.name for stage in submit._from(chain, first)] == names.split()


def test_submitted_again_from_a_stage_the_record_keeps_the_others(taken, tmp_path):
    assert asked("chain.toml") == 0
    jobs = {entry.name: entry.job for entry in record.read(tmp_path / "runs/chain")}
    assert taken.after[jobs["last"]] == [jobs["export"], jobs["aside"]]
    with pytest.raises(InputError, match=r"runs/chain: shards \(1\), .* still wait or run"):
        asked("chain.toml", "--from", "export")
    taken.states.update(dict.fromkeys(taken.states, "COMPLETED"))
    assert asked("chain.toml", "--from", "export") == 0
    again = {entry.name: entry.job for entry in record.read(tmp_path / "runs/llama2-7b")}
    assert again.keys() == jobs.keys()
    assert {name for name, job in again.items() if job != jobs[name]} == {"export", "score", "last"}
    assert taken.after[again["last"]] == [again["export"]]


def test_a_run_directory_where_a_job_is_at_work_is_not_taken_by_a_chain(taken, tmp_path):
    """It stays the run's own, so that its jobs can be seen and cancelled."""
    run = tmp_path / "runs" / "llama2-7b"
    record.write(
        run, tmp_path / "configs/llama2-7b.toml", [record.Entry("pretrain", "pretrain", "0", [], "", str(run))]
    )
    taken.states["0"] = "RUNNING"
    with pytest.raises(InputError, match=r"runs/llama2-7b: pretrain \(0\) still wait or run; python -m slurm cancel"):
        asked("chain.toml")
    assert len(taken.states) == 1 and [entry.job for entry in record.active(run)] == ["0"]
    taken.states["0"] = "COMPLETED"
    assert asked("chain.toml") == 0 and len(record.read(run)) == len(CHAIN)


def test_refused_halfway_nothing_stays_submitted(taken, tmp_path, monkeypatch):
    taken.refuses = "export"
    with pytest.raises(InputError, match="sbatch: no; nothing is left submitted"):
        asked("chain.toml")
    assert set(taken.states.values()) == {"CANCELLED"} and not record.active(tmp_path / "runs/chain")

    def away(jobs):
        raise InputError("scancel 9: no controller")

    monkeypatch.setattr(scheduler, "cancel", away)
    left = r"sbatch: no; jobs 5, 6, 7, 8 are left \(scancel 9: no controller\): python -m slurm cancel runs/chain"
    with pytest.raises(InputError, match=left):
        asked("chain.toml")
    assert [entry.job for entry in record.active(tmp_path / "runs/chain")] == ["5", "6", "7", "8"]


def test_interrupted_halfway_nothing_stays_submitted(taken, tmp_path, monkeypatch):
    """Ctrl-C while sbatch is at work waits for it: the job's id is not lost."""
    submit_job = taken.submit

    def interrupted(script, after, condition="afterok"):
        if script.stem == "watch":
            os.kill(os.getpid(), signal.SIGINT)
        return submit_job(script, after, condition)

    monkeypatch.setattr(scheduler, "submit", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background of a script ignore it
    try:
        with pytest.raises(InputError, match="interrupted; nothing is left submitted"):
            asked("chain.toml")
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(taken.states.values()) == ["CANCELLED"] * 4
    assert [entry.name for entry in record.read(tmp_path / "runs/chain")] == ["shards", "base", "train", "watch"]


@pytest.mark.parametrize(
    "words, refusal",
    [
        (
            "configs/llama2-7b-64gpu.toml --nodes 5",
            r"\(5 nodes x 8 processes\): train.global_batch 192 is not a multiple",
        ),
        ("configs/llama2-7b.toml --train.micro_batch 5", r"micro_batch 5 x data parallel 4 = 20"),
        ("configs/llama2-70b.toml", r"\(1 node x 8 processes\): parallel: .* = 32 does not divide the 8 processes"),
        ("configs/llama2-7b.toml", "llama-2-7b-chat does not exist; `python -m parallel import"),
        ("configs/biomedgpt-10b.toml", "stage 'align' .* name the Hugging Face directory of a language model"),
        ("chain.toml --from train", "llama-2-7b-chat does not exist"),  # nothing that is submitted makes it
    ],
)
def test_training_that_would_refuse_to_begin(words, refusal, taken, tmp_path, capsys):
    with pytest.raises(InputError, match=refusal):
        asked(*words.split())
    assert not taken.states and not (tmp_path / "runs").exists()
    assert asked(*words.split(), "--dry-run") == 0
    shown = capsys.readouterr()
    assert "#SBATCH --ntasks-per-node=8" in shown.out and re.search(f"warning: .*{refusal}", shown.err)


def test_all_of_biomedgpt_is_one_chain(taken):
    """What one stage makes, those that wait for it read."""
    chain = chains.read(Path("configs/biomedgpt.toml"), [], None)
    made, waits = {}, {}
    for stage in chain.stages:
        waits[stage.name] = set(stage.after).union(*(waits[name] for name in stage.after))
        made[stage.name] = str(stage.to or stage.run or "")
    assert asked("configs/biomedgpt.toml", "--dry-run") == 0
    assert {"shards", "base", "pretrain"} <= waits["did-it-help"] and {"questions", "export"} <= waits["answers"]
    words = {stage.name: stage.config.arguments for stage in chain.stages}
    assert made["export"] in words["did-it-help"] and made["export-aligned"] in words["answers"]
    align = tomllib.loads(Path("configs/biomedgpt-10b.toml").read_text())
    assert align["model"]["language_model"] == made["export"]
    [questions] = [stage.config.commands for stage in chain.stages if stage.name == "questions"]
    assert [line.split()[-1] for line in questions] == [source["path"] for source in align["data"]["sources"]]


def test_layouts_are_checked_where_the_model_is_not_yet_there(taken):
    Path("cluster.toml").write_text("[gpu]\ntasks = 3\n")
    with pytest.raises(InputError, match=r"stage 'train' \(1 node x 3 processes\): parallel: tensor 2"):
        asked("chain.toml")


def test_in_a_container_paths_may_be_others(taken, capsys):
    taken.partitions = [Partition("main", True, 3, 8, 100_000, 2, 3000.0)]
    container = 'container = { image = "bio.sqsh", mounts = ["/somewhere:/models"] }'
    Path("cluster.toml").write_text(f"[gpu]\ntasks = 8\n[environment]\n{container}\n")
    assert asked("configs/llama2-7b.toml") == 0
    assert "warning: stage 'pretrain' (1 node x 8 processes): model.path" in capsys.readouterr().err


def test_a_virtual_environment_that_is_not_there(taken, tmp_path):
    description = tmp_path / "cluster.toml"
    description.write_text(description.read_text() + '[environment]\nvirtual_environment = "my env"\n')
    with pytest.raises(InputError, match="virtual_environment my env, but my env/bin/activate does not exist"):
        asked("chain.toml")
    (tmp_path / "my env" / "bin").mkdir(parents=True)
    (tmp_path / "my env" / "bin" / "activate").touch()
    assert asked("chain.toml") == 0


def test_a_dry_run_without_a_controller(taken, capsys):
    taken.partitions = []
    assert asked("chain.toml", "--dry-run") == 0
    shown = capsys.readouterr()
    assert shown.out.count("#!/bin/bash") == len(CHAIN)
    assert (
        shown.err == "warning: what jobs ask for cannot be compared with the cluster: sinfo --noheader: no controller\n"
    )


def test_several_partitions(taken, tmp_path):
    """Slurm takes whichever has room: one that fits is enough, and nodes of two do not make one job."""
    taken.partitions += [
        Partition("big", False, 9, 64, 900_000, 8, 3000.0),
        Partition("low", False, 6, 8, 9_000, 0, 9.0),
    ]
    stage = 'directory = "runs"\n[[stages]]\nname = "a"\nkind = "command"\ncommands = ["true"]\n'
    (tmp_path / "chain.toml").write_text(stage)
    cluster = '[cpu]\npartition = "{}"\ntime = "{}"\ncpus = 8\n'
    (tmp_path / "cluster.toml").write_text(cluster.format("main,big", "48:00:00"))
    assert asked("chain.toml") == 0
    taken.states.clear()
    (tmp_path / "cluster.toml").write_text(cluster.format("low,main", "48:00:00"))
    both = "a time of 48:00:00; partition 'low' allows 0:09:00; and a time of 48:00:00; partition 'main' allows 2:00:00"
    with pytest.raises(InputError, match=both):
        asked("chain.toml")
