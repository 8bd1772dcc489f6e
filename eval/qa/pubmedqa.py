"""The official split of PubMedQA's 1,000 labelled questions, rebuilt, and proved by the ids of its rows.

The 500 test questions and the 500 of the other half have the same counts of yes, no and maybe, so that counts prove
nothing. Rule: `preprocess/split_dataset.py` of github.com/pubmedqa/pubmedqa (Jin et al., EMNLP 2019).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Mapping

LABELS = ("yes", "no", "maybe")
FOLDS = 10

# SHA-256 over the sorted ids, one per line, of test_ground_truth.json and of the other half.
OFFICIAL_TEST = "406e3b89eff577ed38571eca5a5819734a6f49ac0437d171b6c64e5c3cd195f8"
OFFICIAL_CROSS_VALIDATION = "e972a379009869e03bfce9c7b57d8acd319daa902b9f492d0b7d2e76642cb878"


def digest(ids: Iterable[str]) -> str:
    """What a set of ids is known by, in whatever order they come."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def official_split(labels: Mapping[str, str]) -> tuple[list[list[str]], list[str]]:
    """The ten folds of the cross-validation half, 50 ids each, and the 500 ids of the test.

    Args:
        labels: yes, no or maybe by id, in the order of `ori_pqal.json`. The split depends on that order.
    """
    draw = random.Random(0)
    rest, test = _split(labels, 2, draw)
    return _split({name: labels[name] for name in rest}, FOLDS, draw), test


def _split(labels: Mapping[str, str], parts: int, draw: random.Random) -> list[list[str]]:
    split: list[list[str]] = [[] for _ in range(parts)]
    for label in LABELS:
        names = [name for name, of in labels.items() if of == label]
        draw.shuffle(names)
        size = math.ceil(len(names) / parts)
        for number, part in enumerate(split):
            part += names[number * size : (number + 1) * size]
    if len(split[-1]) != len(split[0]):  # rounding up left the last part short: each other part gives it one
        for part in split[:-1]:
            picked = draw.choice(part)
            part.remove(picked)
            split[-1].append(picked)
    return split
