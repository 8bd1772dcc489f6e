"""Second pass of a build: the documents of one shard -> tokens -> webdataset tar and index."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import advance, tokens
from data_shards.extract import read_documents
from data_shards.shards import ShardWriter

_BATCH_CHARACTERS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Segment:
    """Documents of one intermediate file that belong to a shard."""

    path: Path
    frames: list[list[int]]
    wanted: np.ndarray
    """Numbers within the file, ascending, int64."""


def pack(
    outputs: tuple[Path, Path], segments: list[Segment], tokenizer_path: Path, block_tokens: int
) -> dict[str, Any]:
    """Tokenise the documents of `segments` into the shard `outputs[0]` (its index is `outputs[1]`).

    Returns the shard's `ShardInfo` as JSON.
    """
    tokenizer = _tokenizer(tokenizer_path)
    with ShardWriter(outputs[0], tokenizer.dtype, block_tokens) as shard:
        for records, texts in _batches(segments):
            for ids, record in zip(tokenizer.encode_batch(texts), records, strict=True):
                shard.add(ids, record)
            advance.report(sum(map(len, texts)))  # characters: at most the bytes that a task's work is counted in
    return shard.info.to_json()


@functools.cache
def _tokenizer(path: Path) -> tokens.Tokenizer:
    """One per process: its word cache stays warm from shard to shard."""
    return tokens.load(path)


def _batches(segments: list[Segment]) -> Iterator[tuple[list[dict[str, Any]], list[str]]]:
    records: list[dict[str, Any]] = []
    texts: list[str] = []
    characters = 0
    for segment in segments:
        for record, text in read_documents(segment.path, segment.frames, segment.wanted):
            records.append(record)
            texts.append(text)
            characters += len(text)
            if characters >= _BATCH_CHARACTERS:
                yield records, texts
                records, texts, characters = [], [], 0
    if texts:
        yield records, texts
