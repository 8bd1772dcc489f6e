"""`python -m eval MODEL_DIR ... --suite NAME --data DIR --out DIR`, and verbs that work on what it leaves."""

from __future__ import annotations

import sys

from eval import run
from job.errors import run_command
from job.verbs import dispatch

VERBS: dict[str, tuple[str, str]] = {}


def main() -> int | None:
    """A verb, or the run of a suite."""
    words = sys.argv[1:]
    return dispatch("eval", VERBS) if words and words[0] in VERBS else run.main(words, VERBS)


if __name__ == "__main__":
    run_command(main)
