"""Ranking: how near the top of all candidates the right one comes, and how near it comes by chance.

A query's reciprocal rank is 1 over the place of its right candidate; recall at k is whether that place is among the
first k. Where the right candidate's score equals others', its place among them is chance, and both are the expected
values over it: a model that scores everything alike gets exactly what chance gives. (Sorting such scores, as published
code does, gives whatever the sort makes of the order of the data.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CUTOFFS = (1, 5, 10)
"""Ranks of the published tables."""


@dataclass(frozen=True)
class Ranking:
    """Where the right candidates came; each float64 [queries]."""

    reciprocal_rank: np.ndarray
    recall: dict[int, np.ndarray]
    """by cutoff: the probability that the right candidate is among the first so many, 0 or 1 where nothing ties"""
    rank: np.ndarray
    """of the right candidate, from 1; the mean rank of those that tie with it"""

    def of_each(self) -> dict[str, np.ndarray]:
        """By the names that tables have, the mean reciprocal rank first; `recall_mean` is that of the three cutoffs."""
        recall = {f"recall_{cutoff}": values for cutoff, values in self.recall.items()}
        mean = np.mean(list(self.recall.values()), axis=0)
        return {"mrr": self.reciprocal_rank, **recall, "recall_mean": mean, "rank": self.rank}


def rank(scores: np.ndarray, ignored: np.ndarray | None = None) -> Ranking:
    """Rank all candidates for every query; query i's right candidate is candidate i.

    Args:
        scores: float [queries, candidates], as many of both; higher is better.
        ignored: bool of the same shape: candidates that are as right for a query as its own and therefore neither help
            nor harm it (see `equally_right`); a query's own candidate is never ignored.

    Raises `ValueError` where the shapes are others or a score is NaN.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"scores of queries by as many candidates are needed, not shape {scores.shape}")
    if np.isnan(scores).any():
        raise ValueError("a score is not a number: candidates cannot be ranked")
    others = _others(len(scores), ignored)
    right = np.diagonal(scores)[:, None]
    better = ((scores > right) & others).sum(axis=1)
    ties = ((scores == right) & others).sum(axis=1)
    return _expected(better, ties)


def by_chance(queries: int, ignored: np.ndarray | None = None) -> Ranking:
    """What scores without any meaning give."""
    others = _others(queries, ignored).sum(axis=1)
    return _expected(np.zeros_like(others), others)


def _others(queries: int, ignored: np.ndarray | None) -> np.ndarray:
    others = np.ones((queries, queries), bool) if ignored is None else ~np.asarray(ignored, bool)
    if others.shape != (queries, queries):
        raise ValueError(f"what is ignored has shape {others.shape}, not that of the scores")
    others = others.copy()
    np.fill_diagonal(others, False)
    return others


def _expected(better: np.ndarray, ties: np.ndarray) -> Ranking:
    """Of a right candidate behind `better` others whose place among `ties` more is chance; each int [queries]."""
    sums = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int((better + ties).max()) + 2))])
    return Ranking(
        (sums[better + ties + 1] - sums[better]) / (ties + 1),
        {cutoff: np.clip((cutoff - better) / (ties + 1), 0, 1) for cutoff in CUTOFFS},
        better + 1 + ties / 2,
    )


def equally_right(structures: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Which pairs belong together besides those of the same row: bool [rows, rows], symmetric, False on the diagonal.

    Those of rows that share the structure (as given: make it canonical before) or, but for case and blanks, the text.
    """
    same = _same(list(structures)) | _same([" ".join(text.lower().split()) for text in texts])
    np.fill_diagonal(same, False)
    return same


def _same(values: list[str]) -> np.ndarray:
    _, numbers = np.unique(np.array(values, dtype=object).astype(str), return_inverse=True)
    return numbers[:, None] == numbers[None, :]


def one_sentence(text: str, number: int) -> str:
    """The sentence that MolFM's sentence mode takes of the text of test row `number`.

    A sentence ends at a full stop and has five or more words, blanks counted as MolFM's code counts them. Which one is
    taken is decided by the generator of Lewis, Goodman and Miller (x -> 16807 x mod 2^31 - 1) from 42 on, one step per
    row. A text without such a sentence is taken whole.
    """
    sentences = [sentence.strip() for sentence in text.split(".") if len(sentence.split(" ")) >= 5]
    state = 42 * pow(16807, number, 2**31 - 1) % (2**31 - 1)
    return sentences[state % len(sentences)] if sentences else text
