"""Calling Slurm's commands: what they are told besides their words, and odd answers. Scripts stand in for them."""

import pytest

from job.errors import InputError
from slurm import scheduler


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Have one of Slurm's commands print something."""

    def answer(command, text):
        (tmp_path / "answer").write_text(text)
        (tmp_path / command).write_text(f'#!/bin/sh\ncat "{tmp_path}/answer"\n')
        (tmp_path / command).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return answer


def test_job_ids(answers, tmp_path):
    answers("sbatch", "Welcome to the cluster\n47;east\n")
    assert scheduler.submit(tmp_path / "x.sbatch", []) == "47"
    for text in ("", "Submitted batch job 47\n"):
        answers("sbatch", text)
        with pytest.raises(InputError, match="sbatch has told no job id"):
            scheduler.submit(tmp_path / "x.sbatch", [])


def test_a_path_that_looks_like_fields(answers):
    """scontrol does not quote: the first field of a name is the job's own."""
    line = "JobId=7 JobName=x UserId=me(1) JobState={} Reason=None Restarts=2 NodeList=n1 Command=/JobState=RUNNING x\n"
    answers("scontrol", line.format("FAILED").replace("/JobState", "/a JobState"))
    job = scheduler.info("7")
    assert job == scheduler.JobInfo("7", ("FAILED",), "", "n1", 2) and not job.unfinished
    answers("scontrol", line.format("COMPLETED") + line.format("RUNNING"))  # tasks of an array
    assert scheduler.info("7").states == ("COMPLETED", "RUNNING")


def test_sinfo_of_another_kind(answers):
    answers("sinfo", "main*|3|8|1000|(null)\n")
    with pytest.raises(InputError, match=r"prints 'main.*', which is not that"):
        scheduler.partitions()


def test_a_job_submitted_in_a_job_does_not_take_its_ranks_for_its_own(tmp_path, monkeypatch):
    """In a shell of `srun --pty`, say: sbatch passes its environment on to the job's processes."""
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f'#!/bin/sh\nenv > "{tmp_path}/told"\necho "47;cluster"\n')
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    mine = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    mine |= {"SLURM_JOB_ID", "SLURM_PROCID", "SLURM_RESTART_COUNT", "SBATCH_MEM_BIND"}
    passed = {"SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SBATCH_ACCOUNT", "WANDB_API_KEY", "MASTER_ADDRESS"}
    for name in mine | passed:
        monkeypatch.setenv(name, "1")
    assert scheduler.submit(tmp_path / "x.sbatch", ["1", "2"]) == "47"
    told = {line.split("=")[0] for line in (tmp_path / "told").read_text().splitlines()}
    assert passed <= told and not mine & told
