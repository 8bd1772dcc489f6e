"""The rows of `structure_signal.py`: real captions and answers, and what each condition shows of them."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from align.molecules import MoleculeError, featurise
from align.question_shards import STAGE, QuestionSet, write_split
from align.questions import FAMILY, FUNCTION, LOCATION, MOLECULE_QUESTION, NAMES, Question
from align.splits import SplitSettings, assign, groups
from job import manifest

MAX_ATOMS, MAX_RESIDUES = 32, 256
ANSWER_WORDS = 30  # of a caption: what is asked for
PROTEIN_QUESTION = "Please describe this protein."


def molecule_rows(data: Path, split: str) -> tuple[list[Question], list[Question]]:
    """ChEBI-20 training and test rows of molecules that are small enough, by the published or by a scaffold split."""
    sides = [list(_chebi(data / "chebi20" / name)) for name in ("train_open.txt", "test_open.txt")]
    if split == "published":
        return sides[0], sides[1]
    rows = [*sides[0], *sides[1]]
    settings = SplitSettings(split, validation=0.0, test=0.2)
    side = assign(groups(rows, settings), settings)
    train_rows, test_rows = ([row for row, part in zip(rows, side) if part == name] for name in ("train", "test"))
    return train_rows, test_rows


def _chebi(file: Path) -> Iterable[Question]:
    for line in file.read_text(encoding="utf-8").split("\n")[1:]:
        if not line:
            continue
        compound, smiles, text = line.split("\t")
        try:
            atoms = len(featurise(smiles, MAX_ATOMS).atoms)
        except MoleculeError:
            continue
        answer = cut(text, ANSWER_WORDS)
        yield Question(f"chebi20:{compound}", MOLECULE_QUESTION, answer, (smiles,), (), (atoms,))


def yeast_rows(data: Path) -> tuple[list[Question], list[Question]]:
    """Yeast proteins with the first clause of their description; one in five is held out."""
    rows = [
        Question(entry["entry_name"], PROTEIN_QUESTION, first_clause(entry), (), (entry["sequence"][:MAX_RESIDUES],))
        for entry in yeast_entries(data)
    ]
    random.Random(0).shuffle(rows)
    return rows[len(rows) // 5 :], rows[: len(rows) // 5]


def uniprot_rows(built: Path) -> tuple[list[Question], list[Question]]:
    """The rows that `align build uniprotqa` has made of Swiss-Prot entries, shortened."""
    train_rows, test_rows = (
        [
            replace(row, answer=cut(row.answer, ANSWER_WORDS), proteins=(row.proteins[0][:MAX_RESIDUES],))
            for row in QuestionSet(built, name)
        ]
        for name in ("train", "test")
    )
    return train_rows, test_rows


def uniprotqa(data: Path) -> dict[str, dict[str, object]]:
    """Swiss-Prot entries with the questions and answers of UniProtQA, in its published format."""
    fields = {"function": FUNCTION, "names": NAMES, "family": FAMILY, "subcellular_location": LOCATION}
    found: dict[str, dict[str, object]] = {}
    for line in (data / "uniprot" / "uniprot_entries.open.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        entry = json.loads(line)
        asked = [[question, ", ".join(entry[field])] for field, question in fields.items() if entry[field]]
        found[entry["accession"]] = {"sequence": entry["sequence"], "data": asked}
    return found


def yeast_entries(data: Path) -> list[dict[str, str]]:
    """SGD's descriptions of yeast proteins."""
    with gzip.open(data / "yeast_protein_text" / "yeast_sgd.open.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def first_clause(entry: dict[str, str]) -> str:
    """Of a description: what the protein is or does."""
    return cut(entry["description"].split(";")[0], ANSWER_WORDS)


def protein_texts(data: Path, split: str, training: list[Question]) -> dict[str, str]:
    """What the language model is trained on, by id: descriptions of yeast proteins, and the answers to be learnt."""
    found = {entry["entry_name"]: entry["description"] for entry in yeast_entries(data)}
    return found if split == "yeast" else found | {row.id: row.answer for row in training}


def texts(data: Path) -> dict[str, str]:
    """What the language model is trained on, by id: every caption at hand."""
    found: dict[str, str] = {}
    for line in (data / "pubchem_desc" / "pcdes.open.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        entry = json.loads(line)
        found[f"chebi20:{entry['CID']}"] = entry["description"]
    for name in ("train_open.txt", "test_open.txt"):
        for line in (data / "chebi20" / name).read_text(encoding="utf-8").split("\n")[1:]:
            if line:
                compound, _, text = line.split("\t")
                found[f"chebi20:{compound}"] = text
    return found


def cut(text: str, words: int) -> str:
    """Its first words."""
    return " ".join(text.split()[:words])


def derangement(count: int, seed: int) -> list[int]:
    """A permutation that leaves nothing in its place."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    result = [0] * count
    for place, row in enumerate(order):
        result[row] = order[(place + 1) % count]
    return result


def under(condition: str, rows: Sequence[Question], seed: int) -> list[Question]:
    """The rows as a condition shows them."""
    if condition == "true":
        return list(rows)
    if condition == "none":
        return [replace(row, molecules=(), proteins=(), atoms=()) for row in rows]
    if condition == "constant":
        molecule = any(row.molecules for row in rows)
        same = (("C",), (), (1,)) if molecule else ((), ("M",), ())
        return [replace(row, molecules=same[0], proteins=same[1], atoms=same[2]) for row in rows]
    others = derangement(len(rows), seed)
    return [
        replace(row, molecules=rows[other].molecules, proteins=rows[other].proteins, atoms=rows[other].atoms)
        for row, other in zip(rows, others)
    ]


def write_questions(directory: Path, splits: Mapping[str, Sequence[Question]]) -> None:
    """A question set as `align build` leaves it."""
    if (directory / "manifest.json").exists():
        return
    infos = {
        name: [asdict(info) for info in write_split(directory / name, (row.to_json() for row in rows))]
        for name, rows in splits.items()
    }
    manifest.write(directory, STAGE, {"made_by": "benchmarks/structure_signal.py"}, [], {"splits": infos})
