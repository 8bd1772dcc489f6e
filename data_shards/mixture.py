"""What training reads: one or several corpora, mixed by weight, as a pure function of the sample number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_shards.deficit import LargestDeficit, check_weights
from data_shards.order import TrainingWindows, fingerprint
from data_shards.shards import ShardSet, TokenizerInfo
from job.errors import InputError


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus of the mixture."""

    name: str
    """How metrics call it."""
    directory: Path
    """The output of `data_shards build`."""
    weight: float | None = None
    """Share of the samples, relative to the others'. None for all sources: in proportion to their tokens."""


class Sample(NamedTuple):
    """One training sample."""

    tokens: np.ndarray
    """int64 [sequence_length + 1]; inputs are all but the last, targets all but the first."""
    source: str
    """Name of the corpus."""
    number: int
    """Its number among the samples of that corpus."""
    mask: np.ndarray | None = None
    """bool [sequence_length]: the targets whose loss counts; None where the corpus has no loss masks: all do."""


class TrainingOrder:
    """Sample n of a run, for every n >= 0: a pure function of (shard sets, weights, seed, sequence length, n).

    Args:
        sources: the corpora; names must differ, and all must have been tokenised alike.
        sequence_length: inputs per sample.
        seed: of the document permutations.

    Attributes:
        tokenizer: what all sources were tokenised with.
        weights: share of each source in the samples, adding up to 1.
        masked: names of the sources that have loss masks.

    Raises `InputError` where sources do not fit together or their files do not match their manifests.
    """

    def __init__(self, sources: Sequence[Source], sequence_length: int, seed: int) -> None:
        if not sources:
            raise InputError("no training data is configured: name at least one shard directory")
        names = [source.name for source in sources]
        given = check_weights(names, [source.weight for source in sources], "tokens")
        self.sources, self.sequence_length, self.seed = list(sources), sequence_length, seed
        self.names = names
        self._windows = [
            TrainingWindows(ShardSet(source.directory, "train"), sequence_length, seed) for source in sources
        ]
        self.masked = [name for name, windows in zip(names, self._windows) if windows.stream.masked]
        self.tokenizer = self._common_tokenizer()
        self._turns = LargestDeficit(given or [float(windows.stream.tokens) for windows in self._windows])
        self.weights = {name: part / sum(self._turns.parts) for name, part in zip(names, self._turns.parts)}

    def _common_tokenizer(self) -> TokenizerInfo:
        first = self._windows[0].shards
        for source, windows in zip(self.sources, self._windows):
            found = windows.shards.manifest.tokenizer
            if found.sha256 != first.manifest.tokenizer.sha256:
                raise InputError(
                    f"data source '{source.name}' ({source.directory}) was tokenised with {found.path}, but "
                    f"'{self.names[0]}' with {first.manifest.tokenizer.path}: build them with one tokenizer"
                )
        return first.manifest.tokenizer

    def choose(self, sample: int) -> tuple[int, int]:
        """(number of the source, sample number within it) of a sample, without reading tokens."""
        return self._turns.choose(sample)

    def sample(self, sample: int) -> Sample:
        """Sample n; raises `IndexError` where n is negative."""
        if sample < 0:
            raise IndexError(f"sample {sample} is before the first")
        source, index = self.choose(sample)
        masks = self._windows[source].target_masks(index, 1)
        return Sample(self._windows[source][index], self.names[source], index, None if masks is None else masks[0])

    def batch(self, first: int, count: int) -> np.ndarray:
        """Samples first to first + count, tokens only: int64 [count, sequence_length + 1].

        Whatever the mixture, those of one source are neighbours there and are read at once.
        """
        out = np.empty((count, self.sequence_length + 1), np.int64)
        for windows, number, rows in self._by_source(first, count):
            out[rows] = windows.batch(number, len(rows))
        return out

    def target_masks(self, first: int, count: int) -> np.ndarray | None:
        """Which targets of samples first to first + count count: bool [count, sequence_length].

        None where no source has loss masks, so that all targets count, as all of an unmasked source beside a masked one
        do.
        """
        if not self.masked:
            return None
        out = np.ones((count, self.sequence_length), bool)
        for windows, number, rows in self._by_source(first, count):
            if windows.stream.masked:
                out[rows] = windows.target_masks(number, len(rows))
        return out

    def _by_source(self, first: int, count: int) -> Iterator[tuple[TrainingWindows, int, np.ndarray]]:
        """The sources that samples first to first + count come from: windows, number of the first one, and rows."""
        if first < 0:
            raise IndexError(f"sample {first} is before the first")
        chosen = np.array([self.choose(sample)[0] for sample in range(first, first + count)], np.int64)
        before = self.counts(first)
        for source in np.unique(chosen):
            yield self._windows[source], before[self.names[source]], np.flatnonzero(chosen == source)

    def documents(self, sample: int) -> list[tuple[int, int]]:
        """(epoch, document number in its source) of every document in a sample: to name what a bad batch held."""
        source, index = self.choose(sample)
        return self._windows[source].documents(index)

    def counts(self, samples: int) -> dict[str, int]:
        """How many of the first `samples` samples come from each source."""
        return dict(zip(self.names, self._turns.counts(samples)))

    def epochs(self, samples: int) -> dict[str, float]:
        """How often the first `samples` samples have gone through each source."""
        counts = self.counts(samples)
        return {name: windows.epochs(counts[name]) for name, windows in zip(self.names, self._windows)}

    def tokens(self) -> dict[str, int]:
        """Training tokens of each source in one epoch."""
        return {name: windows.stream.tokens for name, windows in zip(self.names, self._windows)}

    def fingerprint(self) -> dict[str, Any]:
        """Everything the order depends on, ready for JSON; compare with `order.first_difference`."""
        return {
            "format": 1,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "sources": [
                {"name": name, "parts": part, **fingerprint(windows.shards)}
                for name, part, windows in zip(self.names, self._turns.parts, self._windows)
            ],
        }
