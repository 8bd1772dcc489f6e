"""`python -m eval MODEL_DIR ... --suite NAME --data DIR --out DIR`, and verbs that work on what it leaves."""

from __future__ import annotations

import sys

from eval import run
from job.errors import run_command
from job.verbs import dispatch

VERBS: dict[str, tuple[str, str]] = {
    "finetune": ("eval.finetuning.finetune:main", "fine-tune on a task's training rows, then score, over seeds"),
    "watch": ("eval.watch:main", "score the checkpoints of a training run as they appear"),
    "pretraining": ("eval.trust.pretraining:main", "does continued pretraining help? before and after, over seeds"),
    "compare": ("eval.trust.compare:main", "two models on the same items: is the difference noise?"),
    "contamination": ("eval.trust.contamination:main", "which items occur in training data; scores without them"),
    "score": ("eval.structures.score:main", "score predictions in a file, without a model"),
}


def main() -> int | None:
    """A verb, or the run of a suite."""
    words = sys.argv[1:]
    return dispatch("eval", VERBS) if words and words[0] in VERBS else run.main(words, VERBS)


if __name__ == "__main__":
    run_command(main)
