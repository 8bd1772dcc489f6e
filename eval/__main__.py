"""`python -m eval MODEL_DIR ... --suite NAME --data DIR --out DIR`: score Hugging Face model directories."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from job.errors import InputError, run_command

DESCRIPTION = """Score Hugging Face model directories; several are shown side by side.

Suites:
  perplexity   loss and perplexity on the validation split of token shards, per source (--data: a shard directory)
"""


def main() -> int | None:
    """Parse, score, print, and write `results.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m eval", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", metavar="MODEL_DIR", nargs="+", type=Path, help="model directories")
    parser.add_argument("--suite", required=True, choices=["perplexity"], help="what to measure")
    parser.add_argument(
        "--data", required=True, type=Path, nargs="+", metavar="DIR", help="where the suite's data lie (several: all)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory of results.json")
    parser.add_argument("--sequence-length", type=int, default=2048, help="tokens of a window (default 2048)")
    options = parser.parse_args(sys.argv[1:])
    for model in options.models:
        if not (model / "config.json").exists():
            raise InputError(f"{model}/config.json does not exist; a Hugging Face model directory is needed")

    from eval.perplexity import perplexity, to_json
    from eval.report import perplexity_table
    from job import manifest
    from job.files import write_json

    scores = {str(model): perplexity(model, options.data, options.sequence_length) for model in options.models}
    perplexity_table(scores)
    results = {
        "suite": options.suite,
        "sequence_length": options.sequence_length,
        "data": [manifest.reference(directory) for directory in options.data],
        "code_version": manifest.code_version(),
        "packages": manifest.package_versions(),
        "results": {model: to_json(values) for model, values in scores.items()},
    }
    write_json(options.out / "results.json", results)
    print(f"results: {options.out / 'results.json'}")
    return 0


if __name__ == "__main__":
    run_command(main)
