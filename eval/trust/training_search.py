"""Look for the n-grams of test items in training texts, in several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from data_shards.ngrams import NgramIndex
from eval.trust.training_texts import TrainingTexts, open_texts
from job.progress import ByteProgress

_CHUNK_BYTES = 4_000_000


@dataclass(frozen=True)
class Found:
    """Where each wanted n-gram was first found: int64 [n-grams], -1 where nowhere."""

    directories: np.ndarray
    """number of the training set"""
    texts: np.ndarray
    """number of the text in it"""


def search(
    index: NgramIndex, items: Sequence[str], directories: Sequence[Path], tokenizer: Path | None, workers: int
) -> Found:
    """Look through all training texts, in chunks; what is found first, in their order, counts.

    Args:
        index: of what is looked for.
        items: the texts that it was made of; other processes make it anew.
        directories: outputs of `data_shards build` or `align build`.
        tokenizer: see `eval.trust.training_texts.open_texts`.
        workers: processes.
    """
    training = [open_texts(directory, tokenizer) for directory in directories]
    chunks = [(place, *chunk) for place, texts in enumerate(training) for chunk in _chunks(texts.sizes())]
    found = Found(np.full(index.count, -1, np.int64), np.full(index.count, -1, np.int64))
    with ByteProgress() as progress:
        progress.start("looking for items", sum(size for *_, size in chunks))
        if workers < 2 or len(chunks) < 2:
            _collect(found, chunks, (_search_chunk(index, training, chunk) for chunk in chunks), progress)
        else:
            arguments = (items, index.n, directories, tokenizer)
            # Spawned: a fork of a process with threads may hang.
            with ProcessPoolExecutor(min(workers, len(chunks)), get_context("spawn"), _start_worker, arguments) as pool:
                _collect(found, chunks, pool.map(_search_in_worker, chunks), progress)
    return found


Chunk = tuple[int, int, int, int]
"""Number of the training set, its first text, the one behind the last, and their bytes."""


def _collect(
    found: Found, chunks: Sequence[Chunk], results: Iterator[tuple[np.ndarray, np.ndarray]], progress: ByteProgress
) -> None:
    for (place, _, _, size), (ngrams, texts) in zip(chunks, results, strict=True):
        new = found.directories[ngrams] < 0
        found.directories[ngrams[new]] = place
        found.texts[ngrams[new]] = texts[new]
        progress.advance(size)


def _chunks(sizes: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """First text, the one behind the last, and bytes of consecutive texts that have about `_CHUNK_BYTES`."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK_BYTES, "right")))
        yield start, stop, int(ends[stop - 1]) - before
        start = stop


_worker: tuple[NgramIndex, list[TrainingTexts]]


def _start_worker(items: Sequence[str], n: int, directories: Sequence[Path], tokenizer: Path | None) -> None:
    global _worker
    _worker = NgramIndex(items, n), [open_texts(directory, tokenizer) for directory in directories]


def _search_in_worker(chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
    return _search_chunk(*_worker, chunk)


def _search_chunk(index: NgramIndex, training: list[TrainingTexts], chunk: Chunk) -> tuple[np.ndarray, np.ndarray]:
    """The n-grams that occur in some texts, and the first text of each: int64, int64."""
    place, start, stop, _ = chunk
    seen = np.zeros(index.count, bool)
    ngrams, texts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for number in range(start, stop):
        hits = index.find(training[place].text(number))
        new = hits[~seen[hits]]
        seen[new] = True
        ngrams.append(new)
        texts.append(np.full(len(new), number, np.int64))
    return np.concatenate(ngrams), np.concatenate(texts)
