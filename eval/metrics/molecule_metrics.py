"""How near generated molecules are to the right ones: text-to-molecule metrics as MolT5 defines them.

BLEU is of characters, Levenshtein distance of characters over all pairs; a pair is valid where the prediction is a
molecule; it is exact where both have the same InChI; the three similarities are means over the valid pairs only, so a
model that writes fewer molecules may show higher ones: read them beside validity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from rdkit import Chem, DataStructs, rdBase
from rdkit.Chem import rdFingerprintGenerator, rdMolDescriptors

from align.molecules import MoleculeError, parse
from eval.metrics.overlap import corpus_bleu, overlap
from eval.metrics.text_metrics import check_pairs
from job.errors import InputError

_RDKIT = rdFingerprintGenerator.GetRDKitFPGenerator()
_MORGAN = rdFingerprintGenerator.GetMorganGenerator(radius=2)


@dataclass(frozen=True)
class MoleculeScores:
    """Scores of one set of molecules: the means, and each pair's own values."""

    bleu: float
    """Of characters, up to 4, over all pairs at once, 0 to 1."""
    valid: np.ndarray
    """bool [pairs]: the prediction is a molecule."""
    exact: np.ndarray
    """bool [pairs]: and it has the reference's InChI."""
    levenshtein: np.ndarray
    """int64 [pairs], characters to change."""
    maccs: np.ndarray
    """float64 [pairs]: Tanimoto similarity of MACCS keys; NaN where the prediction is no molecule."""
    rdkit: np.ndarray
    """The same of RDKit's path fingerprint (2,048 bits)."""
    morgan: np.ndarray
    """The same of Morgan's with radius 2, counted, not folded into bits."""

    def to_json(self) -> dict[str, float | None]:
        """Means; the similarities are over valid pairs, None where there are none."""
        similarities = {name: getattr(self, name)[self.valid] for name in ("maccs", "rdkit", "morgan")}
        return {
            "count": len(self.valid),
            "bleu": self.bleu,
            "exact": float(self.exact.mean()),
            "levenshtein": float(self.levenshtein.mean()),
            "valid": float(self.valid.mean()),
            **{name: float(values.mean()) if len(values) else None for name, values in similarities.items()},
        }


class MoleculeScorer:
    """Scores predictions against references, which are parsed and described once for all systems that are scored."""

    def __init__(self, references: Sequence[str]) -> None:
        """`references` are SMILES. Raises `InputError` naming the first that is no molecule."""
        self.references = [reference.strip() for reference in references]
        self._molecules: dict[str, _Molecule] = {}
        for number, reference in enumerate(self.references, 1):
            if reference not in self._molecules:
                try:
                    self._molecules[reference] = _Molecule(parse(reference))
                except MoleculeError as error:
                    raise InputError(f"reference {number}: {error}") from None

    def score(self, predictions: Sequence[str]) -> MoleculeScores:
        """Score each prediction against the reference in the same place.

        An empty prediction, or one with blanks in it, is no molecule (RDKit alone would take it for one). Raises
        `InputError` where predictions and references do not pair up.
        """
        predictions = [prediction.strip() for prediction in predictions]
        check_pairs(predictions, self.references)
        pairs = len(predictions)
        valid, exact = np.zeros(pairs, bool), np.zeros(pairs, bool)
        similarity = np.full((3, pairs), np.nan)
        known: dict[str, _Molecule | None] = dict(self._molecules)
        for place, (prediction, reference) in enumerate(zip(predictions, self.references)):
            if prediction not in known:
                known[prediction] = _read(prediction)
            molecule, right = known[prediction], self._molecules[reference]
            if molecule is None:
                continue
            valid[place] = True
            # Equal InChIs name the same heavy atoms; an InChI that could not be made is empty, and equals none.
            if molecule.heavy_atoms == right.heavy_atoms:
                exact[place] = molecule is right or (molecule.inchi == right.inchi != "")
            similarity[0, place] = DataStructs.TanimotoSimilarity(molecule.maccs, right.maccs)
            similarity[1, place] = DataStructs.TanimotoSimilarity(molecule.rdkit, right.rdkit)
            similarity[2, place] = DataStructs.TanimotoSimilarity(molecule.morgan, right.morgan)
        return MoleculeScores(
            corpus_bleu(overlap(predictions, self.references), 4),
            valid,
            exact,
            process.cpdist(predictions, self.references, scorer=Levenshtein.distance, dtype=np.int64),
            *similarity,
        )


def _read(smiles: str) -> _Molecule | None:
    try:
        return _Molecule(parse(smiles))
    except MoleculeError:
        return None


class _Molecule:
    """What is compared, made when it is first asked for."""

    def __init__(self, molecule: Chem.Mol) -> None:
        self._molecule = molecule
        self.heavy_atoms: int = molecule.GetNumHeavyAtoms()

    @cached_property
    def inchi(self) -> str:
        """Empty where there is none."""
        with rdBase.BlockLogs():
            return Chem.MolToInchi(self._molecule)

    @cached_property
    def maccs(self) -> DataStructs.ExplicitBitVect:
        """166 MACCS keys."""
        return rdMolDescriptors.GetMACCSKeysFingerprint(self._molecule)

    @cached_property
    def rdkit(self) -> DataStructs.ExplicitBitVect:
        """Paths of up to 7 bonds."""
        return _RDKIT.GetFingerprint(self._molecule)

    @cached_property
    def morgan(self) -> DataStructs.UIntSparseIntVect:
        """Counts of circular neighbourhoods."""
        return _MORGAN.GetSparseCountFingerprint(self._molecule)
