"""`python -m data_shards VERB ...`: each verb is one module with a `main(arguments)`."""

from __future__ import annotations

import importlib
import sys

from job.errors import InputError, run_command

VERBS = {
    "build": ("data_shards.build", "articles -> token shards"),
    "verify": ("data_shards.verify", "prove every checksum, offset and count of a shard directory"),
    "inspect": ("data_shards.inspect", "show a document's text, tokens and provenance"),
    "stats": ("data_shards.stats", "print and plot what was read, dropped and kept"),
    "tokenizer": ("data_shards.tokenizer", "train a sentencepiece tokenizer on articles"),
}


def main() -> int | None:
    """Dispatch to the verb's module, imported only when asked for."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {verb:<10} {help_line}" for verb, (_, help_line) in VERBS.items()]
        print("usage: python -m data_shards VERB ...   (VERB --help explains one)\n\n" + "\n".join(lines))
        return 0
    if words[0] not in VERBS:
        raise InputError(f"unknown verb '{words[0]}'; the verbs are {', '.join(VERBS)}")
    return importlib.import_module(VERBS[words[0]][0]).main(words[1:])


if __name__ == "__main__":
    run_command(main)
