"""`python -m eval score FILE --out DIR`: score generated texts or molecules that lie in a file, without any model.

A file has three columns between tabs, as MolT5 publishes its predictions: `SMILES`, `ground truth`, `output` for texts
about molecules, or `description`, `ground truth`, `output` for molecules (SMILES). What comes out is what the suites
write, so that reports and `compare` read it.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.readers.text import read_table
from data_shards.articles import Reject
from job.errors import InputError
from job.files import sha256_file

if TYPE_CHECKING:
    from eval.results import TaskResult
    from eval.structures.text_results import TextScorer

VERSION = "1"
_TRUTH, _OUTPUT = "ground truth", "output"

_SHIPPED = {
    "d476260fe3c485b4177e222dd98c3d24a0b7f90dbc3655934bbe42c1a33417a3": "These are the captions that MolT5-base's "
    "authors ship, which are not the run that its paper reports: ROUGE is the paper's 63.4, 48.5 and 57.8, but under "
    "its own definition BLEU-2, BLEU-4 and METEOR are not its 54.0, 45.7 and 56.9.",
    "f43ab341510e5bf24ebcbe42af386f1ecfeb45ecd9d841ff03a478918957269a": "These are the molecules that MolT5-base's "
    "authors ship, which are not the run that its paper reports: more of them are valid and they are more similar.",
}
"""By `Predictions.digest`: what is known of files that others published."""


@dataclass(frozen=True)
class Predictions:
    """A file of predictions."""

    path: Path
    of_molecules: bool
    """whether the outputs are SMILES"""
    inputs: list[str]
    references: list[str]
    outputs: list[str]

    @property
    def name(self) -> str:
        """The file's, without suffixes."""
        return self.path.name.split(".")[0]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the rows, however the file is compressed."""
        rows = ["\t".join(row) for row in zip(self.inputs, self.references, self.outputs)]
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def main(arguments: Sequence[str]) -> int:
    """The verb."""
    from eval.structures import text_results

    parser = argparse.ArgumentParser(
        prog="python -m eval score",
        description="Score predictions in a file, without a model: texts about molecules (BLEU, ROUGE, METEOR under "
        "every named definition), or molecules for texts (validity, exact match, similarities).",
        epilog="a file has three columns between tabs and a header line:\n"
        "  SMILES       ground truth  output     texts about molecules (any first column but the next will do)\n"
        "  description  ground truth  output     molecules, as SMILES\n\n"
        "example: python -m eval score molt5-base-smiles2caption.txt --vocabulary scibert/vocab.txt bert/vocab.txt "
        "--wordnet wordnet.zip --out scores",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="predictions; also .gz or .zst")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of results and report")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals (default 0)")
    text_results.add_options(parser)
    options = parser.parse_args(arguments)

    from eval.reports import report

    predictions = [read(path) for path in options.files]
    names = [one.name for one in predictions]
    if len(set(names)) < len(names):
        raise InputError(f"files have the same names ({', '.join(names)}); rename one")
    scorer = text_results.read_scorer(options.vocabulary, options.wordnet)
    results = {one.name: score(one, scorer, options.seed) for one in predictions}
    write(options, results, predictions)
    report.write(options.out)
    report.print_tables(options.out)
    print(f"results: {options.out / 'results.json'}")
    return 0


def read(path: Path) -> Predictions:
    """Read a file of predictions; raises `InputError` where it is missing, has other columns, or has a torn row."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; a file of predictions is needed")
    rows = [row for _, row in read_table(path, _refuse(path), delimiter="\t", quoted=False)]
    if not rows:
        raise InputError(f"{path} has a header but no predictions")
    columns = list(rows[0])
    if len(columns) != 3 or columns[1:] != [_TRUTH, _OUTPUT]:
        raise InputError(
            f"{path} has the columns {', '.join(columns)}; needed are SMILES (or description), {_TRUTH}, {_OUTPUT}, "
            "between tabs"
        )
    references = [row[_TRUTH] for row in rows]
    empty = next((number for number, text in enumerate(references, 2) if not text.strip()), None)
    if empty is not None:
        raise InputError(f"{path} line {empty} has no ground truth")
    return Predictions(
        path,
        columns[0] == "description",
        [row[columns[0]] for row in rows],
        references,
        [row[_OUTPUT] for row in rows],
    )


def _refuse(path: Path) -> Any:
    def refuse(reject: Reject) -> None:
        raise InputError(f"{path} {reject.source_position}: {reject.detail or reject.reason}")

    return refuse


def score(predictions: Predictions, scorer: TextScorer, seed: int) -> TaskResult:
    """Metrics of a file, with those of each row."""
    from eval.results import TaskResult
    from eval.structures.molecule_results import NOTE, molecule_metrics

    # Of what was to be said alone, so that two files can be compared; the checksum of each stands with the models.
    references = hashlib.sha256("\n".join([*predictions.inputs, *predictions.references]).encode()).hexdigest()
    made_by: dict[str, Any] = {"references_sha256": references, "seed": seed}
    if predictions.of_molecules:
        metrics, of_each = molecule_metrics(predictions.outputs, predictions.references, seed)
        notes = [NOTE]
    else:
        metrics, of_each = scorer.score(predictions.outputs, predictions.references, seed)
        made_by["scoring"] = scorer.to_json()
        notes = scorer.notes
    if not any(text.strip() for text in predictions.outputs):
        notes = ["All answers are empty.", *notes]
    if predictions.digest in _SHIPPED:
        notes = [_SHIPPED[predictions.digest], *notes]
    first = next(iter(metrics))
    items = [
        {
            "id": str(number + 1),
            "input": predictions.inputs[number],
            "reference": predictions.references[number],
            "answer": predictions.outputs[number],
            "score": float(of_each[first][number]),
            "scores": {name: _number(values[number]) for name, values in of_each.items()},
        }
        for number in range(len(predictions.outputs))
    ]
    task = "caption2smiles" if predictions.of_molecules else "smiles2caption"  # as MolT5 calls them
    return TaskResult(task, VERSION, metrics, items, made_by, notes=notes)


def _number(value: Any) -> float | None:
    return None if value != value else float(value)


def write(options: argparse.Namespace, results: dict[str, TaskResult], predictions: Sequence[Predictions]) -> None:
    """Write `results.json` and the items, as `eval.run` does for models."""
    from eval.run import write_results

    models = {
        one.name: {"directory": str(one.path), "checksum": sha256_file(one.path), "manifest": None}
        for one in predictions
    }
    chosen = {
        "suite": "score",
        "seed": options.seed,
        "data": [str(path) for path in options.files],
        "vocabulary": [str(path) for path in options.vocabulary],
        "wordnet": str(options.wordnet) if options.wordnet else None,
    }
    write_results(options.out, "score", chosen, {name: {found.task: found} for name, found in results.items()}, models)
