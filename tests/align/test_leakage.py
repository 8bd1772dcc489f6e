"""Leakage: what copying the nearest training structure's answer gives, checked against known neighbours."""

import json

import pytest

from align import leakage
from align.questions import FAMILY, Question
from tests.align.question_sets import chebi_questions

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def families(real_data):
    lines = (real_data / "uniprot" / "uniprot_entries.open.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    entries = [entry for entry in map(json.loads, lines) if entry["family"]]
    return [Question(e["accession"], FAMILY, e["family"][0], proteins=(e["sequence"],)) for e in entries]


def test_the_nearest_of_real_proteins_is_itself_and_a_copy_of_it_scores_full(families):
    sequences = [question.proteins[0] for question in families]
    unique = list(dict.fromkeys(sequences))
    assert leakage.nearest_proteins(unique, unique) == list(range(len(unique)))
    [result] = leakage.measure(families, families, 50)
    assert result.count == 50 and result.seen == 1.0
    assert result.exact > 0.95 and result.word_f1 > 0.95


def test_copying_real_relatives_beats_the_most_frequent_answer(families):
    [result] = leakage.measure(families[::2], families[1::2], 1000)
    assert result.exact > 0.5 > result.frequent_exact
    assert result.word_f1 > result.frequent_word_f1
    shuffled = [
        Question(q.id, q.question, other.answer, proteins=q.proteins)
        for q, other in zip(families[::2], families[::2][37:] + families[::2][:37])
    ]
    [broken] = leakage.measure(shuffled, families[1::2], 1000)
    assert broken.exact < result.exact / 3


def test_the_nearest_of_real_molecules_is_itself(real_data):
    smiles = [question.molecules[0] for question in chebi_questions(real_data, 60)]
    places = leakage.nearest_molecules(smiles, smiles)
    assert sum(place == number for number, place in enumerate(places)) > 55  # stereoisomers look alike


def test_answers_are_copied_only_from_the_same_question(families):
    other = [Question(q.id + "x", "Another?", "wrong", proteins=q.proteins) for q in families]
    assert leakage.measure(families + other, families, 20) == leakage.measure(families, families, 20)
    assert leakage.measure(other, families, 20) == []


def test_word_f1():
    assert leakage.word_f1("Belongs to the actin family", "belongs to the actin family.") == 1.0
    assert leakage.word_f1("a a b", "a c") == pytest.approx(2 / 5)
    assert leakage.word_f1("x", "y") == leakage.word_f1("", "y") == 0.0
