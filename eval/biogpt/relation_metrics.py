"""How BioGPT's tasks are scored: micro F1 over documents, and the authors' hard match of triples.

Hard match: microsoft/BioGPT, examples/RE-DDI/hard_match_evaluation.py (RE-DTI has the same file). Names are compared in
lower case without white space; then, either without or only by the abbreviation in brackets at their end (the better
of the two counts, for precision and recall each on its own), without "-type" and anything but letters and digits, and
with a last digit as a Roman numeral. Precision, recall and F1 are computed per document.

Beware of that script's labels. What it prints as `tp micro f1` is the mean of the documents' F1, and as `tp macro f1`
the F1 of mean precision and mean recall; neither is what is usually called so. Here they are `f1` and `f1_of_means`,
and micro F1 is what counts triples over all documents.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from eval.biogpt.relations import Relation, squeeze
from eval.results import Metric
from eval.trust.statistics import mean_metric, micro_f1_interval

Triple = tuple[str, str, str]
_ROMAN = dict(zip("0123456789", ("0", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")))


def counts(predicted: Sequence[Collection[Hashable]], gold: Sequence[Collection[Hashable]]) -> np.ndarray:
    """int64 [documents, 3]: right, wrong and missing answers of each document; repeated ones count once."""
    rows = []
    for answers, wanted in zip(predicted, gold, strict=True):
        answers, wanted = set(answers), set(wanted)
        right = len(answers & wanted)
        rows.append((right, len(answers) - right, len(wanted) - right))
    return np.array(rows, np.int64).reshape(-1, 3)


def micro_metrics(table: np.ndarray, seed: int = 0) -> dict[str, Metric]:
    """F1 with its interval over documents, precision and recall of `counts`; 0 where nothing was answered.

    Where no answer is right, or all are, all resamples are alike, and no interval is given.
    """
    right, wrong, missing = (int(total) for total in table.sum(axis=0))
    varies = right > 0 and wrong + missing > 0
    low, high = micro_f1_interval(table, seed) if varies else (None, None)
    return {
        "f1": Metric(2 * right / max(1, 2 * right + wrong + missing), low, high),
        "precision": Metric(right / max(1, right + wrong)),
        "recall": Metric(right / max(1, right + missing)),
    }


class HardMatch(NamedTuple):
    """Of one document."""

    precision: float
    recall: float
    f1: float


def hard_match(predicted: Collection[Relation], gold: Collection[Relation]) -> HardMatch:
    """The authors' score of the triples of one document."""
    predicted_triples, gold_triples = _comparable(predicted), _comparable(gold)
    variants = [
        ({rewrite(triple) for triple in predicted_triples}, {rewrite(triple) for triple in gold_triples})
        for rewrite in (_by_abbreviation, _without_abbreviation)
    ]
    precision = max(_share(answers & wanted, answers, answers == wanted) for answers, wanted in variants)
    recall = max(_share(answers & wanted, wanted, answers == wanted) for answers, wanted in variants)
    return HardMatch(precision, recall, _f1(precision, recall))


def hard_match_metrics(documents: Sequence[HardMatch], seed: int = 0) -> dict[str, Metric]:
    """Means over documents: `f1` (the authors' `tp micro f1`), `f1_of_means` (their `tp macro f1`), and the means."""
    table = np.array(documents, np.float64)
    precision, recall = float(table[:, 0].mean()), float(table[:, 1].mean())
    return {
        "f1": mean_metric(table[:, 2], seed=seed),
        "f1_of_means": Metric(_f1(precision, recall)),
        "precision": Metric(precision),
        "recall": Metric(recall),
    }


def _comparable(relations: Collection[Relation]) -> set[Triple]:
    return {(squeeze(head), squeeze(tail), squeeze(label)) for head, tail, label in relations}


def _share(right: set[Triple], of: set[Triple], equal: bool) -> float:
    return len(right) / len(of) if of else float(equal)


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _rewrite(triple: Triple, choose: Callable[[str, int], str]) -> Triple:
    head, tail, label = (
        _normalized(choose(name, name.rfind("(")) if "(" in name and name.endswith(")") else name) for name in triple
    )
    return head, tail, label


def _by_abbreviation(triple: Triple) -> Triple:
    """monoamineoxidase(mao) -> mao"""
    return _rewrite(triple, lambda name, bracket: name[bracket + 1 : -1])


def _without_abbreviation(triple: Triple) -> Triple:
    """monoamineoxidase(mao) -> monoamineoxidase"""
    return _rewrite(triple, lambda name, bracket: name[:bracket])


def _normalized(name: str) -> str:
    if len(name) > 2 and name[-1] in _ROMAN and not name[-2].isnumeric():
        name = name[:-1] + _ROMAN[name[-1]]
    return re.sub("[^a-zA-Z0-9]+", "", name.replace("-type", ""))
