"""Copying the nearest structure's answer, on real molecules and proteins."""

import csv
import json
from pathlib import Path

import pytest

from align.questions import FAMILY, FUNCTION, MOLECULE_QUESTION, Question
from eval.metrics.text_metrics import score
from eval.metrics.word_pieces import read_tokenizer
from eval.structures.neighbours import copied_answers


def captions(path: Path) -> list[Question]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [Question(row["CID"], MOLECULE_QUESTION, row["description"], molecules=(row["SMILES"],)) for row in rows]


@pytest.mark.real
def test_molecules_of_chebi_20(real_data):
    training = captions(real_data / "chebi20" / "train_open.txt")[:1500]
    asked = captions(real_data / "chebi20" / "test_open.txt")[:200]
    copied = copied_answers(training, asked)
    assert set(copied) <= {question.answer for question in training}
    references = [question.answer for question in asked]
    tokenizer = read_tokenizer(None)
    nearest = score(copied, references, "molt5", tokenizer).scores
    any_one = score([question.answer for question in training[:200]], references, "molt5", tokenizer).scores
    assert nearest["bleu_4"] > 1.5 * any_one["bleu_4"]
    assert nearest["rouge_l"] > any_one["rouge_l"]
    again = copied_answers(asked, asked)
    assert again == references  # a molecule is most like itself


@pytest.mark.real
def test_proteins_and_molecules_never_answer_for_each_other(real_data):
    path = next((real_data / "uniprot").glob("uniprot_entries.open*.jsonl"))
    with open(path, encoding="utf-8") as file:
        sequences = [json.loads(line)["sequence"] for line in file][:20]
    training = [
        Question(f"{text}{number}", text, f"{text} {number}", proteins=(sequence,))
        for number, sequence in enumerate(sequences)
        for text in (FUNCTION, FAMILY)
    ]
    asked = [
        Question("a", FAMILY, "", proteins=(sequences[3],)),
        Question("b", FUNCTION, "", proteins=(sequences[7],)),
        Question("c", FUNCTION, "", molecules=("CCO",)),
        Question("d", "What is its colour?", "", proteins=(sequences[3],)),
        Question("e", FUNCTION, ""),
    ]
    assert copied_answers(training, asked) == [f"{FAMILY} 3", f"{FUNCTION} 7", "", "", ""]
