"""`python -m align VERB ...`: each verb is one module with a `main(arguments)`."""

from __future__ import annotations

import importlib
import sys

from job.errors import InputError, run_command

VERBS = {
    "build": ("align.build", "published molecule and protein files -> questions with their structures"),
    "inspect": ("align.inspect", "show what a build holds: counts, single questions, the order of training"),
    "train": ("align.train", "align encoders and language model (under torchrun)"),
    "export": ("align.export", "a training checkpoint -> a model directory"),
    "controls": ("align.controls", "test whether a model uses the structures it is given"),
    "ask": ("align.ask", "one question about a molecule or a protein"),
    "chat": ("align.chat", "a conversation about structures"),
}


def main() -> int | None:
    """Dispatch to the verb's module, imported only when asked for."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {verb:<10} {help_line}" for verb, (_, help_line) in VERBS.items()]
        print("usage: python -m align VERB ...   (VERB --help explains one)\n\n" + "\n".join(lines))
        return 0
    if words[0] not in VERBS:
        raise InputError(f"unknown verb '{words[0]}'; the verbs are {', '.join(VERBS)}")
    return importlib.import_module(VERBS[words[0]][0]).main(words[1:])


if __name__ == "__main__":
    run_command(main)
