"""SMILES to molecule graphs, against torch-geometric's own `from_smiles`.

    python benchmarks/featurise.py --data DIR

Real ChEBI-20 molecules, one core, molecules per CPU second: RDKit's parsing alone (the floor of both), ours, and
`torch_geometric.utils.from_smiles`. Both give graphs of the same atoms and bonds, which is checked first; the feature
columns differ, since torch-geometric's have other meanings than the public encoders' embeddings.
"""

import argparse
import csv
import gzip
import os
import sys
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
warnings.filterwarnings("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a checkout that is not installed

import measure  # noqa: E402
from rdkit import Chem, RDLogger  # noqa: E402
from torch_geometric.utils import from_smiles  # noqa: E402

from align.molecules import count_atoms, featurise  # noqa: E402

PARSE, OURS, PYG = "RDKit parsing alone", "align.molecules.featurise", "torch_geometric from_smiles"
_LIMIT = 10_000  # atoms: none of these molecules is refused


def read(file: Path, count: int) -> list[str]:
    """`count` SMILES, evenly over the file."""
    with gzip.open(file, "rt", encoding="utf-8", newline="") as handle:
        rows = [row["SMILES"] for row in csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return rows[:: max(1, len(rows) // count)][:count]


def prove_equal(molecules: list[str]) -> int:
    """Both see the same atoms and bonds; returns how many molecules were compared."""
    for smiles in molecules:
        ours, theirs = featurise(smiles, _LIMIT), from_smiles(smiles)
        assert (ours.atoms[:, 0] + 1 == theirs.x[:, 0].numpy()).all() or ours.substituted, smiles
        assert sorted(ours.edges.T.tolist()) == theirs.edge_index.T.tolist(), smiles
    return len(molecules)


def main() -> None:
    """Prove equal graphs, measure in turn, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with chebi20/")
    parser.add_argument("--molecules", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the result as JSON")
    options = parser.parse_args()

    RDLogger.DisableLog("rdApp.*")
    molecules = read(options.data / "chebi20" / "cid_smiles_all_but_held.tsv.gz", options.molecules)
    compared = prove_equal(molecules)
    atoms = sum(count_atoms(smiles) for smiles in molecules) / len(molecules)
    print(f"{compared:,} real ChEBI-20 molecules, {atoms:.1f} atoms each on average; atoms and bonds equal in both")

    def run(function):
        def each() -> float:
            for smiles in molecules:
                function(smiles)
            return len(molecules)

        return each

    contenders = {PARSE: Chem.MolFromSmiles, OURS: lambda smiles: featurise(smiles, _LIMIT), PYG: from_smiles}
    rates = measure.in_turn({name: run(function) for name, function in contenders.items()}, options.repeats)
    results = {name: measure.summary(rates[OURS], values) for name, values in rates.items()}
    rows = []
    for name, values in rates.items():
        own = measure.summary(values, values)
        results[name] = own | {"ours_is": results[name]["ratio"]}
        cells = [f"{own[key]:,.0f}" for key in ("min", "median", "max")]
        rows.append([name, *cells, f"{results[name]['ours_is']:.2f}"])
    described = measure.machine("rdkit", "torch-geometric", "numpy")
    print(f"\n{described}; {options.repeats} repeats in turn\n")
    print(measure.markdown(["molecules/s per core", "min", "median", "max", "ours is ×"], rows))
    measure.save(options.output, {"machine": described, "molecules": len(molecules), "results": results})


if __name__ == "__main__":
    main()
