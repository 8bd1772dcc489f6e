"""How far a number is to be trusted: intervals over the test items, and whether two models differ by more than chance.

Intervals are 95 % percentile bootstrap intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13) over 10,000 resamples of the items. They say what another draw of test items could have given, and nothing
about prompts, seeds or training runs. Everything is a function of its input and `seed`.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from eval.results import Metric

RESAMPLES = 10_000
_CONFIDENCE = 0.95
_PERCENTILES = (100 * (1 - _CONFIDENCE) / 2, 100 * (1 + _CONFIDENCE) / 2)
_FEW_VALUES = 64
"""up to this many distinct scores, their counts are resampled instead of the items: the same distribution, faster"""
_NUMBERS_AT_ONCE = 2_000_000


def mean_interval(scores: np.ndarray, seed: int = 0, share: bool = False) -> tuple[float, float]:
    """Bounds of the 95 % bootstrap interval of the mean of `scores` [items].

    Args:
        scores: of each item.
        seed: of the resamples.
        share: whether an item's score can be but 0 or 1, right or wrong (or is a mean of such over runs). Where all
            items have the same of the two, resampling them gives an interval of no width; there that of a share is the
            exact one of Clopper and Pearson (1934).

    Raises `ValueError` where there are no items.
    """
    scores = _checked(scores)
    values, counts = np.unique(scores, return_counts=True)
    if share and len(values) == 1 and values[0] in (0, 1):
        interval = stats.binomtest(int(scores.sum()), len(scores)).proportion_ci(_CONFIDENCE, "exact")
        return float(interval.low), float(interval.high)
    return _bootstrap_mean(scores, values, counts, seed)


def _bootstrap_mean(scores: np.ndarray, values: np.ndarray, counts: np.ndarray, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    if len(values) <= _FEW_VALUES:
        means = random.multinomial(len(scores), counts / len(scores), RESAMPLES) @ values / len(scores)
        low, high = np.percentile(means, _PERCENTILES)
    else:
        interval = stats.bootstrap(
            (scores,),
            np.mean,
            n_resamples=RESAMPLES,
            batch=max(1, _NUMBERS_AT_ONCE // len(scores)),  # all at once would take resamples x items x 8 bytes
            confidence_level=_CONFIDENCE,
            method="percentile",
            rng=random,
        ).confidence_interval
        low, high = interval.low, interval.high
    return float(low), float(high)


def mean_metric(
    scores: np.ndarray, *, seed: int = 0, scale: float = 1.0, higher_is_better: bool = True, share: bool = False
) -> Metric:
    """The mean of `scores` [items] with its interval; all three multiplied by `scale` (100 for a percentage).

    `share` is that of `mean_interval`. Other scores that are all alike get no interval: they tell nothing of how others
    would vary.
    """
    mean = float(np.mean(np.asarray(scores, np.float64)))
    low, high = mean_interval(scores, seed, share)
    if low == high and not share:
        return Metric(scale * mean, higher_is_better=higher_is_better, items=len(scores))
    return Metric(scale * mean, scale * low, scale * high, higher_is_better, len(scores))


def ratio_interval(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bounds of the 95 % bootstrap interval of sum(numerators) / sum(denominators), both [items], resampled together.

    Bits per byte, say: bits and bytes of each document. Raises `ValueError` where there are no items, or where a
    denominator is negative or all are zero.
    """
    numerators, denominators = _checked(numerators), _checked(denominators)
    if numerators.shape != denominators.shape or (denominators < 0).any() or not denominators.any():
        raise ValueError("a ratio's interval needs a denominator per item, none negative and not all zero")
    random = np.random.default_rng(seed)
    ratios = np.empty(RESAMPLES)
    batch = max(1, _NUMBERS_AT_ONCE // len(numerators))
    for start in range(0, RESAMPLES, batch):
        rows = random.integers(0, len(numerators), (min(batch, RESAMPLES - start), len(numerators)))
        below = denominators[rows].sum(axis=1)
        ratios[start : start + batch] = numerators[rows].sum(axis=1) / np.where(below > 0, below, np.nan)
    low, high = np.nanpercentile(ratios, _PERCENTILES)
    return float(low), float(high)


def macro_f1(confusion: np.ndarray) -> float:
    """Mean F1 over classes.

    Args:
        confusion: int [classes, classes or more]: items by true class and predicted class. Further columns count items
            whose answer is none of the classes (unparsed): they are misses of their class and no class of their own.

    A class that neither occurs nor is predicted is left out, as in scikit-learn.
    """
    return float(_macro_f1(_checked_confusion(confusion)[None])[0])


def macro_f1_interval(confusion: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bounds of the 95 % bootstrap interval of `macro_f1(confusion)`, items resampled over the whole matrix."""
    confusion = _checked_confusion(confusion)
    items = int(confusion.sum())
    resampled = np.random.default_rng(seed).multinomial(items, confusion.ravel() / items, RESAMPLES)
    low, high = np.percentile(_macro_f1(resampled.reshape(-1, *confusion.shape)), _PERCENTILES)
    return float(low), float(high)


def _macro_f1(confusions: np.ndarray) -> np.ndarray:
    """Of int [many, classes, classes or more]: float64 [many]."""
    classes = confusions.shape[1]
    right = np.diagonal(confusions[:, :, :classes], axis1=1, axis2=2)
    seen = confusions.sum(axis=2) + confusions[:, :, :classes].sum(axis=1)  # true plus predicted: F1's denominator
    return (2 * right / np.maximum(seen, 1)).sum(axis=1) / np.maximum((seen > 0).sum(axis=1), 1)


def _checked_confusion(confusion: np.ndarray) -> np.ndarray:
    confusion = np.asarray(confusion, np.int64)
    if confusion.ndim != 2 or confusion.shape[1] < confusion.shape[0] or confusion.sum() == 0:
        raise ValueError(f"not a confusion matrix of one or more items: shape {confusion.shape}")
    return confusion


def micro_f1_interval(counts: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Bounds of the 95 % bootstrap interval of micro F1 over documents.

    Args:
        counts: int [documents, 3]: right, wrong and missing answers of each document.
        seed: of the resamples.

    Documents with the same counts are resampled together by their number: the same distribution, faster. A resample
    without any answer, wanted or given, counts as 0. Raises `ValueError` where there are no documents.
    """
    counts = np.asarray(counts, np.int64)
    if counts.ndim != 2 or counts.shape[1] != 3 or len(counts) == 0 or (counts < 0).any():
        raise ValueError(f"counts of right, wrong and missing answers of documents are needed, not {counts.shape}")
    kinds, number = np.unique(counts, axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    resampled = np.empty((RESAMPLES, 3))
    batch = max(1, _NUMBERS_AT_ONCE // len(kinds))
    for start in range(0, RESAMPLES, batch):
        rows = random.multinomial(len(counts), number / len(counts), min(batch, RESAMPLES - start))
        resampled[start : start + batch] = rows @ kinds
    right, wrong, missing = resampled.T
    low, high = np.percentile(2 * right / np.maximum(1, 2 * right + wrong + missing), _PERCENTILES)
    return float(low), float(high)


def paired_bootstrap(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """The mean of a - b over the same items, and the bounds of its 95 % bootstrap interval.

    Raises `ValueError` where there are no items or not the same number of them.
    """
    differences = _differences(a, b)
    values, counts = np.unique(differences, return_counts=True)
    low, high = _bootstrap_mean(differences, values, counts, seed)
    return float(differences.mean()), low, high


def mcnemar(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p-value of McNemar (1947): of the items that only one of two models has right, as many each?

    Args:
        a: 0 or 1 per item, or bool.
        b: the same items in the same order.

    Raises `ValueError` where a score is neither 0 nor 1.
    """
    differences = _differences(a, b)
    if not np.isin(np.concatenate([a, b]), (0, 1)).all():
        raise ValueError("McNemar's test needs scores of 0 and 1")
    only_a, only_b = int((differences > 0).sum()), int((differences < 0).sum())
    return float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def sign_flip_test(a: np.ndarray, b: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value that the mean of a - b is 0, for scores of any kind: signs of differences flipped at random.

    Fisher's randomisation test (The Design of Experiments, 1935); exact for a few items, by 9,999 draws for many.
    """
    differences = _differences(a, b)
    if len(differences) < 2 or not differences.any():
        return 1.0
    result = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=9_999,
        batch=max(1, _NUMBERS_AT_ONCE // len(differences)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): those below 0.05 hold together at 5 %. In the order given."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _differences(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} scores are not of the same items")
    return a - b


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError("one or more finite scores in one dimension are needed")
    return scores
