"""The demo recipe as one chain of jobs, from articles to the reports of two evaluations, on two nodes of two ranks."""

import json
import tomllib

import pytest
import tomli_w

from tests.conftest import REPOSITORY
from tests.slurm.chains import logs, stages
from tests.training import metrics_rows

CLUSTER = """
    [gpu]
    cpus = 2
    time = "60"
    [cpu]
    cpus = 2
    time = "60"
    [environment]
    interface = "lo"
    [preflight]
    free_disk_gib = 0.1
    seconds = 180.0   # other tests may run beside this one
    clock_seconds = 30.0
"""
# The recipe itself takes minutes: fewer steps, fewer questions.
SHORTER = {
    "pretrain": [
        "--train.steps", "4", "--train.validate_at_start", "false", "--train.validate_every", "0",
        "--train.global_batch", "4", "--train.micro_batch", "2", "--checkpoint.every_steps", "2",
    ],
    "align": [
        "--train.epochs", "null", "--train.steps", "3", "--train.samples", "0", "--train.validate_at_start", "false",
    ],
    "perplexity": ["--limit", "4"],
    "answers": ["--limit", "4"],
}  # fmt: skip
# Scores the checkpoints that there are when it looks; the first look may come too early, the last one does not.
WATCH = {
    "name": "watch",
    "kind": "watch",
    "run": "pretrain",
    "tasks": 1,
    "every_minutes": 1,
    "arguments": ["--suite", "perplexity", "--data", "runs/demo/shards", "--sequence-length", "64", "--limit", "4"],
}


@pytest.mark.timeout(1200)  # minutes where other programs run beside it
def test_demo_chain(slurm, sandbox):
    here = slurm.directory
    (here / "configs").symlink_to(REPOSITORY / "configs")
    (here / "cluster.toml").write_text(CLUSTER)
    chain = tomllib.loads((REPOSITORY / "configs" / "demo" / "chain.toml").read_text())
    for stage in chain["stages"]:
        stage["arguments"] = stage.get("arguments", []) + SHORTER.get(stage["name"], [])
        if stage["name"] == "answers":
            stage["tasks"] = 1  # on each of its nodes: ranks enough to share the work
    chain["stages"].append(WATCH)
    (here / "chain.toml").write_text(tomli_w.dumps(chain))

    code, told = slurm("submit", "chain.toml", "--cluster", "cluster.toml")
    assert code == 0, told
    directory = here / "runs" / "demo"
    submitted = stages(directory)
    assert len(submitted) == 11
    for name in ("perplexity", "watch", "answers"):
        assert sandbox.wait(submitted[name]["job"], 900) == "COMPLETED", logs(directory)

    for run, step in (("pretrain", 4), ("align", 3)):
        state = json.loads((directory / run / "state.json").read_text())
        assert (state["status"], state["step"], state["job"]) == ("complete", step, submitted[run]["job"])
        assert any("train/loss" in row and row["step"] == step for row in metrics_rows(directory / run))
        checked = json.loads((directory / run / "slurm" / "preflight.json").read_text())
        assert len(checked["nodes"]) == 2 and not checked["bad_nodes"] and checked["all_reduce_gbytes"] > 0
    for report in ("pretraining/perplexity", "structures"):
        assert (directory / "scores" / report / "report.html").stat().st_size > 1000
    scored = {row["step"] for row in metrics_rows(directory / "pretrain") if "eval/" in str(row)}
    assert 4 in scored
    code, told = slurm("status", directory / "align", directory=directory)  # a run knows the chain that it belongs to
    assert code == 0 and told.count("COMPLETED") == 11 and "step 3 of 3" in told, told
