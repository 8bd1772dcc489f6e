"""Real molecules for the tests of encoders."""

import csv


def chebi20(real_data, file="test_open.txt"):
    """SMILES of real ChEBI-20 rows, in file order."""
    with open(real_data / "chebi20" / file, encoding="utf-8", newline="") as handle:
        return [row["SMILES"] for row in csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE)]
