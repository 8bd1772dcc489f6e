r"""Molecules as graphs: SMILES to the integer atoms and bonds that public molecule encoders were trained on.

The vocabulary is the one of pretrain-gnns (Hu et al. 2020), which GraphMVP and BioMedGPT share. An atom is its element
and its chirality, a bond its type and its direction; hydrogens that SMILES leaves implicit are no atoms. RDKit knows
more chiralities and bond types than the vocabulary has rows. They are mapped, never dropped, so that a molecule's graph
is always its real one, and every mapping is counted in `MoleculeGraph.substituted`:

- element `*` (a dummy atom) is the vocabulary's "other element";
- allenes, square planar, trigonal bipyramidal, octahedral and unknown chirality are "unspecified";
- quadruple and higher bonds are triple, one-and-a-half bonds aromatic; dative, ionic, hydrogen, zero-order and unknown
  bonds are single;
- bond directions other than the two of a double bond's neighbours (`/` and `\`) are "none".

Salts and mixtures are one graph of several fragments; a single atom is a graph without bonds.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from rdkit import Chem, rdBase

from data_shards.readers.streams import read_whole
from job.errors import InputError

MAX_ATOMS = 256
"""Atoms a molecule may have unless the caller says otherwise: BioMedGPT's `max_n_nodes`."""

OTHER_ELEMENT = 118
"""Row of elements that are none; elements are rows atomic number - 1. Row 119 was the mask in pretraining."""

_CHIRALITIES = 3  # unspecified, clockwise, counter-clockwise: RDKit's own numbers 0, 1, 2
_SINGLE, _DOUBLE, _TRIPLE, _AROMATIC = range(4)  # row 4 is the encoder's self loop, row 5 was the mask in pretraining
_BOND_ROWS = {
    Chem.BondType.SINGLE: _SINGLE,
    Chem.BondType.DOUBLE: _DOUBLE,
    Chem.BondType.TRIPLE: _TRIPLE,
    Chem.BondType.AROMATIC: _AROMATIC,
}
_SUBSTITUTED_BOND_ROWS = {
    Chem.BondType.QUADRUPLE: _TRIPLE,
    Chem.BondType.QUINTUPLE: _TRIPLE,
    Chem.BondType.HEXTUPLE: _TRIPLE,
    Chem.BondType.ONEANDAHALF: _AROMATIC,
}
_DIRECTION_ROWS = {Chem.BondDir.NONE: 0, Chem.BondDir.ENDUPRIGHT: 1, Chem.BondDir.ENDDOWNRIGHT: 2}

_SDF_SUFFIXES = (".sdf", ".sdf.gz", ".mol")
_SMILES_SUFFIXES = (".smi", ".smiles", ".smi.gz", ".smiles.gz")
_SHOWN_CHARACTERS = 80


class MoleculeError(InputError):
    """A molecule that cannot be a graph. `reason` is one of a few short texts, for counting."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class MoleculeGraph:
    """A molecule of n atoms and m bonds."""

    atoms: np.ndarray
    """int64 [n, 2]: element row (atomic number - 1, or `OTHER_ELEMENT`) and chirality row."""
    edges: np.ndarray
    """int64 [2, 2m]: from and to, each bond in both directions, one after the other."""
    bonds: np.ndarray
    """int64 [2m, 2]: type row and direction row of each edge."""
    substituted: int = 0
    """Atoms and bonds whose element, chirality, type or direction has no row of its own (see above)."""


def featurise(smiles: str, max_atoms: int = MAX_ATOMS) -> MoleculeGraph:
    """The graph of a SMILES string, atoms in the order of the string.

    Raises `MoleculeError` where RDKit refuses it (with RDKit's reason), where it is empty, or where it has more than
    `max_atoms` atoms: a molecule is never cropped, since no part of it has the answer of the whole.
    """
    molecule = parse(smiles)
    count = molecule.GetNumAtoms()
    if count > max_atoms:
        raise MoleculeError(
            f"molecule {_shown(smiles)} has {count} atoms, more than the limit of {max_atoms}; leave it out, or raise "
            "max_atoms for data and model",
            "too many atoms",
        )
    # Only these marks give an atom a chirality or a bond a direction. (Dative bonds come without any.)
    return _graph(molecule, chiral="@" in smiles, directed="/" in smiles or "\\" in smiles)


def count_atoms(smiles: str) -> int:
    """How many nodes `featurise` gives; raises `MoleculeError` as it does, but for the number of atoms."""
    return parse(smiles).GetNumAtoms()


def parse(smiles: str) -> Chem.Mol:
    """RDKit's molecule; raises `MoleculeError` with RDKit's reason, or where the text is empty or has blanks in it."""
    smiles = smiles.strip()
    if not smiles:
        raise MoleculeError("the SMILES is empty; give a molecule, or leave it out", "empty SMILES")
    if len(smiles.split(None, 1)) > 1:  # RDKit would take the rest for a name, and a second molecule would be lost
        raise MoleculeError(
            f"SMILES {_shown(smiles)} has blanks in it; give each molecule by itself, without its name",
            "invalid SMILES",
        )
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        with rdBase.CaptureErrorLog() as log:
            Chem.MolFromSmiles(smiles)
        raise MoleculeError(
            f"SMILES {_shown(smiles)} is not a molecule: {rdkit_reason(log.messages)}", "invalid SMILES"
        )
    if molecule.GetNumAtoms() == 0:
        raise MoleculeError(f"SMILES {_shown(smiles)} has no atoms", "empty SMILES")
    return molecule


def read_molecules(text_or_path: str) -> list[str]:
    """SMILES of a SMILES string, or of a `.smi`, `.smiles`, `.sdf` (also `.gz`) or `.mol` file, in its order.

    In a `.smi` file the first word of a line is the SMILES, the rest its name. Raises `InputError` where a file does
    not exist or has no molecules, `MoleculeError` naming line or record where one cannot be read.
    """
    name = text_or_path.strip().lower()
    if not name.endswith(_SDF_SUFFIXES + _SMILES_SUFFIXES):
        parse(text_or_path)
        return [text_or_path.strip()]
    path = Path(text_or_path.strip())
    read = _read_sdf if name.endswith(_SDF_SUFFIXES) else _read_smiles
    molecules = list(read(path, io.BytesIO(read_whole(path))))
    if not molecules:
        raise InputError(f"{path} has no molecules in it")
    return molecules


def _graph(molecule: Chem.Mol, chiral: bool, directed: bool) -> MoleculeGraph:
    """The graph; what the arguments say there is none of is not asked for, since every question to RDKit costs."""
    atom, bond = molecule.GetAtomWithIdx, molecule.GetBondWithIdx  # faster than RDKit's iterators
    atom_numbers, bond_numbers = range(molecule.GetNumAtoms()), range(molecule.GetNumBonds())
    atoms = np.zeros((len(atom_numbers), 2), dtype=np.int64)
    atoms[:, 0] = [atom(number).GetAtomicNum() for number in atom_numbers]
    atoms[:, 0] -= 1
    unknown = atoms[:, 0] < 0
    substituted = int(unknown.sum())
    if substituted:
        atoms[unknown, 0] = OTHER_ELEMENT
    if chiral:
        atoms[:, 1] = [int(atom(number).GetChiralTag()) for number in atom_numbers]
        unknown = atoms[:, 1] >= _CHIRALITIES
        substituted += int(unknown.sum())
        atoms[unknown, 1] = 0
    ends, kinds = [], []
    for number in bond_numbers:
        one = bond(number)
        ends.append((one.GetBeginAtomIdx(), one.GetEndAtomIdx()))
        kinds.append(one.GetBondType())
    edges = np.zeros((2, 2 * len(ends)), dtype=np.int64)
    bonds = np.zeros((2 * len(ends), 2), dtype=np.int64)
    if ends:
        pairs = np.array(ends, dtype=np.int64).T
        edges[:, 0::2] = pairs
        edges[:, 1::2] = pairs[::-1]
        types = [_BOND_ROWS.get(kind, -1) for kind in kinds]
        if -1 in types:
            substituted += types.count(-1)
            types = [_BOND_ROWS.get(kind, _SUBSTITUTED_BOND_ROWS.get(kind, _SINGLE)) for kind in kinds]
        bonds[0::2, 0] = bonds[1::2, 0] = types
        if directed:
            directions = [bond(number).GetBondDir() for number in bond_numbers]
            bonds[0::2, 1] = bonds[1::2, 1] = [_DIRECTION_ROWS.get(direction, 0) for direction in directions]
            substituted += sum(direction not in _DIRECTION_ROWS for direction in directions)
    return MoleculeGraph(atoms, edges, bonds, substituted)


def _read_smiles(path: Path, handle: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(handle, start=1):
        words = line.decode("utf-8", "replace").split(None, 1)
        if not words:
            continue
        try:
            parse(words[0])
        except MoleculeError as error:
            raise MoleculeError(f"{path} line {number}: {error}", error.reason) from None
        yield words[0]


def _read_sdf(path: Path, handle: BinaryIO) -> Iterator[str]:
    records = Chem.ForwardSDMolSupplier(handle)
    for number in itertools.count(1):
        with rdBase.CaptureErrorLog() as log:
            molecule = next(records, None)
            ended = records.atEnd()
        if molecule is not None:
            yield Chem.MolToSmiles(molecule)
        elif ended and not log.messages:
            return
        else:
            raise MoleculeError(
                f"{path} record {number} is not a molecule: {rdkit_reason(log.messages)}", "invalid molecule"
            )


def _shown(smiles: str) -> str:
    smiles = smiles.strip()
    return repr(smiles if len(smiles) <= _SHOWN_CHARACTERS else f"{smiles[:_SHOWN_CHARACTERS]}...")


def rdkit_reason(messages: str) -> str:
    """The first of RDKit's log lines, without time stamp and molecule, and the position where it has one."""
    lines = [re.sub(r"^\[[\d:]+\] ?", "", line).strip() for line in messages.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return "RDKit gives no reason"
    first = re.sub(r"( while parsing| for input): .*$", "", lines[0].removeprefix("SMILES Parse Error: "))
    position = re.search(r"around position (\d+)", messages)
    return f"{first.strip()}{f' around position {position[1]}' if position else ''} (RDKit)"
