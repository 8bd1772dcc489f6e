"""`torchrun ... -m pretrain CONFIG.toml [--section.key value ...]`: train, or continue, one run.

The top level imports nothing heavy: `--help` and `--dry-run` answer at once, without torch.
"""

from __future__ import annotations

import sys

from job.config import parse
from job.errors import InputError, run_command
from job.launch import quick_imports
from pretrain.config import PretrainConfig

DESCRIPTION = """Continue pretraining a model on token shards, over any mesh of devices.

Start it once per device, with torchrun (or srun, one task per GPU); the same command continues a run that stopped.

  torchrun --nproc-per-node 8 -m pretrain configs/llama2-7b.toml
  python -m pretrain configs/llama2-7b.toml --dry-run      what would happen: layout, tokens, epochs, checkpoints
  ... --train.micro_batch 2 --parallel.tensor 4            any key of the file, overridden
"""


def main() -> int | None:
    """Parse the config, then plan or train."""
    words = sys.argv[1:]
    dry_run = "--dry-run" in words
    words = [word for word in words if word != "--dry-run"]
    try:
        config = parse(PretrainConfig, words, "python -m pretrain", DESCRIPTION)
    except InputError as error:
        error.everywhere = True  # every rank reads the same file
        raise
    if dry_run:
        from pretrain.dry_run import describe

        print(describe(config))
        return 0
    with quick_imports():
        from pretrain.train import train
    return train(config)


if __name__ == "__main__":
    run_command(main)
