"""The demo recipe as one chain of jobs, from articles to the reports of two evaluations, on two nodes of two ranks."""

import json
import tomllib

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
    "pretrain": ["--train.steps", "4", "--train.validate_every", "0", "--checkpoint.every_steps", "2"],
    "align": [
        "--train.epochs", "null", "--train.steps", "3", "--train.samples", "0", "--train.validate_at_start", "false",
    ],
    "answers": ["--limit", "4"],
}  # fmt: skip


def test_demo_chain(slurm, sandbox):
    here = slurm.directory
    (here / "configs").symlink_to(REPOSITORY / "configs")
    (here / "cluster.toml").write_text(CLUSTER)
    chain = tomllib.loads((REPOSITORY / "configs" / "demo" / "chain.toml").read_text())
    for stage in chain["stages"]:
        stage["arguments"] = stage.get("arguments", []) + SHORTER.get(stage["name"], [])
    (here / "chain.toml").write_text(tomli_w.dumps(chain))

    code, told = slurm("submit", "chain.toml", "--cluster", "cluster.toml")
    assert code == 0, told
    directory = here / "runs" / "demo"
    submitted = stages(directory)
    assert len(submitted) == 10
    for name in ("perplexity", "answers"):
        assert sandbox.wait(submitted[name]["job"], 900) == "COMPLETED", logs(directory)

    for run, step in (("pretrain", 4), ("align", 3)):
        state = json.loads((directory / run / "state.json").read_text())
        assert (state["status"], state["step"], state["job"]) == ("complete", step, submitted[run]["job"])
        assert any("train/loss" in row and row["step"] == step for row in metrics_rows(directory / run))
        checked = json.loads((directory / run / "slurm" / "preflight.json").read_text())
        assert len(checked["nodes"]) == 2 and not checked["bad_nodes"] and checked["all_reduce_gbytes"] > 0
    for report in ("pretraining/perplexity", "structures"):
        assert (directory / "scores" / report / "report.html").stat().st_size > 1000
    code, told = slurm("status", "runs/demo/align")  # a run knows the chain that it belongs to
    assert code == 0 and told.count("COMPLETED") == 10 and "step 3 of 3" in told, told
