"""Calling Slurm's commands: what they are told besides their words. A script stands in for sbatch."""

from slurm import scheduler


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
