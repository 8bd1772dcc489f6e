"""`python -m align VERB ...`: each verb is one module with a `main(arguments)`."""

from __future__ import annotations

from job.errors import run_command
from job.verbs import dispatch

VERBS = {
    "build": ("align.build:main", "published molecule and protein files -> questions with their structures"),
    "inspect": ("align.inspect:main", "show what a build holds: counts, single questions, the order of training"),
    "train": ("align.train:main", "align encoders and language model (under torchrun)"),
    "export": ("align.export:main", "a training checkpoint -> a model directory"),
    "controls": ("align.controls:main", "test whether a model uses the structures it is given"),
    "ask": ("align.ask:main", "one question about a molecule or a protein"),
    "chat": ("align.chat:main", "a conversation about structures"),
}


def main() -> int | None:
    """Dispatch to the verb."""
    return dispatch("align", VERBS)


if __name__ == "__main__":
    run_command(main)
