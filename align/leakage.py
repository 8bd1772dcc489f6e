"""How far copying gets: the answer of the most similar training structure, handed in for every held-out question.

A split whose questions such copying answers measures memory, not understanding: on the published UniProtQA the nearest
training protein's answer is exactly right for 97.7 % of the family questions. Similarity of proteins is the cosine of
their three-residue word counts, weighted by rarity; of molecules, the Tanimoto coefficient of Morgan fingerprints
(radius 2, 2048 bits). Beside it stands the most frequent training answer to the same question, for comparison.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rdkit import DataStructs
from rdkit.Chem import rdFingerprintGenerator

from align.molecules import parse
from align.questions import Question

_RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
_ROWS_AT_ONCE = 4096
_MOST_TEXTS = 12


@dataclass(frozen=True)
class Copying:
    """What copying the nearest training structure's answer gives, over held-out questions of one text."""

    question: str
    count: int
    """Held-out questions looked at."""
    seen: float
    """Share whose structure itself is in training."""
    exact: float
    """Share for which the nearest structure's answer is the right one, letter by letter (but for case and blanks)."""
    word_f1: float
    """Mean F1 of the words of the nearest structure's answer."""
    frequent_exact: float
    """The same as `exact` for the most frequent training answer."""
    frequent_word_f1: float
    """The same as `word_f1` for the most frequent training answer."""

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in vars(self).items()}


def measure(training: Sequence[Question], held_out: Sequence[Question], sample: int) -> list[Copying]:
    """Copying's score for each of the dozen most frequent held-out question texts, the most frequent first.

    A `sample` of the held-out questions is tried, chosen by the hash of their ids. Answers are copied only from
    training questions of the same text. Questions about several structures go by their first.
    """
    chosen = sorted(held_out, key=lambda question: hashlib.sha256(question.id.encode()).digest())[:sample]
    results = []
    for text, _ in Counter(question.question for question in chosen).most_common(_MOST_TEXTS):
        asked = [question for question in chosen if question.question == text]
        known = [question for question in training if question.question == text]
        if known:
            results.append(_measure_text(text, known, asked))
    return results


def _measure_text(text: str, training: list[Question], asked: list[Question]) -> Copying:
    copied = []
    for is_protein in (True, False):
        some = [question for question in asked if bool(question.proteins) == is_protein]
        known = [question for question in training if bool(question.proteins) == is_protein]
        if some and known:
            nearest = nearest_proteins if is_protein else nearest_molecules
            places = nearest([_structure(question) for question in known], [_structure(question) for question in some])
            copied += [(question, known[place]) for question, place in zip(some, places)]
    frequent = Counter(question.answer for question in training).most_common(1)[0][0]
    present = {_structure(question) for question in training}
    return Copying(
        text,
        len(copied),
        _mean([_structure(question) in present for question, _ in copied]),
        _mean([_plain(question.answer) == _plain(source.answer) for question, source in copied]),
        _mean([word_f1(source.answer, question.answer) for question, source in copied]),
        _mean([_plain(question.answer) == _plain(frequent) for question, _ in copied]),
        _mean([word_f1(frequent, question.answer) for question, _ in copied]),
    )


def _structure(question: Question) -> str:
    return (question.proteins or question.molecules or ("",))[0]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def word_f1(given: str, right: str) -> float:
    """F1 of the words two texts share, each as often as it occurs, case ignored (as SQuAD counts it)."""
    one, other = (Counter(re.findall(r"\w+", text.lower())) for text in (given, right))
    shared = sum((one & other).values())
    return 2 * shared / (one.total() + other.total()) if shared else 0.0


def nearest_proteins(training: Sequence[str], queries: Sequence[str]) -> list[int]:
    """For each query the number of the most similar training sequence (the first of equals)."""
    wanted = np.stack([_word_counts(sequence) for sequence in queries])
    occurs = np.zeros(wanted.shape[1], np.float32)
    for start in range(0, len(training), _ROWS_AT_ONCE):
        occurs += (np.stack([_word_counts(text) for text in training[start : start + _ROWS_AT_ONCE]]) > 0).sum(axis=0)
    weights = np.log((1 + len(training)) / (1 + occurs)).astype(np.float32)
    wanted = wanted * weights
    best, place = np.full(len(queries), -1.0, np.float32), np.zeros(len(queries), np.int64)
    for start in range(0, len(training), _ROWS_AT_ONCE):
        rows = np.stack([_word_counts(text) for text in training[start : start + _ROWS_AT_ONCE]]) * weights
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        similarity = wanted @ rows.T
        found = similarity.argmax(axis=1)
        better = similarity[np.arange(len(queries)), found] > best
        best[better] = similarity[np.arange(len(queries)), found][better]
        place[better] = start + found[better]
    return place.tolist()


def _word_counts(sequence: str) -> np.ndarray:
    """How often each of the 8,000 words of three residues occurs: float32 [8000]; others are not counted."""
    codes = np.full(256, -1, np.int64)
    codes[np.frombuffer(_RESIDUES.encode(), np.uint8)] = np.arange(len(_RESIDUES))
    residues = codes[np.frombuffer(sequence.upper().encode("ascii", "replace"), np.uint8)]
    first, second, third = residues[:-2], residues[1:-1], residues[2:]
    usable = (first >= 0) & (second >= 0) & (third >= 0)
    words = (first * 20 + second) * 20 + third
    return np.bincount(words[usable], minlength=8000).astype(np.float32)


def nearest_molecules(training: Sequence[str], queries: Sequence[str]) -> list[int]:
    """For each query the number of the most similar training molecule (the first of equals)."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    known = [generator.GetFingerprint(parse(smiles)) for smiles in training]
    return [
        int(np.argmax(DataStructs.BulkTanimotoSimilarity(generator.GetFingerprint(parse(smiles)), known)))
        for smiles in queries
    ]
