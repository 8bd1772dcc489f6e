"""W&B with a server: the run is found there, and training does not depend on it."""

import contextlib

import psutil
import pytest
import wandb  # noqa: F401  (imported before ranks are forked: it takes a second)

from job.directory import RunDirectory
from job.state import read_state
from pretrain.config import TrackingConfig
from slurm.status import Slurm, training
from tests.faults.jobs import complete_job, run_job
from tests.pretrain.wandb_server import WandbServer
from tests.training import make_config, metrics_rows

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def config(inputs, tmp_path, monkeypatch):
    """A run of two steps that has a key."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    tracking = TrackingConfig(project="articles", mode="auto")
    return make_config(tmp_path / "my-run", inputs, steps=2, tracking=tracking, validate=0)


def test_rows_and_link(config, tmp_path, monkeypatch):
    with WandbServer().listening() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        output = complete_job(1, config)
        identity = (tmp_path / "my-run" / "wandb-id").read_text().strip()
        link = f"{server.url}/somebody/articles/runs/{identity}"
        assert f"W&B: {link}" in output
        written = [row for row in metrics_rows(tmp_path / "my-run") if "train/loss" in row]
        received = [row for row in server.rows if "train/loss" in row]
        assert [row["train/loss"] for row in received] == [row["train/loss"] for row in written] and len(written) == 2
        assert "config.yaml" in server.uploaded
    run = RunDirectory(tmp_path / "my-run")
    assert read_state(run).wandb == link
    assert f"W&B {link}" in training(run, Slurm())


@pytest.mark.parametrize("state, reason", [("gone", "deadline exceeded"), ("knows nobody's key", "401")])
def test_rows_wait_on_the_disk(state, reason, config, tmp_path, monkeypatch):
    """Where the server is out of reach, or knows nobody's key."""
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(WandbServer(refuses=state != "gone").listening())
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        if state == "gone":
            stack.close()
        output = complete_job(1, config)
    assert "W&B does not answer as it should" in output and reason in output and "`wandb sync`" in output, output
    assert "Traceback" not in output and SECRET not in output
    assert read_state(RunDirectory(tmp_path / "my-run")).wandb is None
    assert len(list((tmp_path / "my-run" / "wandb").glob("offline-run-*/*.wandb"))) == 1


def test_a_key_that_cannot_be_one(config, monkeypatch):
    """A mistake, said before hours of training."""
    monkeypatch.setenv("WANDB_API_KEY", "short")
    codes, output = run_job(1, config)
    assert codes == [2] and "W&B refuses this run" in output and "WANDB_API_KEY" in output, output
    assert "Traceback" not in output


def test_its_service_dies(config, tmp_path, monkeypatch):
    """The helper process of W&B's client is killed: training goes on, and says so once."""

    def kill_service(rank):
        from job.wandb_run import WandbRun

        log = WandbRun.log

        def instead(self, values):
            if "train/loss" in values:
                for process in psutil.Process().children(recursive=True):
                    if "wandb-core" in process.name():
                        process.kill()
                        process.wait()
            log(self, values)

        WandbRun.log = instead

    with WandbServer().listening() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        output = complete_job(1, config, kill_service)
    assert len([row for row in metrics_rows(tmp_path / "my-run") if "train/loss" in row]) == 2
    assert output.count("W&B takes no more rows") == 1, output
