"""The demo's protein encoder: ESM-2's architecture, tiny and of random weights (the 10B reads Meta's ESM-2 3B).

python configs/demo/protein_encoder.py OUT_DIR
"""

import sys
from pathlib import Path

from job.errors import run_command


def main() -> None:
    """Write it."""
    from align.esm import create_protein_encoder  # once run_command has quietened what it imports

    encoder = create_protein_encoder(layers=2, width=64, heads=4, seed=1)
    encoder.esm.save_pretrained(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: {sum(parameter.numel() for parameter in encoder.parameters()):,} parameters")


if __name__ == "__main__":
    run_command(main)
