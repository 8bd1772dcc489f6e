"""`python -m parallel VERB ...`: each verb is one function."""

from __future__ import annotations

from job.errors import run_command
from job.verbs import dispatch

VERBS = {
    "create": ("parallel.create:create_main", "random weights for a model config, as a Hugging Face directory"),
    "import": ("parallel.convert:import_main", "Hugging Face model directory -> checkpoint that training starts from"),
    "export": ("parallel.convert:export_main", "checkpoint or run directory -> Hugging Face model directory"),
}


def main() -> int | None:
    """Dispatch to the verb."""
    return dispatch("parallel", VERBS)


if __name__ == "__main__":
    run_command(main)
