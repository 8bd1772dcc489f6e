"""Text metrics as suites report them: every definition at once, each number under a name that says its definition."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics.overlap import Overlap
from eval.metrics.text_metrics import DEFINITIONS, AnswerScores, score, score_answers
from eval.metrics.word_pieces import WordPieces, read_tokenizer
from eval.results import Metric
from eval.trust.statistics import RESAMPLES, mean_metric
from job.errors import InputError

VERSION = "1"
"""Of what is reported; a change of definition changes it."""

_NUMBERS_AT_ONCE = 2_000_000


def add_options(parser: argparse.ArgumentParser) -> None:
    """The files that text metrics need."""
    parser.add_argument(
        "--vocabulary",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="word-pieces that BLEU and METEOR count in: vocab.txt or tokenizer.json of SciBERT (definition molt5) and "
        "of bert-base-uncased (definition openbiomed-v2), or folders of them; another one stands in, which is said",
    )
    parser.add_argument(
        "--wordnet", type=Path, metavar="PATH", help="NLTK's wordnet.zip or its folder, for METEOR (default: no METEOR)"
    )


@dataclass(frozen=True)
class TextScorer:
    """Scores generated texts; make one with `read_scorer`."""

    tokenizers: dict[str, WordPieces]
    """by definition"""
    meteor: Any
    """`eval.metrics.meteor.Meteor`, or None without WordNet"""

    def score(
        self, predictions: Sequence[str], references: Sequence[str], seed: int = 0
    ) -> tuple[dict[str, Metric], dict[str, np.ndarray]]:
        """Metrics of one set of texts, all shares of 1, and those of each text: float64 [texts].

        ROUGE, which all definitions agree on, goes by its own name; BLEU and METEOR by `molt5:bleu_2` and the like.
        Every metric has its interval. Raises `InputError` where texts do not pair up or there are none.
        """
        metrics: dict[str, Metric] = {}
        of_each: dict[str, np.ndarray] = {}
        for definition, tokenizer in self.tokenizers.items():
            found = score(predictions, references, definition, tokenizer, self.meteor)
            for name, value in found.scores.items():
                full = name if name.startswith("rouge") else f"{definition}:{name}"
                if full in metrics:
                    continue
                if name in found.of_each:
                    of_each[full] = found.of_each[name]
                    metrics[full] = mean_metric(found.of_each[name], seed=seed)
                else:
                    orders = int(name.removeprefix("bleu_"))
                    bounds = corpus_bleu_interval(found.counts, orders, seed)
                    metrics[full] = Metric(value, *bounds, items=len(predictions))
        first = ("rouge_l", "rouge_1", "rouge_2")
        return {name: metrics[name] for name in (*first, *metrics)}, of_each

    def to_json(self) -> dict[str, Any]:
        """What the numbers depend on besides the texts."""
        return {
            "version": VERSION,
            "definitions": {
                name: {
                    "tokenizer": tokenizer.name,
                    "sha256": tokenizer.sha256,
                    "stands_in_for": _stands_in_for(name, tokenizer),
                }
                for name, tokenizer in self.tokenizers.items()
            },
            "wordnet": self.meteor.wordnet.version if self.meteor is not None else None,
        }

    @property
    def notes(self) -> list[str]:
        """Sentences for below the table."""
        notes = []
        for name, tokenizer in self.tokenizers.items():
            sha256 = f"sha256 {tokenizer.sha256[:12]}" if tokenizer.sha256 else "no vocabulary file"
            note = f"{name}: BLEU and METEOR over the pieces of {tokenizer.name} ({sha256})"
            if wanted := _stands_in_for(name, tokenizer):
                note += f", which stands in for {wanted}: they do not compare with published ones"
            notes.append(f"{note}.")
        if self.meteor is None:
            notes.append("No METEOR: it needs WordNet (--wordnet).")
        return notes


def _stands_in_for(definition: str, tokenizer: WordPieces) -> str | None:
    wanted = DEFINITIONS[definition].vocabulary
    return wanted if tokenizer.name != wanted else None


def read_scorer(vocabularies: Sequence[Path], wordnet: Path | None) -> TextScorer:
    """A scorer under all definitions.

    Args:
        vocabularies: files or folders of word-pieces. Each definition takes its own where it is among them (whatever
            the file is called), or else the first, or else BERT's words without pieces.
        wordnet: see `eval.metrics.meteor.read_wordnet`.

    Raises `InputError` where a file is missing or is none of its kind.
    """
    read = [read_tokenizer(file) for path in vocabularies for file in _vocabulary_files(Path(path))]
    known = {tokenizer.name: tokenizer for tokenizer in reversed(read)}
    stand_in = read[0] if read else read_tokenizer(None)
    tokenizers = {name: known.get(definition.vocabulary, stand_in) for name, definition in DEFINITIONS.items()}
    if wordnet is None:
        return TextScorer(tokenizers, None)
    from eval.metrics.meteor import Meteor, read_wordnet

    return TextScorer(tokenizers, Meteor(read_wordnet(wordnet)))


def _vocabulary_files(path: Path) -> list[Path]:
    """A tokenizer's own file or folder, or all vocabularies in a folder of several."""
    if not path.is_dir() or (path / "vocab.txt").is_file() or (path / "tokenizer.json").is_file():
        return [path]
    files = sorted(path.glob("*.txt")) or [found.parent for found in sorted(path.glob("*/vocab.txt"))]
    if not files:
        raise InputError(f"{path} has neither vocab.txt nor tokenizer.json, nor folders with one; give a vocabulary")
    return files


def answer_metrics(
    predictions: Sequence[str], references: Sequence[str], seed: int = 0
) -> tuple[dict[str, Metric], dict[str, np.ndarray]]:
    """`exact_match` and `f1` by SQuAD's rule and `same_text` (equal but for case and blanks), with intervals."""
    found: AnswerScores = score_answers(predictions, references)
    of_each = dict(vars(found))
    return {name: mean_metric(values, seed=seed, share=name != "f1") for name, values in of_each.items()}, of_each


def corpus_bleu_interval(counts: Overlap, orders: int, seed: int = 0) -> tuple[float, float]:
    """Bounds of the 95 % percentile bootstrap interval of `eval.metrics.overlap.corpus_bleu`, the texts resampled.

    It is a function of sums over texts, so sums are resampled: of shared and of possible n-grams and of lengths.
    """
    columns = np.column_stack(
        [
            counts.matches[:, :orders],
            counts.possible[:, :orders],
            counts.prediction_lengths,
            counts.reference_lengths,
        ]
    ).astype(np.float64)
    texts = len(columns)
    random = np.random.default_rng(seed)
    scores = np.empty(RESAMPLES)
    batch = max(1, _NUMBERS_AT_ONCE // texts)
    for start in range(0, RESAMPLES, batch):
        rows = min(batch, RESAMPLES - start)
        drawn = random.integers(0, texts, (rows, texts)) + np.arange(rows)[:, None] * texts
        times = np.bincount(drawn.ravel(), minlength=rows * texts).reshape(rows, texts)
        scores[start : start + rows] = _bleu_of_sums(times @ columns, orders)
    low, high = np.percentile(scores, (2.5, 97.5))
    return float(low), float(high)


def _bleu_of_sums(sums: np.ndarray, orders: int) -> np.ndarray:
    """BLEU [resamples] of sums [resamples, 2 x orders + 2]."""
    matches, possible = sums[:, :orders], sums[:, orders : 2 * orders]
    length, reference_length = sums[:, -2], sums[:, -1]
    with np.errstate(divide="ignore"):
        precision = np.exp(np.log(matches / possible).mean(axis=1))  # 0 where an order has no match
    return precision * np.exp(np.minimum(0, 1 - reference_length / np.maximum(length, 1)))
