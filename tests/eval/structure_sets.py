"""Small builds of real questions about structures, and small aligned models, for the suites that need them."""

import contextlib
import csv
import gzip
import io
import json
from pathlib import Path

from align import build
from tests.align.aligned_models import small_model, small_settings


def build_set(folder: Path, kind: str, *words) -> Path:
    """`python -m align build`, without its lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        build.main([kind, *map(str, words), "--out", str(folder), "--leakage-sample", "0"])
    return folder


def chebi_file(path: Path, source: Path, count: int, longest: int = 200) -> Path:
    """The first rows of a real ChEBI-20 file whose molecule and text are short."""
    with open(source, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    short = [row for row in rows[1:] if len(row[1]) <= 60 and len(row[2]) <= longest]
    path.write_text("".join("\t".join(row) + "\n" for row in [rows[0], *short[:count]]), encoding="utf-8")
    return path


def chebi_set(real_data: Path, folder: Path, train: int = 150, test: int = 12) -> Path:
    """ChEBI-20: captions of molecules."""
    folder.mkdir(parents=True, exist_ok=True)
    source = real_data / "chebi20"
    return build_set(
        folder / "chebi20", "chebi20",
        "--train", chebi_file(folder / "train.txt", source / "train_open.txt", train),
        "--test", chebi_file(folder / "test.txt", source / "test_open.txt", test),
    )  # fmt: skip


def uniprot_set(real_data: Path, folder: Path) -> Path:
    """Swiss-Prot entries: the four questions of UniProtQA, similar proteins kept together."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = real_data / "uniprot" / "uniprot_sprot.open.dat.gz"
    return build_set(
        folder / "uniprotqa", "uniprotqa", entries, "--split", "identity", "--clusters", "kmers",
        "--test-fraction", "0.1", "--validation-fraction", "0",
    )  # fmt: skip


def yeast_set(real_data: Path, folder: Path, train: int = 100, test: int = 10) -> Path:
    """Yeast proteins with SGD's descriptions: rows {sequence, question, answer}."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(real_data / "yeast_protein_text" / "yeast_sgd.open.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    kept = {"id": "accession", "sequence": "sequence", "answer": "description"}
    chosen = [
        {"question": "What does it do?"} | {name: row[theirs] for name, theirs in kept.items()}
        for row in rows
        if row["description"] and len(row["sequence"]) < 300
    ]  # fmt: skip
    files = {}
    for name, some in (("train", chosen[:train]), ("test", chosen[train : train + test])):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    return build_set(folder / "yeast", "questions", "--train", files["train"], "--test", files["test"])


def chembl_set(real_data: Path, folder: Path, train: int = 40, test: int = 2) -> Path:
    """ChEMBL-QA: short answers, many of them numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(real_data / "chembl_qa" / "ChEMBL_QA_open.json.gz", "rt", encoding="utf-8") as file:
        molecules = {smiles: pairs for smiles, pairs in json.load(file).items() if len(smiles) <= 60}
    files = {}
    for name, start, stop in (("train", test, test + train), ("test", 0, test)):
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(dict(list(molecules.items())[start:stop])), encoding="utf-8")
    return build_set(folder / "chemblqa", "chemblqa", "--train", files["train"], "--test", files["test"])


def pubchem_set(real_data: Path, folder: Path) -> Path:
    """PubChem's descriptions."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(real_data / "pubchem_desc" / "pcdes.open.jsonl", encoding="utf-8") as lines:
        rows = [line for line in lines if len(json.loads(line)["SMILES"]) <= 40 and len(line) < 300]
    (folder / "pcdes.jsonl").write_text("".join(rows[:120]), encoding="utf-8")
    return build_set(
        folder / "pubchemqa", "pubchemqa", folder / "pcdes.jsonl", "--split", "scaffold", "--test-fraction", "0.1"
    )


def aligned_directory(real_data: Path, folder: Path, seed: int = 0) -> Path:
    """A model directory: the real small language model, untrained encoders and adapters."""
    settings = small_settings(tokens="pooled")
    small_model(real_data, settings, seed=seed).save_pretrained(folder)
    return folder
