"""The order in which training reads a shard set: sample n is computed, never drawn from a stateful shuffle.

Each epoch is a permutation of all documents, made from (seed, epoch) alone; the epochs follow one another as one
endless stream of tokens; sample n of sequence length s is the stream from n*s to (n+1)*s, and one token more, so that
the last input has its target. Every token is thus an input exactly once per epoch, whatever the sequence length, and
nothing about ranks, workers or restarts enters.

Where shards have loss masks (instruction data), a sample also has the mask of its targets: bit i says whether the loss
of predicting target i counts. It is read from the same places as the tokens, so it is a function of n as well.

Memory per process: 8 bytes per document for where it lies and how long it is, 4.5 per document for an epoch's
permutation (two epochs are kept, for windows across their border), and about 20 more for the seconds in which a
permutation is made. 100 million documents: 1.7 GB, 3.7 GB at the peak; the 37 million of PubMed: 0.6 GB. The tokens
themselves stay in the page cache, shared by all processes of a machine.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from data_shards.shards import ShardSet
from job.errors import InputError

_STRIDE = 16  # token positions are kept of every 16th document of a permutation; between them they are summed up


def permutation(documents: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: int64 [documents], every number once.

    Documents are sorted by 64 random bits each. The bits are Philox's raw output, which NumPy promises never to change
    (NEP 19), unlike its `permutation`; so a run can be resumed after NumPy was updated.
    """
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(documents)
    return np.argsort(bits, kind="stable")


class _Epoch:
    """One epoch's document order, with the token position of every 16th document."""

    def __init__(self, documents: np.ndarray | None, lengths: np.ndarray) -> None:
        # None is build order: nothing to keep.
        small = len(lengths) <= 1 << 32
        self.documents = None if documents is None else documents.astype(np.uint32 if small else np.int64)
        sums = np.zeros(-(-len(lengths) // _STRIDE) + 1, np.int64)
        for first in range(0, len(lengths), _STRIDE << 16):  # in pieces, so that no second array of that length exists
            piece = lengths[self.slice(first, first + (_STRIDE << 16), len(lengths))]
            sums[1 + first // _STRIDE :][: -(-len(piece) // _STRIDE)] = np.add.reduceat(
                piece, np.arange(0, len(piece), _STRIDE), dtype=np.int64
            )
        self.starts = np.cumsum(sums)
        # Single look-ups: `bisect` over a memoryview costs a third of `searchsorted` over the array.
        self._starts = memoryview(self.starts)  # type: ignore[arg-type]

    def find(self, position: int) -> tuple[int, int]:
        """A place at or shortly before the document that holds a token position, and the position it starts at."""
        block = bisect.bisect_right(self._starts, position) - 1
        return block * _STRIDE, self._starts[block]

    def slice(self, first: int, stop: int, count: int) -> np.ndarray:
        """Numbers of the documents at places first to stop of this epoch."""
        if self.documents is None:
            return np.arange(first, min(stop, count))
        return self.documents[first:stop]


class _Column(NamedTuple):
    """One value per token of every document, and where it lies."""

    values: list[np.ndarray]
    """per shard, a 1-D array"""
    begins: np.ndarray
    """per document, where its values start in its shard's array"""


class TokenStream:
    """The tokens of a shard set, epoch after epoch, readable from any position.

    Args:
        shards: the split to read.
        seed: of the permutations; None reads in build order (validation).

    Attributes:
        tokens: ids of one epoch.
        masked: whether a shard has a loss mask; the tokens of shards without one all count.

    Raises `InputError` where the split has no tokens.
    """

    def __init__(self, shards: ShardSet, seed: int | None) -> None:
        if shards.tokens == 0:
            raise InputError(f"the split '{shards.split}' of {shards.directory} has no tokens")
        if seed is not None and not 0 <= seed < 1 << 64:
            raise InputError(f"the data seed is {seed}, but must lie between 0 and 2**64 - 1")
        self.shards, self.seed, self.tokens = shards, seed, shards.tokens
        self._lengths = shards.lengths()
        self._begins = self._document_begins()
        self.masked = any(shard.masked for shard in shards.shards)
        self._shard_starts = shards.starts.tolist()
        self._vocab_size = shards.manifest.tokenizer.vocab_size
        self._mean_length = self.tokens / len(self._lengths)
        self._epoch = functools.lru_cache(maxsize=2)(self._make_epoch)

    def _document_begins(self) -> np.ndarray:
        """Where each document starts in its shard, counted in ids."""
        small = all(info.bytes < self.shards.dtype.itemsize << 32 for info in self.shards.infos)
        begins = np.empty(len(self.shards), np.uint32 if small else np.int64)
        for shard, start in zip(self.shards.shards, self.shards.starts):
            begins[start : start + len(shard)] = shard.index["offset"] // self.shards.dtype.itemsize
        return begins

    @functools.cached_property
    def _ids(self) -> _Column:
        return _Column([shard.values for shard in self.shards.shards], self._begins)

    @functools.cached_property
    def _masks(self) -> _Column:
        """The loss masks; a shard without one lends every document the same ones (in no memory)."""
        ones = np.broadcast_to(np.uint8(1), self._lengths.max())
        begins = np.zeros(len(self.shards), np.int64)
        for shard, start in zip(self.shards.shards, self.shards.starts):
            if shard.masked:
                begins[start : start + len(shard)] = shard.index["mask_offset"]
        return _Column([shard.raw if shard.masked else ones for shard in self.shards.shards], begins)

    def _make_epoch(self, epoch: int) -> _Epoch:
        documents = None if self.seed is None else permutation(len(self._lengths), self.seed, epoch)
        return _Epoch(documents, self._lengths)

    def __getstate__(self) -> dict[str, Any]:
        return {"shards": self.shards, "seed": self.seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def read(self, start: int, stop: int) -> np.ndarray:
        """The tokens at positions start to stop of the stream: int64 [stop - start]; position 0 opens epoch 0.

        Raises `InputError` where an id is no id of the vocabulary: a model split over its vocabulary would take it
        for zero without a word.
        """
        out = np.empty(stop - start, np.int64)
        self._fill(self._ids, start, out)
        if out.max(initial=0) >= self._vocab_size:
            raise InputError(
                f"a shard of {self.shards.directory / self.shards.split} is damaged: id {out.max()} among tokens "
                f"{start} to {stop} of the order, but the vocabulary has {self._vocab_size}; run "
                f"`python -m data_shards verify {self.shards.directory}`"
            )
        return out

    def read_mask(self, start: int, stop: int) -> np.ndarray:
        """Whether the loss of predicting each token at positions start to stop counts: bool [stop - start].

        Raises `InputError` where the mask holds anything but 0 and 1.
        """
        if not self.masked:
            return np.ones(stop - start, bool)
        out = np.empty(stop - start, np.uint8)
        self._fill(self._masks, start, out)
        if out.max(initial=0) > 1:
            raise InputError(
                f"a shard of {self.shards.directory / self.shards.split} is damaged: its loss mask says {out.max()} "
                f"among tokens {start} to {stop} of the order, but may only say 0 or 1; run "
                f"`python -m data_shards verify {self.shards.directory}`"
            )
        return out.view(bool)

    def has_targets(self) -> bool:
        """Whether the loss of any token counts. Looks no further than the first that does."""
        return any(
            not shard.masked or any(mask is not None and mask.any() for mask in map(shard.loss_mask, range(len(shard))))
            for shard in self.shards.shards
            if len(shard)
        )

    def documents(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch, document number) of every document that has a token at positions start to stop: for logs."""
        found = []
        while start < stop:
            epoch, position = divmod(start, self.tokens)
            count = min(stop - start, self.tokens - position)
            order = self._epoch(epoch)
            place, reached = order.find(position)
            while reached < position + count:
                for document in order.slice(place, place + _STRIDE, len(self._lengths)).tolist():
                    length = int(self._lengths[document])
                    if reached < position + count and reached + length > position:
                        found.append((epoch, document))
                    reached += length
                place += _STRIDE
            start += count
        return found

    def _fill(self, column: _Column, start: int, out: np.ndarray) -> None:
        """Fill `out` with a column's values from position `start` of the stream on."""
        filled = 0
        while filled < len(out):
            epoch, position = divmod(start + filled, self.tokens)
            count = min(len(out) - filled, self.tokens - position)
            self._copy(column, self._epoch(epoch), position, out[filled : filled + count])
            filled += count

    def _copy(self, column: _Column, order: _Epoch, position: int, out: np.ndarray) -> None:
        """Fill `out` from a position inside one epoch.

        A window is a handful of documents: lists and `bisect` beat NumPy calls on arrays that small, and one
        `concatenate` copies, widens and joins all the pieces.
        """
        stop = position + len(out)
        place, reached = order.find(position)
        step = _STRIDE + int(1.3 * len(out) / self._mean_length)  # documents looked at together: usually enough
        parts: list[np.ndarray] = []
        while reached < stop:
            numbers = order.slice(place, place + step, len(self._lengths))
            lengths = self._lengths.take(numbers).tolist()
            ends = list(itertools.accumulate(lengths, initial=reached))  # one more than documents
            first = 0 if parts else bisect.bisect_right(ends, position) - 1
            last = bisect.bisect_left(ends, stop)
            numbers = numbers[first:last]
            for number, begin, length in zip(
                numbers.tolist(), column.begins.take(numbers).tolist(), lengths[first:last]
            ):
                values = column.values[bisect.bisect_right(self._shard_starts, number) - 1]
                parts.append(values[begin : begin + length])
            if ends[first] < position:  # only of the first documents looked at
                parts[0] = parts[0][position - ends[first] :]
            reached = ends[-1]
            place += step
        surplus = sum(map(len, parts)) - len(out)
        if surplus:
            parts[-1] = parts[-1][: len(parts[-1]) - surplus]
        np.concatenate(parts, out=out)


class TrainingWindows:
    """Sample n of one shard set, for every n >= 0.

    Args:
        shards: the training split.
        sequence_length: inputs per sample.
        seed: of the document permutations.

    Raises `InputError` where the split has no tokens, or none whose loss counts.
    """

    def __init__(self, shards: ShardSet, sequence_length: int, seed: int) -> None:
        if sequence_length < 1:
            raise InputError(f"the sequence length is {sequence_length}, but must be at least 1")
        self.shards, self.sequence_length, self.seed = shards, sequence_length, seed
        self.stream = TokenStream(shards, seed)
        if not self.stream.has_targets():
            raise InputError(
                f"the split '{shards.split}' of {shards.directory} has nothing to learn: its loss masks leave out "
                "every token; build it with masks that are 1 where the loss counts"
            )

    def __getitem__(self, sample: int) -> np.ndarray:
        """int64 [sequence_length + 1]: inputs are all but the last, targets all but the first."""
        if sample < 0:
            raise IndexError(f"sample {sample} is before the first")
        start = sample * self.sequence_length
        return self.stream.read(start, start + self.sequence_length + 1)

    def batch(self, first: int, count: int) -> np.ndarray:
        """Samples first to first + count: int64 [count, sequence_length + 1].

        They are neighbours in the stream, so that one reading serves all: several times faster than one by one where
        windows are short.
        """
        if first < 0:
            raise IndexError(f"sample {first} is before the first")
        start = first * self.sequence_length
        stretch = self.stream.read(start, start + count * self.sequence_length + 1)
        windows = np.lib.stride_tricks.sliding_window_view(stretch, self.sequence_length + 1)
        return windows[:: self.sequence_length].copy()

    def target_masks(self, first: int, count: int) -> np.ndarray | None:
        """Which targets of samples first to first + count count: bool [count, sequence_length], or None where all do.

        Target i of a sample is its token i + 1; every token of the stream but the first is a target exactly once.
        """
        if not self.stream.masked:
            return None
        if first < 0:
            raise IndexError(f"sample {first} is before the first")
        start = first * self.sequence_length + 1
        return self.stream.read_mask(start, start + count * self.sequence_length).reshape(count, -1)

    def epochs(self, samples: int) -> float:
        """How often the first `samples` samples have gone through all tokens."""
        return samples * self.sequence_length / self.stream.tokens

    def documents(self, sample: int) -> list[tuple[int, int]]:
        """(epoch, document number) of every document in a sample."""
        start = sample * self.sequence_length
        return self.stream.documents(start, start + self.sequence_length + 1)


class ValidationWindows(Sequence[tuple[np.ndarray, np.ndarray]]):
    """A split read once, in build order, in windows that share no target; the last one is padded and masked.

    Item i is `(tokens, mask)`: int64 [sequence_length + 1] and bool [sequence_length], where the mask is True for
    targets that are real and whose loss counts. Without loss masks, the masks of all items together have (tokens of
    the split - 1) True values.

    Args:
        shards: the split.
        sequence_length: inputs per window.
    """

    def __init__(self, shards: ShardSet, sequence_length: int) -> None:
        self.shards, self.sequence_length = shards, sequence_length
        self._stream = TokenStream(shards, None)

    def __len__(self) -> int:
        return -(-(self._stream.tokens - 1) // self.sequence_length)

    def __getitem__(self, window: Any) -> Any:
        if not 0 <= window < len(self):
            raise IndexError(f"validation window {window} of {len(self)}")
        start = window * self.sequence_length
        stop = min(start + self.sequence_length + 1, self._stream.tokens)
        tokens = np.full(self.sequence_length + 1, self.shards.manifest.tokenizer.eos_id, np.int64)
        tokens[: stop - start] = self._stream.read(start, stop)
        mask = np.zeros(self.sequence_length, bool)
        mask[: stop - start - 1] = self._stream.read_mask(start + 1, stop)
        return tokens, mask


def fingerprint(shards: ShardSet) -> dict[str, Any]:
    """What makes a split's order what it is, ready for JSON: kept in checkpoints and compared on resume."""
    return {
        "split": shards.split,
        "tokenizer_sha256": shards.manifest.tokenizer.sha256,
        "dtype": shards.manifest.dtype,
        "shards": [
            {"name": info.name, "documents": info.documents, "tokens": info.tokens, "sha256": info.sha256}
            for info in shards.infos
        ],
    }


def first_difference(stored: Any, current: Any, where: str = "") -> str | None:
    """Where two fingerprints first differ, in words, or None where they are equal.

    For instance "sources[0].shards[3].sha256 was 'ab12…', is now 'cd34…'".
    """
    if isinstance(stored, dict) and isinstance(current, dict):
        for key in [*stored, *(key for key in current if key not in stored)]:
            place = f"{where}.{key}" if where else key
            if key not in current:
                return f"{place} is gone"
            if key not in stored:
                return f"{place} is new"
            if difference := first_difference(stored[key], current[key], place):
                return difference
        return None
    if isinstance(stored, list) and isinstance(current, list):
        for number, (before, now) in enumerate(zip(stored, current)):
            if difference := first_difference(before, now, f"{where}[{number}]"):
                return difference
        if len(stored) != len(current):
            return f"{where} had {len(stored)} entries, has now {len(current)}"
        return None
    return None if stored == current else f"{where} was {stored!r}, is now {current!r}"
