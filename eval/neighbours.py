"""The baseline that has learnt nothing: copy the answer of the most similar training protein, molecule or text.

A model whose scores do not exceed it may have memorised its training structures, however high the scores are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from align.leakage import nearest_molecules, nearest_proteins
from align.questions import Question

_QUERIES_AT_ONCE = 256


def copied_answers(training: Sequence[Question], asked: Sequence[Question]) -> list[str]:
    """For each question the training answer to the same question about the most similar structure.

    Similarity is that of `align.leakage`; the first training question of equals wins, and questions about several
    structures go by their first. Empty where the same question was never asked in training about such a structure.
    """
    known: dict[tuple[str, bool], list[Question]] = defaultdict(list)
    places: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for question in training:
        if question.proteins or question.molecules:
            known[_kind(question)].append(question)
    for place, question in enumerate(asked):
        if _kind(question) in known and (question.proteins or question.molecules):
            places[_kind(question)].append(place)
    answers = [""] * len(asked)
    for kind, some in places.items():
        nearest = nearest_proteins if kind[1] else nearest_molecules
        sources = nearest(
            [_structure(question) for question in known[kind]], [_structure(asked[place]) for place in some]
        )
        for place, source in zip(some, sources, strict=True):
            answers[place] = known[kind][source].answer
    return answers


def nearest_texts(training: Sequence[str], queries: Sequence[str]) -> list[int]:
    """For each query the number of the training text that shares most words with it (the first of equals).

    Similarity is the cosine of TF-IDF weights, as scikit-learn defines them, of words and of pairs of words; a word is
    what lies between blanks, so that names of chemicals stay whole.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    known = vectorizer.fit_transform(training).T.tocsr()
    places: list[int] = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        similarity = vectorizer.transform(queries[start : start + _QUERIES_AT_ONCE]) @ known
        places += similarity.toarray().argmax(axis=1).tolist()
    return places


def _kind(question: Question) -> tuple[str, bool]:
    """Its text, and whether it is about a protein."""
    return question.question, bool(question.proteins)


def _structure(question: Question) -> str:
    return (question.proteins or question.molecules)[0]
