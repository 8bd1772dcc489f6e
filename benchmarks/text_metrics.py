"""Text metrics of 3,300 captions, against the straightforward loop over NLTK and rouge-score.

    OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false python benchmarks/text_metrics.py --data DIR

Both sides score MolT5-base's captions of the ChEBI-20 test set under both definitions of `eval.metrics.text_metrics`.
The loop is the one that MolT5's and OpenBioMed's evaluation code runs, text by text: the tokenizer (without its Python
wrapper of transformers, and without padding to 512 pieces), `RougeScorer.score`, `corpus_bleu` or `sentence_bleu`, and
`meteor_score`. WordNet is loaded before, and the words of these texts have been looked up in it. Every score of every
text must be equal to the last bit, or the benchmark fails.
"""

import argparse
import csv
import gzip
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import measure
import numpy as np
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import corpus_bleu as nltk_corpus_bleu
from nltk.translate.bleu_score import sentence_bleu as nltk_sentence_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import BertWordPieceTokenizer

from eval.metrics.meteor import Meteor, WordNet, read_wordnet
from eval.metrics.overlap import corpus_bleu, overlap, rouge, sentence_bleu
from eval.metrics.text_metrics import DEFINITIONS
from eval.metrics.word_pieces import BERT, SCIBERT, read_tokenizer

OURS, PEER = "eval.metrics.text_metrics", "NLTK and rouge-score"
WEIGHTS = {2: (0.5, 0.5), 4: (0.25, 0.25, 0.25, 0.25)}
VOCABULARIES = {SCIBERT: "scibert_scivocab_uncased.txt", BERT: "bert_base_uncased.txt"}
Texts = list[str]
Pieces = list[list[str]]


def our_pieces(predictions: Texts, references: Texts, vocabulary: Path) -> list[Pieces]:
    tokenizer = read_tokenizer(vocabulary)
    return [tokenizer.encode(predictions), tokenizer.encode(references)]


def their_pieces(predictions: Texts, references: Texts, vocabulary: Path) -> list[Pieces]:
    tokenizer = BertWordPieceTokenizer(str(vocabulary), lowercase=True)
    tokenizer.enable_truncation(512)
    return [
        [tokenizer.encode(text, add_special_tokens=False).tokens for text in column]
        for column in (predictions, references)
    ]


def our_rouge(predictions: Texts, references: Texts) -> list[list[float]]:
    return [values.tolist() for values in rouge(predictions, references).values()]


def their_rouge(predictions: Texts, references: Texts) -> list[list[float]]:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(prediction, reference) for prediction, reference in zip(predictions, references)]
    return [[score[name].fmeasure for score in scores] for name in ("rouge1", "rouge2", "rougeL")]


def our_bleu(pieces: Pieces, reference_pieces: Pieces, whole_corpus: bool) -> list[list[float]]:
    counts = overlap(pieces, reference_pieces)
    if whole_corpus:
        return [[corpus_bleu(counts, orders)] for orders in WEIGHTS]
    return [sentence_bleu(counts, orders).tolist() for orders in WEIGHTS]


def their_bleu(pieces: Pieces, reference_pieces: Pieces, whole_corpus: bool) -> list[list[float]]:
    if whole_corpus:
        references = [[reference] for reference in reference_pieces]
        return [[nltk_corpus_bleu(references, pieces, weights)] for weights in WEIGHTS.values()]
    method1 = SmoothingFunction().method1
    return [
        [nltk_sentence_bleu([right], given, weights, method1) for given, right in zip(pieces, reference_pieces)]
        for weights in WEIGHTS.values()
    ]


def our_meteor(pieces: Pieces, reference_pieces: Pieces, wordnet: WordNet) -> list[list[float]]:
    fresh = WordNet(wordnet.reader)  # remembers no synonyms from the repeat before
    return [Meteor(fresh).scores(pieces, reference_pieces).tolist()]


def their_meteor(pieces: Pieces, reference_pieces: Pieces, wordnet: WordNet) -> list[list[float]]:
    return [[meteor_score([right], given, wordnet=wordnet.reader) for given, right in zip(pieces, reference_pieces)]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds molt5_predictions, wordpiece_vocabularies, wordnet"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    with gzip.open(
        arguments.data / "molt5_predictions" / "molt5-base-smiles2caption.txt.gz", "rt", encoding="utf-8", newline=""
    ) as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [row["output"] for row in rows], [row["ground truth"] for row in rows]
    wordnet = read_wordnet(arguments.data / "wordnet" / "wordnet.zip")

    seconds: dict[tuple[str, str, str], list[float]] = {}
    for definition in DEFINITIONS.values():
        vocabulary = arguments.data / "wordpiece_vocabularies" / VOCABULARIES[definition.vocabulary]
        pieces, references = our_pieces(*texts, vocabulary)
        parts = {
            "word-pieces": ((our_pieces, their_pieces), (*texts, vocabulary)),
            "ROUGE": ((our_rouge, their_rouge), texts),
            "BLEU": ((our_bleu, their_bleu), (pieces, references, definition.whole_corpus)),
            "METEOR": ((our_meteor, their_meteor), (pieces, references, wordnet)),
        }
        for (_, peer), given in parts.values():
            peer(*given)  # once for WordNet's reader, which remembers synsets, and for the processor's caches
        for _ in range(arguments.repeats):
            for part, (sides, given) in parts.items():
                results = []
                for name, function in zip((OURS, PEER), sides):
                    start = time.process_time()
                    results.append(function(*given))
                    seconds.setdefault((definition.name, part, name), []).append(time.process_time() - start)
                if results[0] != results[1]:
                    sys.exit(f"{definition.name}, {part}: the scores differ")

    table, figures = [], {}
    every = ("word-pieces", "ROUGE", "BLEU", "METEOR")
    for definition in DEFINITIONS:
        for part, names in [*((part, (part,)) for part in every), ("metrics", every[1:]), ("all", every)]:
            ours, theirs = (
                np.sum([seconds[definition, name, side] for name in names], axis=0) for side in (OURS, PEER)
            )
            ratio = float(np.median(theirs / ours))
            figures[f"{definition} {part}"] = {"ours": ours.tolist(), "theirs": theirs.tolist(), "ratio": ratio}
            table.append(
                [f"{definition}, {part}", *(f"{np.median(side):.2f}" for side in (theirs, ours)), f"{ratio:.1f}"]
            )
    print(measure.machine("nltk", "rouge-score", "rapidfuzz", "numpy"))
    print(f"{len(rows):,} texts; all scores equal to the last bit\n")
    print(measure.markdown(["CPU seconds, median", PEER, OURS, "ratio"], table))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
