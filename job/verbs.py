"""`python -m PACKAGE VERB ...`: find the verb's function, import it only when asked for, and check its numbers."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping

from job.errors import InputError
from job.launch import quick_imports


def dispatch(package: str, verbs: Mapping[str, tuple[str, str]]) -> int | None:
    """Run the verb that the command line names; without one, list them.

    Args:
        package: what `python -m` was given.
        verbs: by name, where its function is (`module:function`, called with the words after the verb) and a line of
            help.

    Raises `InputError` for a verb that does not exist.
    """
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, verbs))
        lines = [f"  {verb:<{width}} {help_line}" for verb, (_, help_line) in verbs.items()]
        print(f"usage: python -m {package} VERB ...   (VERB --help explains one)\n\n" + "\n".join(lines))
        return 0
    if words[0] not in verbs:
        raise InputError(f"unknown verb '{words[0]}'; the verbs are {', '.join(verbs)}")
    module, function = verbs[words[0]][0].split(":")
    with quick_imports():
        found = getattr(importlib.import_module(module), function)
    return found(words[1:])


def check_at_least(options: argparse.Namespace, **lowest: float) -> None:
    """Raise `InputError` for the first option, by its name among the parsed ones, that is below what is given here."""
    for name, low in lowest.items():
        if not getattr(options, name) >= low:
            raise InputError(f"--{name.replace('_', '-')} must be at least {low}, not {getattr(options, name)}")
