"""Builds of real questions, small enough for a test."""

import csv
from pathlib import Path

from align.question_shards import SPLITS, STAGE, write_split
from align.questions import MOLECULE_QUESTION, Question
from job import manifest


def chebi_questions(real_data, count=None, first=0):
    """Real ChEBI-20 rows as questions (without atom counts), in file order."""
    with open(real_data / "chebi20" / "train_open.txt", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE))
    stop = len(rows) if count is None else first + count
    return [
        Question(f"chebi20:{row['CID']}", MOLECULE_QUESTION, row["description"], (row["SMILES"],))
        for row in rows[first:stop]
    ]


def write_set(directory: Path, questions, held_out=(), **sizes):
    """A finished build that holds exactly these questions."""
    rows = {"train": questions, "validation": held_out, "test": ()}
    splits = {
        split: write_split(directory / split, (question.to_json() for question in rows[split]), **sizes)
        for split in SPLITS
    }
    manifest.write(
        directory, STAGE, {}, [], {"splits": {split: [vars(info) for info in infos] for split, infos in splits.items()}}
    )
    return directory
