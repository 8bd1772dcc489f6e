"""`align controls`: the same answers beside their own structures and others'."""

import dataclasses
import json

import numpy as np
import pytest

from align import controls
from align.prompts import Turn
from align.questions import Question
from job.errors import InputError
from tests.align.aligned_models import real_proteins, real_smiles, small_model
from tests.align.question_sets import write_set


@pytest.fixture(scope="module")
def model(real_data):
    return small_model(real_data)


@pytest.fixture(scope="module")
def questions(real_data):
    molecules = [
        Question(f"m{number}", "What is it?", f"It is number {number}.", (smiles,), (), (10 + number,))
        for number, smiles in enumerate(real_smiles(real_data, 12))
    ]
    proteins = [
        Question(f"p{number}", "What does it do?", f"It does {number}.", (), (sequence,))
        for number, sequence in enumerate(real_proteins(real_data, 4))
    ]
    return [*molecules, *proteins]


def loss_of(model, question):
    """Of the answer's tokens, from the model's own loss of a batch of one."""
    batch = model.encoding.collate([model.encoding.example(question)])
    return model(batch).item(), batch.answer_tokens


def test_losses_are_the_models_own_and_pairs_keep_question_and_answer(model, questions):
    [other, alike] = controls.structure_tests(model, questions, 2000, 0)
    assert other.rows == alike.rows == len(questions)
    partners = controls.another(questions, 0)
    sums = np.array([loss_of(model, question) for question in questions])
    assert other.own == pytest.approx(sums[:, 0].sum() / sums[:, 1].sum(), abs=1e-4)
    swapped = [controls.with_structures_of(q, questions[p]) for q, p in zip(questions, partners, strict=True)]
    for question, changed, partner in zip(questions, swapped, partners, strict=True):
        assert (changed.question, changed.answer) == (question.question, question.answer)
        assert (changed.molecules, changed.proteins) == (questions[partner].molecules, questions[partner].proteins)
        assert (changed.molecules, changed.proteins) != (question.molecules, question.proteins)
        assert bool(changed.molecules) == bool(question.molecules)
    theirs = np.array([loss_of(model, question) for question in swapped])
    assert other.other == pytest.approx(theirs[:, 0].sum() / theirs[:, 1].sum(), abs=1e-4)
    assert other.wins == pytest.approx(np.mean(theirs[:, 0] > sums[:, 0]))


def test_only_the_same_words_are_compared(model, questions):
    """Beside a larger molecule less of a long answer fits: its sum would be of other tokens."""
    molecules = questions[:12]
    prompts = [len(model.encoding.prompt([Turn.asking(question)])) for question in molecules]
    longest = model.settings.max_length - max(prompts) + 2
    some = [dataclasses.replace(q, answer="a " * (longest if n % 2 else 3)) for n, q in enumerate(molecules)]
    some = [dataclasses.replace(q, answer=f"{q.answer}{n}") for n, q in enumerate(some)]
    own, tokens = controls.answer_losses(model, some, 4000)
    partners = controls.another(some, 0)
    swapped = [controls.with_structures_of(q, some[p]) for q, p in zip(some, partners, strict=True)]
    _, other_tokens = controls.answer_losses(model, swapped, 4000)
    assert 0 < (tokens != other_tokens).sum() < len(some)
    [test, _] = controls.structure_tests(model, some, 4000, 0)
    same = tokens == other_tokens
    assert test.rows == same.sum()
    assert test.own == pytest.approx(own[same].sum() / tokens[same].sum())


def test_the_command(model, questions, tmp_path, capsys):
    model.save_pretrained(tmp_path / "aligned")
    data = write_set(tmp_path / "data", questions)
    words = [str(tmp_path / "aligned"), str(data), "--split", "train", "--device", "cpu", "--limit", "8"]
    controls.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [test["rows"] for test in found["tests"]] == [8, 8]
    controls.main([*words, "--dtype", "bfloat16"])
    assert "| another one of like size | 8 |" in capsys.readouterr().out
    for wrong, message in (("--limit", "--limit must be at least 0"), ("--token-budget", "must be at least 1")):
        with pytest.raises(InputError, match=message):
            controls.main([*words, wrong, "-5"])
    with pytest.raises(InputError, match="fewer than two questions"):
        controls.structure_tests(model, [Question("t", "Hello?", "Well.")], 100, 0)
