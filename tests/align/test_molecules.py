"""SMILES to graphs: equal to the original's on real molecules, and its known traps mapped or refused."""

import csv
import gzip
import re

import numpy as np
import pytest
from rdkit import Chem, rdBase

from align.molecules import (
    OTHER_ELEMENT,
    MoleculeError,
    count_atoms,
    featurise,
    read_molecules,
)
from job.errors import InputError
from tests.align.molecules import chebi20

CHIRALITIES = [Chem.ChiralType.CHI_UNSPECIFIED, Chem.ChiralType.CHI_TETRAHEDRAL_CW, Chem.ChiralType.CHI_TETRAHEDRAL_CCW]
BONDS = [Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC]
DIRECTIONS = [Chem.BondDir.NONE, Chem.BondDir.ENDUPRIGHT, Chem.BondDir.ENDDOWNRIGHT]


def original(smiles):
    """pretrain-gnns' `mol_to_graph_data_obj_simple`, written plainly; raises where the original does."""
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    atoms = [
        [list(range(1, 119)).index(atom.GetAtomicNum()), CHIRALITIES.index(atom.GetChiralTag())]
        for atom in molecule.GetAtoms()
    ]
    edges, bonds = [], []
    for bond in molecule.GetBonds():
        begin, end = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        features = [BONDS.index(bond.GetBondType()), DIRECTIONS.index(bond.GetBondDir())]
        edges += [(begin, end), (end, begin)]
        bonds += [features, features]
    edges, bonds = (np.array(pairs, dtype=np.int64).reshape(-1, 2) for pairs in (edges, bonds))
    return np.array(atoms), edges.T, bonds


def test_equals_the_original_on_real_molecules(real_data):
    seen_chiral = seen_directed = 0
    for smiles in chebi20(real_data)[:600]:
        graph = featurise(smiles, max_atoms=600)
        if graph.substituted:
            continue
        atoms, edges, bonds = original(smiles)
        assert np.array_equal(graph.atoms, atoms), smiles
        assert np.array_equal(graph.edges, edges), smiles
        assert np.array_equal(graph.bonds, bonds), smiles
        assert {array.dtype for array in (graph.atoms, graph.edges, graph.bonds)} == {np.dtype(np.int64)}
        seen_chiral += graph.atoms[:, 1].any()
        seen_directed += graph.bonds[:, 1].any()
    assert seen_chiral > 100 and seen_directed > 20


def test_every_real_molecule_fits_the_encoder(real_data):
    """Nothing indexes out of the embeddings' rows, also in FDA drugs with metals and dummy atoms."""
    with open(real_data / "moleculenet" / "ClinTox.open.csv", newline="", encoding="utf-8") as handle:
        strings = [row["smiles"] for row in csv.DictReader(handle)]
    refused = substituted = 0
    for smiles in strings:
        try:
            graph = featurise(smiles)
        except MoleculeError as error:
            assert error.reason == "invalid SMILES" and "RDKit" in str(error)
            refused += 1
            continue
        assert graph.atoms.min(initial=0) >= 0 and graph.bonds.min(initial=0) >= 0
        assert (graph.atoms < [OTHER_ELEMENT + 1, 3]).all() and (graph.bonds < [4, 3]).all()
        assert graph.edges.max(initial=0) < len(graph.atoms)
        assert count_atoms(smiles) == len(graph.atoms)
        substituted += graph.substituted
    assert refused <= 5 and substituted > 0 and len(strings) > 1000


@pytest.mark.parametrize(
    ("smiles", "atoms", "bonds", "substituted"),
    [
        ("C", [[5, 0]], [], 0),
        ("[Na+].[Cl-]", [[10, 0], [16, 0]], [], 0),
        ("*C", [[OTHER_ELEMENT, 0], [5, 0]], [[0, 0]], 1),
        ("[NH3]->[Pt]", [[6, 0], [77, 0]], [[0, 0]], 1),
        ("C~C", [[5, 0], [5, 0]], [[0, 0]], 1),
        ("[Re]$[Re]", [[74, 0], [74, 0]], [[2, 0]], 1),
        ("[Co@OH1](Cl)(Cl)(Cl)(Cl)(Cl)Cl", [[26, 0], *[[16, 0]] * 6], [[0, 0]] * 6, 1),
        ("C[Pt@SP1](F)(Cl)[H]", [[5, 0], [77, 0], [8, 0], [16, 0], [0, 0]], [[0, 0]] * 4, 1),
        ("F/C=C/F", [[8, 0], [5, 0], [5, 0], [8, 0]], [[0, 1], [1, 0], [0, 1]], 0),
        ("N[C@@H](C)O", [[6, 0], [5, 1], [5, 0], [7, 0]], [[0, 0]] * 3, 0),
        ("[2H]O", [[0, 0], [7, 0]], [[0, 0]], 0),
    ],
)
def test_policy(smiles, atoms, bonds, substituted):
    graph = featurise(smiles)
    assert graph.atoms.tolist() == atoms
    assert graph.bonds[::2].tolist() == bonds == graph.bonds[1::2].tolist()
    assert graph.edges.shape == (2, 2 * len(bonds)) and graph.bonds.shape == (2 * len(bonds), 2)
    assert graph.substituted == substituted


def test_original_fails_where_the_policy_maps():
    """The traps are real: these are the molecules on which the released featuriser raises."""
    for smiles in ("*C", "[NH3]->[Pt]", "C~C", "[Co@OH1](Cl)(Cl)(Cl)(Cl)(Cl)Cl"):
        with pytest.raises(ValueError, match="not in list"):
            original(smiles)


def test_unknown_chirality_of_a_molecule_from_elsewhere(tmp_path):
    """CHI_OTHER has no SMILES; whatever number RDKit gives must stay inside the embedding's three rows."""
    from align.molecules import _graph

    molecule = Chem.MolFromSmiles("N[C@@H](C)O")
    for tag in Chem.ChiralType.values.values():
        molecule.GetAtomWithIdx(1).SetChiralTag(tag)
        graph = _graph(molecule, chiral=True, directed=True)
        assert graph.atoms[1, 1] == (int(tag) if int(tag) < 3 else 0)
        assert graph.substituted == (int(tag) >= 3)
    for kind in Chem.BondType.values.values():
        for direction in Chem.BondDir.values.values():
            molecule.GetBondWithIdx(0).SetBondType(kind)
            molecule.GetBondWithIdx(0).SetBondDir(direction)
            graph = _graph(molecule, chiral=True, directed=True)
            assert 0 <= graph.bonds[0, 0] <= 3 and 0 <= graph.bonds[0, 1] <= 2


@pytest.mark.parametrize(
    ("smiles", "reason", "message"),
    [
        ("C1CC", "invalid SMILES", r"'C1CC' is not a molecule: unclosed ring \(RDKit\)"),
        ("hello", "invalid SMILES", r"syntax error around position 1 \(RDKit\)"),
        ("CN(C)(C)(C)C", "invalid SMILES", "Explicit valence for atom # 1 N, 5, is greater than permitted"),
        ("c1cccc1", "invalid SMILES", "[Kk]ekul"),
        ("CCO CCN", "invalid SMILES", "blanks"),
        ("C\nC", "invalid SMILES", "blanks"),
        ("", "empty SMILES", "empty"),
        ("  \n", "empty SMILES", "empty"),
        ("C" * 257, "too many atoms", "257 atoms, more than the limit of 256"),
    ],
)
def test_refusals(smiles, reason, message, capfd):
    with pytest.raises(MoleculeError, match=message) as error:
        featurise(smiles)
    assert error.value.reason == reason
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert capfd.readouterr() == ("", ""), "RDKit's log reached the terminal"


def test_limit_is_the_callers(real_data):
    large = max(chebi20(real_data), key=len)
    count = count_atoms(large)
    assert len(featurise(large, max_atoms=count).atoms) == count
    with pytest.raises(MoleculeError, match=f"{count} atoms"):
        featurise(large, max_atoms=count - 1)


def test_reads_files_of_molecules(real_data, tmp_path):
    strings = chebi20(real_data)[:20]
    assert read_molecules(f" {strings[0]}\n") == [strings[0]]
    (tmp_path / "m.smi").write_text("".join(f"{smiles}\tname of {n}\n\n" for n, smiles in enumerate(strings)))
    assert read_molecules(str(tmp_path / "m.smi")) == strings
    canonical = [Chem.MolToSmiles(Chem.MolFromSmiles(smiles)) for smiles in strings]
    with Chem.SDWriter(str(tmp_path / "m.sdf")) as writer:
        for smiles in strings:
            writer.write(Chem.MolFromSmiles(smiles))
    (tmp_path / "m.sdf.gz").write_bytes(gzip.compress((tmp_path / "m.sdf").read_bytes()))
    for name in ("m.sdf", "m.sdf.gz"):
        assert [Chem.CanonSmiles(smiles) for smiles in read_molecules(str(tmp_path / name))] == canonical
    Chem.MolToMolFile(Chem.MolFromSmiles("c1ccccc1O"), str(tmp_path / "one.mol"))
    assert read_molecules(str(tmp_path / "one.mol")) == ["Oc1ccccc1"]


def test_damaged_files_name_the_place(tmp_path, capfd):
    (tmp_path / "bad.smi").write_text("CCO ethanol\nC1CC broken\n")
    with pytest.raises(MoleculeError, match=r"bad\.smi line 2: SMILES 'C1CC'.*unclosed ring"):
        read_molecules(str(tmp_path / "bad.smi"))
    block = Chem.MolToMolBlock(Chem.MolFromSmiles("CCO"))
    (tmp_path / "bad.sdf").write_text(f"{block}$$$$\n{re.sub('V2000', 'V9000', block)}$$$$\n")
    with pytest.raises(MoleculeError, match=r"bad\.sdf record 2 is not a molecule: .*\(RDKit\)"):
        read_molecules(str(tmp_path / "bad.sdf"))
    (tmp_path / "empty.sdf").write_text("")
    with pytest.raises(InputError, match="no molecules"):
        read_molecules(str(tmp_path / "empty.sdf"))
    with pytest.raises(InputError, match="No such file"):
        read_molecules(str(tmp_path / "none.sdf"))
    (tmp_path / "not.smi.gz").write_text("CCO")
    with pytest.raises(InputError, match="is damaged"):
        read_molecules(str(tmp_path / "not.smi.gz"))
    assert capfd.readouterr() == ("", "")
