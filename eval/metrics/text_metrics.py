"""How near generated texts are to the right ones: captions of molecules, answers about proteins, short answers.

BLEU and METEOR exist in this field under two definitions that differ by several points on the very same texts, so a
score never goes without the name of its own:

- `molt5`: BLEU of the whole corpus without smoothing, over SciBERT's word-pieces (MolT5, Edwards et al. 2022; also
  BioMedGPT's first code and most tables of ChEBI-20).
- `openbiomed-v2`: mean of the BLEU of each text with smoothing method 1, over the word-pieces of `bert-base-uncased`
  (the second version of OpenBioMed).

Both take METEOR over the same pieces, and ROUGE over words without stemming. Where another tokenizer than the
definition's has to stand in, that is part of the score and of its note.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.metrics.meteor import Meteor
from eval.metrics.overlap import Overlap, corpus_bleu, overlap, rouge, sentence_bleu
from eval.metrics.word_pieces import BERT, SCIBERT, WordPieces
from job.errors import InputError


@dataclass(frozen=True)
class Definition:
    """What BLEU and METEOR mean."""

    name: str
    vocabulary: str
    """Name of the word-pieces it calls for."""
    whole_corpus: bool
    """BLEU over all texts at once without smoothing, or else the mean over texts with smoothing method 1."""


DEFINITIONS = {
    definition.name: definition
    for definition in (
        Definition("molt5", SCIBERT, whole_corpus=True),
        Definition("openbiomed-v2", BERT, whole_corpus=False),
    )
}


@dataclass(frozen=True)
class TextScores:
    """Scores of one set of texts under one definition; all are shares, 0 to 1."""

    definition: Definition
    tokenizer: WordPieces
    wordnet_version: str | None
    """None where there is no WordNet, and so no METEOR."""
    count: int
    scores: dict[str, float]
    """`bleu_2`, `bleu_4`, `rouge_1`, `rouge_2`, `rouge_l` and, with WordNet, `meteor`."""
    of_each: dict[str, np.ndarray]
    """float64 [count]: each text's own ROUGE and METEOR and, where BLEU is a mean over texts, BLEU."""
    counts: Overlap
    """What BLEU is made of."""

    @property
    def stands_in(self) -> bool:
        """Whether the tokenizer is another than the definition's."""
        return self.tokenizer.name != self.definition.vocabulary

    @property
    def note(self) -> str:
        """What a table says below these scores."""
        sha256 = f"sha256 {self.tokenizer.sha256[:12]}" if self.tokenizer.sha256 else "no vocabulary"
        parts = [f"definition {self.definition.name}; tokenizer {self.tokenizer.name} ({sha256})"]
        if self.stands_in:
            parts.append(
                f"stands in for {self.definition.vocabulary}: BLEU and METEOR do not compare with published ones"
            )
        parts.append(f"WordNet {self.wordnet_version}" if self.wordnet_version else "no METEOR, for want of WordNet")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """For `results.json`, without the scores of each text."""
        return {
            "definition": self.definition.name,
            "tokenizer": {
                "name": self.tokenizer.name,
                "sha256": self.tokenizer.sha256,
                "stands_in_for": self.definition.vocabulary if self.stands_in else None,
            },
            "wordnet": self.wordnet_version,
            "count": self.count,
            **self.scores,
        }


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    definition: str,
    tokenizer: WordPieces,
    meteor: Meteor | None = None,
) -> TextScores:
    """Score each prediction against the one reference in the same place.

    `tokenizer` comes from `eval.metrics.word_pieces.read_tokenizer`; without `meteor` (which needs WordNet) there is no
    METEOR. Raises `InputError` for a definition that does not exist, and for texts that are none or do not pair up.
    """
    if definition not in DEFINITIONS:
        raise InputError(f"there is no definition {definition!r} of text metrics; choose of {', '.join(DEFINITIONS)}")
    check_pairs(predictions, references)
    chosen = DEFINITIONS[definition]
    of_each = rouge(predictions, references)
    pieces, reference_pieces = tokenizer.encode(predictions), tokenizer.encode(references)
    counts = overlap(pieces, reference_pieces)
    bleu: dict[str, float] = {}
    for orders in (2, 4):
        if chosen.whole_corpus:
            bleu[f"bleu_{orders}"] = corpus_bleu(counts, orders)
        else:
            of_each[f"bleu_{orders}"] = sentence_bleu(counts, orders)
    if meteor is not None:
        of_each["meteor"] = meteor.scores(pieces, reference_pieces)
    scores = bleu | {name: float(np.mean(values)) for name, values in of_each.items()}
    order = ("bleu_2", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor")
    return TextScores(
        chosen,
        tokenizer,
        meteor.wordnet.version if meteor is not None else None,
        len(references),
        {name: scores[name] for name in order if name in scores},
        of_each,
        counts,
    )


def check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    """Raise `InputError` unless there is one prediction for each reference, and at least one."""
    if len(predictions) != len(references):
        raise InputError(f"{len(predictions):,} predictions for {len(references):,} references; each needs one")
    if not references:
        raise InputError("there are no predictions to score; the file of predictions is empty")


@dataclass(frozen=True)
class AnswerScores:
    """Short answers against the right ones; float64 [count], 0 to 1."""

    exact_match: np.ndarray
    """Equal after SQuAD's normalisation."""
    f1: np.ndarray
    """F1 of the words, each as often as it occurs, after the same normalisation."""
    same_text: np.ndarray
    """Equal but for case and blanks: unlike SQuAD's rule, it tells -1.5 from 15."""

    def to_json(self) -> dict[str, float]:
        """Means, for `results.json`."""
        return {name: float(np.mean(values)) for name, values in vars(self).items()} | {"count": len(self.f1)}


def score_answers(predictions: Sequence[Any], references: Sequence[Any]) -> AnswerScores:
    """Exact match and F1 of short answers as SQuAD 2.0's evaluation counts them; numbers are taken as they print.

    OpenBioMed's F1 for ChEMBL-QA counts each word once however often it occurs; ours is SQuAD's. Raises `InputError`
    for answers that are none or do not pair up.
    """
    check_pairs(predictions, references)
    pairs = [(str(prediction), str(reference)) for prediction, reference in zip(predictions, references)]
    normalised = [(normalise(prediction), normalise(reference)) for prediction, reference in pairs]
    return AnswerScores(
        np.array([float(prediction == reference) for prediction, reference in normalised]),
        np.array([_word_f1(prediction.split(), reference.split()) for prediction, reference in normalised]),
        np.array([float(_plain(prediction) == _plain(reference)) for prediction, reference in pairs]),
    )


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(answer: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single blanks (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def _word_f1(prediction: list[str], reference: list[str]) -> float:
    if not prediction or not reference:
        return float(prediction == reference)
    shared = (Counter(prediction) & Counter(reference)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(reference)
    return 2 * precision * recall / (precision + recall)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
