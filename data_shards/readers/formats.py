"""The reader of each format, by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_shards.articles import Article, Deletion, RejectHandler
from data_shards.readers import jsonl, pmc, pubmed, s2orc
from data_shards.readers.s2orc_metadata import S2orcMetadata
from job.errors import InputError

SUFFIXES = {
    "pubmed": (".xml", ".xml.gz"),
    "pmc": (".nxml", ".xml", ".nxml.gz", ".xml.gz", ".tar", ".tar.gz", ".tgz"),
    "s2orc": (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".jsonl.zst", ".gz"),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
}


def read(
    kind: str, path: Path, on_reject: RejectHandler, metadata: S2orcMetadata | None = None
) -> Iterator[Article | Deletion]:
    """Stream the records of a file of format `kind` (pubmed, pmc, s2orc or jsonl).

    Records that cannot be read go to `on_reject`. Raises `InputError` for a file that cannot be read, and
    `streams.DamagedFile`, after its last good record, for one that breaks off.
    """
    if kind == "pubmed":
        return pubmed.read(path, on_reject)
    if kind == "pmc":
        return pmc.read(path, on_reject)
    if kind == "s2orc":
        return s2orc.read(path, on_reject, metadata)
    if kind == "jsonl":
        return jsonl.read(path, on_reject)
    raise InputError(f"unknown format '{kind}'; the formats are {', '.join(SUFFIXES)}")
