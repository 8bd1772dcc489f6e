"""The configuration of `python -m data_shards build`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from job.config import Count

LICENCES = ("cc0", "by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd", "open-unspecified", "none")


@dataclasses.dataclass
class Source:
    """One collection of articles: a `[[sources]]` table of the config."""

    name: str
    """Names its shards and its rows in every report."""
    format: Literal["pubmed", "pmc", "s2orc", "jsonl"]
    """Decides the reader, and which copy of an article wins: pmc before s2orc before pubmed before jsonl."""
    paths: list[str]
    """Files, directories or patterns such as "baseline/pubmed*.xml.gz"."""
    metadata: list[str] = dataclasses.field(default_factory=list)
    """Only for s2orc: the metadata tables (2020: metadata_*.jsonl.gz; today: papers and abstracts)."""


@dataclasses.dataclass
class Selection:
    """Which articles are kept."""

    minimum_characters: Count = dataclasses.field(default_factory=lambda: Count(200))
    """Articles with less text than this, title included, are dropped."""
    licences: list[str] | None = None
    """Keep only these classes (cc0, by, by-sa, by-nd, by-nc, by-nc-sa, by-nc-nd, open-unspecified, none); unset keeps
    all. PubMed states no licence for abstracts: they are "none"."""
    include_retracted: bool = False
    """Keep retracted articles and retraction notices."""


@dataclasses.dataclass
class Sharding:
    """How the token shards are cut."""

    validation_fraction: float = 0.005
    """Of the articles, chosen by a hash of their id: the same ones in every build."""
    block_tokens: Count = dataclasses.field(default_factory=lambda: Count(1_000_000))
    """Tokens in one webdataset sample."""
    shard_tokens: Count = dataclasses.field(default_factory=lambda: Count(64_000_000))
    """About this many tokens in one tar (at four bytes of text a token)."""


@dataclasses.dataclass
class BuildConfig:
    """Articles to token shards."""

    sources: list[Source]
    """The collections; where two hold the same article, the better format's copy is kept."""
    tokenizer: Path
    """The target model's own: a Hugging Face directory or a sentencepiece tokenizer.model."""
    output: Path
    """Directory of the shards. Run again with the same one, a build goes on where it stopped."""
    workers: int = 0
    """Processes; 0 is one for each core that this job may use. Does not change the result."""
    damaged_files: Literal["stop", "keep"] = "stop"
    """What to do about a file that breaks off in the middle: stop and say which, or keep its good records."""
    selection: Selection = dataclasses.field(default_factory=Selection)
    sharding: Sharding = dataclasses.field(default_factory=Sharding)

    def __post_init__(self) -> None:
        """Raises `ValueError` for values that no build can have."""
        if not self.sources:
            raise ValueError("no [[sources]]: a build needs at least one")
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named '{name}'; names must differ")
            if not name or not all(letter.isalnum() or letter in "-_" for letter in name) or name[0] == "-":
                raise ValueError(f"source name '{name}' may only have letters, digits, '-' and '_'")
        for source in self.sources:
            if source.metadata and source.format != "s2orc":
                raise ValueError(f"source '{source.name}': only the s2orc format has metadata files")
        for licence in self.selection.licences or ():
            if licence not in LICENCES:
                raise ValueError(
                    f"selection.licences: unknown class '{licence}'; the classes are {', '.join(LICENCES)}"
                )
        if not 0 <= self.sharding.validation_fraction < 1:
            raise ValueError(f"sharding.validation_fraction is {self.sharding.validation_fraction}; use 0 to below 1")
        if self.sharding.block_tokens < 1 or self.sharding.shard_tokens < 1:
            raise ValueError("sharding.block_tokens and sharding.shard_tokens must be at least 1")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; use 0 for one a core, or a positive number")

    def worker_count(self) -> int:
        """Processes to use on this machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.workers or cores
