"""`python -m parallel VERB ...`: each verb is one function, imported only when asked for."""

from __future__ import annotations

import importlib
import sys

from job.errors import InputError, run_command

VERBS = {
    "create": ("parallel.create", "create_main", "random weights for a model config, as a Hugging Face directory"),
    "import": (
        "parallel.convert",
        "import_main",
        "Hugging Face model directory -> checkpoint that training starts from",
    ),
    "export": ("parallel.convert", "export_main", "checkpoint or run directory -> Hugging Face model directory"),
}


def main() -> int | None:
    """Dispatch to the verb."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {verb:<8} {help_line}" for verb, (_, _, help_line) in VERBS.items()]
        print("usage: python -m parallel VERB ...   (VERB --help explains one)\n\n" + "\n".join(lines))
        return 0
    if words[0] not in VERBS:
        raise InputError(f"unknown verb '{words[0]}'; the verbs are {', '.join(VERBS)}")
    module, function, _ = VERBS[words[0]]
    return getattr(importlib.import_module(module), function)(words[1:])


if __name__ == "__main__":
    run_command(main)
