"""The sandbox is a Slurm: jobs run on two nodes, wait for each other, die with their node."""


def test_two_nodes(sandbox, tmp_path):
    script = tmp_path / "job.sbatch"
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2\n"
        f"#SBATCH --output={tmp_path}/out\n"
        "srun bash -c 'echo task $SLURM_PROCID $(hostname)'\n"
    )
    job = sandbox.call("sbatch", "--parsable", str(script)).strip()
    assert sandbox.wait(job, 60) == "COMPLETED"
    assert sorted((tmp_path / "out").read_text().splitlines()) == [
        "task 0 node1",
        "task 1 node1",
        "task 2 node2",
        "task 3 node2",
    ]
