"""`python -m data_shards VERB ...`: each verb is one module with a `main(arguments)`."""

from __future__ import annotations

from job.errors import run_command
from job.verbs import dispatch

VERBS = {
    "build": ("data_shards.build:main", "articles -> token shards"),
    "verify": ("data_shards.verify:main", "prove every checksum, offset and count of a shard directory"),
    "inspect": ("data_shards.inspect:main", "show a document's text, tokens and provenance"),
    "stats": ("data_shards.stats:main", "print and plot what was read, dropped and kept"),
    "tokenizer": ("data_shards.tokenizer:main", "train a sentencepiece tokenizer on articles"),
}


def main() -> int | None:
    """Dispatch to the verb."""
    return dispatch("data_shards", VERBS)


if __name__ == "__main__":
    run_command(main)
