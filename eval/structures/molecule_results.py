"""Text-to-molecule metrics as suites report them, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.metrics.molecule_metrics import MoleculeScorer
from eval.metrics.overlap import overlap
from eval.results import Metric
from eval.structures.text_results import corpus_bleu_interval
from eval.trust.statistics import mean_metric

VERSION = "1"
NOTE = (
    "maccs, rdkit and morgan are means over valid molecules only, so a model that writes fewer may show higher ones: "
    "read them beside valid."
)


def molecule_metrics(
    predictions: Sequence[str], references: Sequence[str] | MoleculeScorer, seed: int = 0
) -> tuple[dict[str, Metric], dict[str, np.ndarray]]:
    """Metrics of SMILES against the right ones, and those of each: float64 [molecules], NaN for what has none.

    `exact` (InChI), `valid`, the Tanimoto similarities `maccs`, `rdkit` and `morgan` of valid molecules (left out where
    none is valid), `levenshtein` and `bleu` of characters. Raises `InputError` as `MoleculeScorer` does.
    """
    scorer = references if isinstance(references, MoleculeScorer) else MoleculeScorer(references)
    found = scorer.score(predictions)
    of_each = {
        "exact": found.exact.astype(np.float64),
        "valid": found.valid.astype(np.float64),
        "levenshtein": found.levenshtein.astype(np.float64),
        "maccs": found.maccs,
        "rdkit": found.rdkit,
        "morgan": found.morgan,
    }
    metrics: dict[str, Metric] = {}
    for name, values in of_each.items():
        counted = values[~np.isnan(values)]
        if len(counted):
            metrics[name] = mean_metric(
                counted, seed=seed, higher_is_better=name != "levenshtein", share=name in ("exact", "valid")
            )
    counts = overlap([text.strip() for text in predictions], scorer.references)
    metrics["bleu"] = Metric(found.bleu, *corpus_bleu_interval(counts, 4, seed), items=len(predictions))
    return metrics, of_each
