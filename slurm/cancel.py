"""`python -m slurm cancel RUN_DIR`: cancel what was submitted and has not ended."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from slurm import record, scheduler

DESCRIPTION = """Cancel all jobs of a chain that wait or run.

  python -m slurm cancel runs/llama2-7b

A training run keeps its checkpoints, and continues where it was when it is submitted again. (To end it softly, with a
checkpoint of its last step: touch runs/llama2-7b/stop.)
"""


def main(arguments: Sequence[str]) -> int:
    """Cancel, last stage first, so that none starts meanwhile."""
    parser = argparse.ArgumentParser(
        prog="python -m slurm cancel", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="RUN_DIR", help="directory of a chain or of one of its runs")
    options = parser.parse_args(arguments)
    record.read(options.directory)
    entries = record.active(options.directory)
    for entry in reversed(entries):
        scheduler.cancel([entry.job])
        print(f"cancelled: {entry.name} (job {entry.job})")
    if not entries:
        print("nothing waits or runs")
    return 0
