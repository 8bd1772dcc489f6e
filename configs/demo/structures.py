"""The demo's molecules and proteins: enumerated and designed here, with answers computed from the structures.

    python configs/demo/structures.py OUT_DIR

writes `molecules.jsonl` ({smiles, question, answer}) and `proteins.json` ({accession: {sequence, data: [[question,
answer], ...]}}), the formats in which PubChemQA and UniProtQA are published. Real collections go the same way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path

from rdkit import Chem

CORES = {
    "c1ccc({a})cc1{b}": "aromatic",
    "c1cc({a})ccc1{b}": "aromatic",
    "c1ccc2cc({a})ccc2c1{b}": "aromatic",
    "c1cc({a})cnc1{b}": "aromatic",
    "c1cc({a})oc1{b}": "aromatic",
    "c1cc({a})sc1{b}": "aromatic",
    "C1CCC({a})CC1{b}": "cyclic",
    "C1CC({a})CC1{b}": "cyclic",
    "C1CC({a})CN1{b}": "cyclic",
    "CCC({a})CC{b}": "open-chain",
    "CC({a})CCC{b}": "open-chain",
    "C=CC({a})C{b}": "open-chain",
    "CCCCC({a})C{b}": "open-chain",
}
SUBSTITUENTS = [
    "C(=O)O",
    "C(=O)OC",
    "C(=O)N",
    "C#N",
    "C=O",
    "C(C)=O",
    "O",
    "N",
    "OC",
    "F",
    "Cl",
    "Br",
    "C",
    "CC",
    "C(F)(F)F",
]
# The first pattern that matches names the molecule, as in the priority order of chemical nomenclature.
CLASSES = [
    ("carboxylic acid", "[CX3](=O)[OX2H1]"),
    ("ester", "[CX3](=O)[OX2][#6]"),
    ("amide", "[CX3](=O)[NX3H2]"),
    ("nitrile", "C#N"),
    ("aldehyde", "[CX3H1](=O)[#6]"),
    ("ketone", "[#6][CX3](=O)[#6]"),
    ("alcohol", "[OX2H1]"),
    ("amine", "[NX3;H2,H1;!$(NC=O)]"),
    ("ether", "[OX2]([#6])[CH3]"),
    ("halide", "[F,Cl,Br]"),
    ("hydrocarbon", "*"),
]
HALOGENS = {9: "fluorine", 17: "chlorine", 35: "bromine"}
NUMBERS = [
    "no",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
]

HELIX, SOLUBLE = "LLVIAFGLLIVLAVLIGFWA", "AEKDSTGQNRPEKDLVSHY"


def molecules(count: int, source: random.Random) -> list[dict[str, str]]:
    """Rows about `count` different molecules: substituted rings and chains."""
    patterns = [(name, Chem.MolFromSmarts(smarts)) for name, smarts in CLASSES]
    rows = {}
    combinations = list(itertools.product(CORES, SUBSTITUENTS, SUBSTITUENTS))
    for core, first, second in source.sample(combinations, len(combinations)):
        molecule = Chem.MolFromSmiles(core.format(a=first, b=second))
        smiles = Chem.MolToSmiles(molecule)
        kind = next(name for name, pattern in patterns if molecule.HasSubstructMatch(pattern))
        elements = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
        halogens = [name for number, name in HALOGENS.items() if number in elements]
        article = "an" if CORES[core][0] in "ao" else "a"
        answer = f"It is {article} {CORES[core]} {kind} with {NUMBERS[elements.count(6)]} carbon atoms."
        if halogens:
            answer += f" It contains {' and '.join(halogens)}."
        rows[smiles] = {"smiles": smiles, "question": "Please describe this molecule.", "answer": answer}
        if len(rows) == count:
            break
    return list(rows.values())


def proteins(count: int, source: random.Random) -> dict[str, dict[str, object]]:
    """`count` designed sequences: soluble, secreted, with zinc fingers, or with helices through the membrane."""
    entries: dict[str, dict[str, object]] = {}
    for number in range(count):
        kind = number % 4
        parts, family, location = [soluble(source)], "", ""
        if kind == 0:
            parts, family, location = [soluble(source), soluble(source)], "soluble enzyme", "Cytoplasm"
        elif kind == 1:
            signal = "KK" + mutated("LLLALLALLAAPAQA", source)
            parts, family, location = [signal, soluble(source)], "secreted peptide", "Secreted"
        elif kind == 2:
            for _ in range(source.randint(2, 4)):
                parts += ["C" + pick(2, source) + "C" + pick(12, source) + "H" + pick(3, source) + "H", "TGEKP"]
            family, location = "C2H2 zinc finger", "Nucleus"
        else:
            for _ in range(source.randint(2, 4)):
                parts += [mutated(HELIX, source), pick(8, source)]
            family, location = "multi-pass transporter", "Membrane"
        entries[f"DESIGN{number:04d}"] = {
            "sequence": "M" + "".join(parts),
            "data": [
                ["What are the subcellular locations of this protein?", location],
                ["What is the protein family that this protein belongs to?", f"Belongs to the {family} family"],
            ],
        }
    return entries


def pick(length: int, source: random.Random) -> str:
    """Residues of a water-soluble loop."""
    return "".join(source.choices(SOLUBLE, k=length))


def soluble(source: random.Random) -> str:
    """A water-soluble stretch of 20 to 40 residues."""
    return pick(source.randint(20, 40), source)


def mutated(template: str, source: random.Random) -> str:
    """The template with a fifth of its residues drawn again from its own."""
    return "".join(source.choice(template) if source.random() < 0.2 else residue for residue in template)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--molecules", type=int, default=1200)
    parser.add_argument("--proteins", type=int, default=240)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    source = random.Random(7)
    rows = molecules(options.molecules, source)
    (options.out / "molecules.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = proteins(options.proteins, source)
    (options.out / "proteins.json").write_text(json.dumps(entries, indent=1) + "\n")
    print(f"{options.out}: {len(rows):,} molecules, {len(entries):,} proteins")


if __name__ == "__main__":
    main()
