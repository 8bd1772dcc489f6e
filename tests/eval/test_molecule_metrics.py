"""Molecule metrics: the predictions that MolT5 shipped, and MolT5's own way of computing them."""

import csv
import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import AllChem, MACCSkeys

from eval.metrics.molecule_metrics import MoleculeScorer
from job.errors import InputError


@pytest.fixture(scope="module")
def molecules(real_data: Path) -> tuple[list[str], list[str]]:
    """MolT5-base's molecules for the captions of the ChEBI-20 test set, and the right ones."""
    with gzip.open(
        real_data / "molt5_predictions" / "molt5-base-caption2smiles.txt.gz", "rt", encoding="utf-8"
    ) as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["output"] for row in rows], [row["ground truth"] for row in rows]


@pytest.mark.real
def test_golden_values(molecules):
    # Measured on the shipped file. MolT5's paper has lower similarities and validity: it is not the published run.
    predictions, references = molecules
    scores = MoleculeScorer(references).score(predictions).to_json()
    assert scores.pop("count") == 3300
    assert {name: round(value, 4) for name, value in scores.items()} == {
        "bleu": 0.7833,
        "exact": 0.0818,
        "levenshtein": 24.8458,
        "valid": 0.7864,
        "maccs": 0.7881,
        "rdkit": 0.6599,
        "morgan": 0.602,
    }


@pytest.mark.real
def test_equal_to_the_plain_loop(molecules):
    predictions, references = (column[:300] for column in molecules)
    scores = MoleculeScorer(references).score(predictions)
    for place, (prediction, reference) in enumerate(zip(predictions, references)):
        with rdBase.BlockLogs():
            molecule, right = Chem.MolFromSmiles(prediction), Chem.MolFromSmiles(reference)
            assert scores.valid[place] == (molecule is not None)
            if molecule is None:
                assert math.isnan(scores.maccs[place]) and not scores.exact[place]
                continue
            assert scores.exact[place] == (Chem.MolToInchi(molecule) == Chem.MolToInchi(right))
            for name, fingerprint in (
                ("maccs", MACCSkeys.GenMACCSKeys),
                ("rdkit", Chem.RDKFingerprint),
                ("morgan", lambda molecule: AllChem.GetMorganFingerprint(molecule, 2)),
            ):
                expected = DataStructs.TanimotoSimilarity(fingerprint(molecule), fingerprint(right))
                assert getattr(scores, name)[place] == expected
        assert scores.levenshtein[place] == levenshtein(prediction, reference)


def levenshtein(one: str, other: str) -> int:
    """Wagner and Fischer's table, row by row."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        before, row[0] = row[0], place
        for column, right in enumerate(other, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (letter != right))
    return row[-1]


def test_same_molecule_written_otherwise():
    scorer = MoleculeScorer(["OCC", "C[C@H](N)C(=O)O", "[Na+]"])
    scores = scorer.score(["CCO", "C[C@@H](N)C(=O)O", "[Na+]"])
    assert scores.exact.tolist() == [True, False, True]
    assert scores.levenshtein.tolist() == [2, 1, 0]
    assert scores.morgan.tolist() == [1, 1, 1]  # as published: without chirality
    assert scores.rdkit[2] == 0  # an ion has no paths: nothing is shared with itself, here as in RDKit


def test_what_is_no_molecule():
    scores = MoleculeScorer(["CCO"] * 4).score(["", "CCO CCO", "C1CC", " CCO "])
    assert scores.valid.tolist() == [False, False, False, True]
    assert scores.exact.tolist() == [False, False, False, True]
    assert np.isnan(scores.maccs).tolist() == [True, True, True, False]
    nothing = MoleculeScorer(["CCO"]).score(["C1CC"]).to_json()
    assert nothing["maccs"] is None and nothing["valid"] == 0


def test_bad_input():
    with pytest.raises(InputError, match="reference 2: "):
        MoleculeScorer(["CCO", "C1CC"])
    with pytest.raises(InputError, match="1 predictions for 2 references"):
        MoleculeScorer(["CCO", "C"]).score(["C"])
