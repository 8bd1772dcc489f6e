"""N-grams that a prediction shares with its reference, and the BLEU and ROUGE scores made of their counts.

Every score equals that of the library that defines it (NLTK for BLEU, rouge-score for ROUGE) to the last bit; only the
counting is faster: n-grams become integers, and those of thousands of texts are counted by one sort.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

_LARGEST_INTEGER = 2**62
_ROWS_AT_ONCE = 8192
_SMOOTHING = 0.1  # NLTK's epsilon for `method1`
_NO_WORD = bytes(byte if chr(byte).isalnum() and byte < 128 else 32 for byte in range(256))


Tokens = Sequence[Hashable]


@dataclass(frozen=True)
class Overlap:
    """What the BLEU of every pair, and of all of them together, is made of."""

    matches: np.ndarray
    """int64 [pairs, orders]: n-grams shared, each as often as it occurs in both; column 0 is single tokens."""
    possible: np.ndarray
    """int64 [pairs, orders]: n-grams of the prediction, at least 1."""
    prediction_lengths: np.ndarray
    """int64 [pairs], tokens."""
    reference_lengths: np.ndarray
    """int64 [pairs], tokens."""


def overlap(predictions: Sequence[Tokens], references: Sequence[Tokens], orders: int = 4) -> Overlap:
    """Count n-grams up to `orders` tokens, given the tokens of each text (a string is its characters)."""
    lengths = [np.array([len(row) for row in rows], np.int64) for rows in (predictions, references)]
    matches = _matches(predictions, references, orders)
    possible = np.maximum(lengths[0][:, None] - np.arange(orders), 1)
    return Overlap(matches, possible, lengths[0], lengths[1])


def corpus_bleu(counts: Overlap, orders: int) -> float:
    """BLEU of all pairs together without smoothing (Papineni et al. 2002), as `nltk.translate.bleu_score.corpus_bleu`.

    One reference each, equal weights. NLTK counts one possible n-gram for a prediction too short to have any.
    """
    return _bleu(
        counts.matches[:, :orders].sum(axis=0).tolist(),
        counts.possible[:, :orders].sum(axis=0).tolist(),
        int(counts.prediction_lengths.sum()),
        int(counts.reference_lengths.sum()),
        smoothed=False,
    )


def sentence_bleu(counts: Overlap, orders: int) -> np.ndarray:
    """BLEU of each pair, as `sentence_bleu` of NLTK with `SmoothingFunction().method1`: float64 [pairs].

    Method 1 (Chen & Cherry 2014) takes 0.1 for the number of shared n-grams where there is none.
    """
    rows = zip(
        counts.matches[:, :orders].tolist(),
        counts.possible[:, :orders].tolist(),
        counts.prediction_lengths.tolist(),
        counts.reference_lengths.tolist(),
    )
    return np.array([_bleu(*row, smoothed=True) for row in rows], np.float64)


def _bleu(matches: list[int], possible: list[int], length: int, reference_length: int, *, smoothed: bool) -> float:
    if matches[0] == 0:
        return 0.0
    weight = 1 / len(matches)
    logarithms = []
    for shared, all_of_them in zip(matches, possible):
        if shared:
            precision = shared / all_of_them
        elif smoothed:
            precision = _SMOOTHING / all_of_them
        else:
            precision = sys.float_info.min  # NLTK's stand-in for zero: its logarithm makes the score vanish
        logarithms.append(weight * math.log(precision))
    brevity = 1.0 if length > reference_length else math.exp(1 - reference_length / length)
    return brevity * math.exp(math.fsum(logarithms))


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """`rouge_1`, `rouge_2` and `rouge_l` (Lin 2004) of each pair of texts: F1, float64 [pairs].

    As `rouge_score.rouge_scorer.RougeScorer` without stemmer: a word is a run of a-z and 0-9 in the lower-cased text.
    """
    words = [_rouge_words(text) for text in predictions]
    reference_words = [_rouge_words(text) for text in references]
    counts = overlap(words, reference_words, orders=2)
    common = _longest_common_subsequences(words, reference_words)
    lengths, reference_lengths = counts.prediction_lengths, counts.reference_lengths
    return {
        "rouge_1": _f1(counts.matches[:, 0], lengths, reference_lengths),
        "rouge_2": _f1(counts.matches[:, 1], lengths - 1, reference_lengths - 1),
        "rouge_l": _f1(common, lengths, reference_lengths),
    }


def _rouge_words(text: str) -> list[bytes]:
    return text.lower().encode("ascii", "replace").translate(_NO_WORD).split()


def _f1(matches: np.ndarray, possible: np.ndarray, reference_possible: np.ndarray) -> np.ndarray:
    precision = matches / np.maximum(possible, 1)
    recall = matches / np.maximum(reference_possible, 1)
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def _longest_common_subsequences(
    predictions: Sequence[Sequence[bytes]], references: Sequence[Sequence[bytes]]
) -> np.ndarray:
    """Length of the longest common subsequence of each pair's words: int64 [pairs]."""
    lengths = np.zeros(len(predictions), np.int64)
    for start in range(0, len(predictions), _ROWS_AT_ONCE):
        stop = start + _ROWS_AT_ONCE
        letters: dict[bytes, str] = {}  # a letter for each word, since whole strings compare fastest
        rows = [
            ["".join([letters.setdefault(word, chr(len(letters))) for word in row]) for row in rows[start:stop]]
            for rows in (predictions, references)
        ]
        lengths[start:stop] = process.cpdist(*rows, scorer=LCSseq.similarity, dtype=np.int64)
    return lengths


def _matches(predictions: Sequence[Tokens], references: Sequence[Tokens], orders: int) -> np.ndarray:
    """Shared n-grams of each pair and order, each counted as often as it occurs in both: int64 [pairs, orders]."""
    found = np.zeros((len(predictions), orders), np.int64)
    for start in range(0, len(predictions), _ROWS_AT_ONCE):
        stop = start + _ROWS_AT_ONCE
        found[start:stop] = _matches_of_some(predictions[start:stop], references[start:stop], orders)
    return found


def _matches_of_some(predictions: Sequence[Tokens], references: Sequence[Tokens], orders: int) -> np.ndarray:
    pairs = len(predictions)
    numbers: dict[Hashable, int] = {}
    texts = [*predictions, *references]
    tokens = np.array([numbers.setdefault(token, len(numbers)) for tokens in texts for token in tokens], np.int64)
    lengths = [len(tokens) for tokens in texts]
    text = np.repeat(np.arange(2 * pairs), lengths)  # which text a token is of: predictions, then references
    pair, is_reference = text % max(pairs, 1), text >= pairs
    found = np.zeros((pairs, orders), np.int64)
    ngrams, kinds = tokens, max(len(numbers), 1)
    for order in range(orders):
        if order:
            if kinds * len(numbers) * pairs * 2 > _LARGEST_INTEGER:
                distinct, ngrams = np.unique(ngrams, return_inverse=True)
                kinds = len(distinct)
            ngrams = ngrams[:-1] * len(numbers) + tokens[order:]
            kinds *= len(numbers)
        inside = text[: len(ngrams)] == text[order:]
        keys = ((pair[: len(ngrams)] * kinds + ngrams) * 2 + is_reference[: len(ngrams)])[inside]
        # An n-gram's key in the reference is the one in the prediction plus one: both exist where neighbours do.
        distinct, counts = np.unique(keys, return_counts=True)
        shared = np.flatnonzero((distinct[:-1] % 2 == 0) & (distinct[1:] == distinct[:-1] + 1))
        np.add.at(found[:, order], distinct[shared] // (2 * kinds), np.minimum(counts[shared], counts[shared + 1]))
    return found
