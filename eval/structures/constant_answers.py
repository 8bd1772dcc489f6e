"""The baseline that looks at no structure: one and the same answer for all questions of the same text.

Texts about molecules are so alike that one caption, handed in for every molecule of ChEBI-20, reaches ROUGE-L 39; a
score says something about a model only by how far it exceeds this.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from align.questions import Question
from eval.metrics.overlap import rouge

_CANDIDATES = 32
_JUDGES = 100


def constant_answers(training: Sequence[Question], asked: Sequence[Question], seed: int = 0) -> list[str]:
    """For each question one answer per question text, chosen on training questions alone.

    It is the answer with the highest mean ROUGE-L to 100 training answers drawn by `seed`, out of the 32 most frequent
    ones (where all are unlike, the first 32 of a draw). Empty where the question was never asked in training.
    """
    wanted = {question.question for question in asked}
    known: dict[str, list[str]] = defaultdict(list)
    for question in training:
        if question.question in wanted:
            known[question.question].append(question.answer)
    chosen = {text: _most_central(answers, seed) for text, answers in sorted(known.items())}
    return [chosen.get(question.question, "") for question in asked]


def _most_central(answers: list[str], seed: int) -> str:
    shuffled = random.Random(seed).sample(answers, len(answers))
    judges = shuffled[:_JUDGES]
    candidates = [answer for answer, _ in Counter(shuffled).most_common(_CANDIDATES)]  # ties: first in the draw
    if len(candidates) == 1:
        return candidates[0]
    pairs = [(candidate, judge) for candidate in candidates for judge in judges]
    similarity = rouge([pair[0] for pair in pairs], [pair[1] for pair in pairs])["rouge_l"]
    return candidates[int(np.argmax(similarity.reshape(len(candidates), -1).mean(axis=1)))]
