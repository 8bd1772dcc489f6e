"""The order in which training asks questions: question n is computed, never drawn from a stateful shuffle.

Each epoch of a data set is a permutation of its questions, made from (seed, epoch) alone; data sets take turns by
largest deficit. Nothing about ranks, workers, batches or restarts enters.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from align.question_shards import QuestionSet
from align.questions import Question
from data_shards.deficit import LargestDeficit, check_weights
from data_shards.order import permutation
from job.errors import InputError


class Source(Protocol):
    """A data set of the mixture."""

    @property
    def name(self) -> str:
        """How metrics call it."""

    @property
    def directory(self) -> str | Path:
        """The output of `python -m align build`."""

    @property
    def weight(self) -> float | None:
        """Share of the questions, relative to the others'; None for all: in proportion to their sizes."""


class QuestionOrder:
    """Question n of a run, for every n >= 0: a pure function of (data sets, weights, seed, n).

    Args:
        sources: the data sets; names must differ. Their training splits are read.
        seed: of the permutations.

    Attributes:
        names: of the sources.
        sets: the training split of each source.
        weights: share of each source in the questions, adding up to 1.

    Raises `InputError` where sources do not fit together, are empty, or do not match their manifests.
    """

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        if not sources:
            raise InputError("no training data is configured: name at least one directory made by `align build`")
        if not 0 <= seed < 1 << 64:
            raise InputError(f"the data seed is {seed}, but must lie between 0 and 2**64 - 1")
        self.seed = seed
        self.names = [source.name for source in sources]
        given = check_weights(self.names, [source.weight for source in sources], "questions")
        self.sets = [QuestionSet(source.directory, "train") for source in sources]
        for source, questions in zip(sources, self.sets):
            if not len(questions):
                raise InputError(f"data source '{source.name}' ({source.directory}) has no training questions")
        self._turns = LargestDeficit(given or [float(len(questions)) for questions in self.sets])
        self.weights = {name: part / sum(self._turns.parts) for name, part in zip(self.names, self._turns.parts)}
        self._epoch = functools.lru_cache(maxsize=2 * len(self.sets))(self._make_epoch)

    def _make_epoch(self, source: int, epoch: int) -> np.ndarray:
        return permutation(len(self.sets[source]), self.seed, epoch)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_epoch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch = functools.lru_cache(maxsize=2 * len(self.sets))(self._make_epoch)

    def place(self, n: int) -> tuple[int, int]:
        """(number of the source, number of the question in its split) of question n, without reading it.

        Raises `IndexError` where n is negative.
        """
        if n < 0:
            raise IndexError(f"question {n} is before the first")
        source, taken = self._turns.choose(n)
        epoch, inside = divmod(taken, len(self.sets[source]))
        return source, int(self._epoch(source, epoch)[inside])

    def question(self, n: int) -> tuple[Question, str]:
        """Question n and the name of its source."""
        source, number = self.place(n)
        return self.sets[source][number], self.names[source]

    def counts(self, n: int) -> dict[str, int]:
        """How many of the first n questions come from each source."""
        return dict(zip(self.names, self._turns.counts(n)))

    def epochs(self, n: int) -> dict[str, float]:
        """How often the first n questions have gone through each source."""
        counts = self.counts(n)
        return {name: counts[name] / len(questions) for name, questions in zip(self.names, self.sets)}

    def fingerprint(self) -> dict[str, Any]:
        """Everything the order depends on, ready for JSON; compare with `data_shards.order.first_difference`."""
        return {
            "format": 1,
            "seed": self.seed,
            "sources": [
                {"name": name, "parts": part, **questions.fingerprint()}
                for name, part, questions in zip(self.names, self._turns.parts, self.sets)
            ],
        }
