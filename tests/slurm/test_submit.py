"""`submit` on a real Slurm: chains run in order and end where a stage fails, names are odd, refusals a sentence."""

import sys

import pytest

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
        commands = ["cat missing.txt", "touch never.txt"]
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
    [later] = stages(here / "runs" / "chain").values()
    assert sandbox.wait(later["job"], 30) == "COMPLETED" and (here / "later.txt").exists()


@pytest.mark.parametrize(
    "cluster, chain, words",
    [
        ('[cpu]\npartition = "big"', "", "sinfo lists low, main"),
        ("[cpu]\ncpus = 100", "", "100 CPUs and 0 MB of memory; the default partition has 2 GPUs, 8 CPUs and "),
        ('[cpu]\nmemory = "9T"', "", "9,437,184 MB of memory; the default partition has"),
        ("", "nodes = 9", "asks for 9 nodes; the default partition has 3 such nodes"),
        ('[cpu]\ntime = "3:00:00"', "", "allows 2:00:00"),
        ("[gpu]\ngpus = 4", 'node = "gpu"\ngpus = 5', "the cluster description says 4"),
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
