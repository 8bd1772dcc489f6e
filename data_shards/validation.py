"""Validation data by source: what training measures between steps and evaluation measures of a finished model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data_shards.order import ValidationWindows
from data_shards.shards import ShardSet, source_of


def validation_sources(corpora: Mapping[str, Path], sequence_length: int) -> dict[str, ValidationWindows]:
    """The validation windows of every source of every corpus that has some, by the name that metrics use.

    `corpora` maps a name to the output of a build. A source keeps the name it has in its build; where two corpora have
    sources of one name, the corpus's comes before it. Raises `InputError` where a directory is no finished build.
    """
    found = []
    for corpus, directory in corpora.items():
        shards = ShardSet(directory, "validation").infos
        for source in sorted({source_of(info.name) for info in shards if info.tokens > 1}):
            found.append((corpus, source, directory))
    names = [source for _, source, _ in found]
    return {
        source if names.count(source) == 1 else f"{corpus}-{source}": ValidationWindows(
            ShardSet(directory, "validation", source), sequence_length
        )
        for corpus, source, directory in found
    }
