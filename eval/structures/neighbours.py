"""The baseline that has learnt nothing: copy the answer of the most similar training protein, molecule or text.

A model whose scores do not exceed it may have memorised its training structures, however high the scores are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from rdkit import DataStructs
from rdkit.Chem import rdFingerprintGenerator

from align.leakage import nearest_molecules, nearest_proteins
from align.molecules import parse
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
    vectorizer = _vectorizer()
    known = vectorizer.fit_transform(training).T.tocsr()
    places: list[int] = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        similarity = vectorizer.transform(queries[start : start + _QUERIES_AT_ONCE]) @ known
        places += similarity.toarray().argmax(axis=1).tolist()
    return places


def pair_scores(training: Sequence[Question], rows: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """What pairs of a molecule and its text (the answer) in training say of which text belongs to which molecule.

    A text is compared with molecules through the molecule of the nearest training text (Tanimoto coefficient of Morgan
    fingerprints), a molecule with texts through the text of the nearest training molecule (cosine of TF-IDF weights).

    Returns scores of texts as queries, float64 [texts, molecules], and of molecules as queries [molecules, texts].
    """
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    molecules = [row.molecules[0] for row in rows]
    texts = [row.answer for row in rows]
    known = [question.answer for question in training]
    prints = [generator.GetFingerprint(parse(smiles)) for smiles in molecules]
    copied = [training[place].molecules[0] for place in nearest_texts(known, texts)]
    by_text = [DataStructs.BulkTanimotoSimilarity(generator.GetFingerprint(parse(smiles)), prints) for smiles in copied]
    vectorizer = _vectorizer().fit(known)
    places = nearest_molecules([question.molecules[0] for question in training], molecules)
    by_molecule = vectorizer.transform([known[place] for place in places]) @ vectorizer.transform(texts).T
    return np.array(by_text), by_molecule.toarray().astype(np.float64)


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes seconds

    return TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)


def _kind(question: Question) -> tuple[str, bool]:
    """Its text, and whether it is about a protein."""
    return question.question, bool(question.proteins)


def _structure(question: Question) -> str:
    return (question.proteins or question.molecules)[0]
