"""`python -m slurm VERB ...`: each verb is one module with a `main(arguments)`."""

from __future__ import annotations

from job.errors import run_command
from job.verbs import dispatch

VERBS = {
    "submit": ("slurm.submit:main", "a chain of stages, or one training config -> jobs that wait for each other"),
    "status": ("slurm.status:main", "how far a chain is: jobs, steps, loss, time left, restarts and their reasons"),
    "cancel": ("slurm.cancel:main", "cancel all jobs of a chain"),
    "preflight": ("slurm.preflight:main", "are the nodes of this job fit for training? (under srun)"),
    "after": ("slurm.after:main", "what is to happen now that a training job has ended? (in job scripts)"),
    "ended": ("slurm.ended:main", "does no training job of a run wait or run any more? (in job scripts)"),
}


def main() -> int | None:
    """Dispatch to the verb."""
    return dispatch("slurm", VERBS)


if __name__ == "__main__":
    run_command(main)
