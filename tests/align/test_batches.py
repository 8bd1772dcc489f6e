"""Micro-batches: every question once, within the budget, the same rounds on all ranks, and little padding."""

from dataclasses import replace

import numpy as np
import pytest

from align.batches import TrainingBatches, pack, rank_batches
from align.examples import Encoding
from align.language_model import load_tokenizer
from align.question_order import QuestionOrder
from align.questions import Question
from align.settings import AlignedSettings
from job.errors import InputError
from tests.align.question_sets import chebi_questions
from tests.align.runs import BATCH, make_config


@pytest.fixture(scope="module")
def encoding(real_data):
    return Encoding(load_tokenizer(real_data / "stories260K" / "hf"), AlignedSettings())


@pytest.fixture(scope="module")
def lengths(real_data, encoding):
    return [
        encoding.length(question) for question in chebi_questions(real_data, 150) if len(question.molecules[0]) < 90
    ]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("budget", [300, 1000, 4000, 1_000_000])
def test_every_row_once_within_the_budget(lengths, world, budget):
    ranks = pack(lengths, budget, world)
    assert len(ranks) == world and len({len(rounds) for rounds in ranks}) == 1
    groups = [group for rounds in ranks for group in rounds]
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    for group in groups:
        padded = len(group) * max((lengths[row] for row in group), default=0)
        assert padded <= budget or len(group) == 1
    least = sum(lengths) / budget
    assert len(ranks[0]) <= np.ceil(max(least * 1.6, len(lengths) / 100) / world) + 1


def test_padding_and_imbalance_are_small_on_real_lengths(lengths):
    ranks = pack(lengths, 4000, 2)
    sizes = [[len(group) * max(lengths[row] for row in group) for group in rounds] for rounds in ranks]
    assert sum(map(sum, sizes)) < 1.15 * sum(lengths)
    random_batches = [lengths[start : start + 8] for start in range(0, len(lengths), 8)]
    assert sum(len(batch) * max(batch) for batch in random_batches) > 1.3 * sum(lengths)
    assert max(map(sum, sizes)) < 1.1 * min(map(sum, sizes))


def test_fewer_rows_than_ranks_leave_empty_batches(encoding, real_data):
    assert pack([5], 100, 3) == [[[0]], [[]], [[]]]
    questions = chebi_questions(real_data, 1)
    shares = [rank_batches(questions, encoding, 1000, rank, 2) for rank in range(2)]
    assert [share.answer_tokens > 0 for share in shares] == [True, False]
    assert len({share.tokens for share in shares}) == 1 and len(shares[1].batches) == 1


def test_questions_that_do_not_fit_are_skipped_alike_on_every_rank(encoding, real_data):
    good = chebi_questions(real_data, 3)
    bad = [
        Question("long", "why? " * 3000, "because", ("CCO",)),
        Question("broken", "What is it?", "nothing", ("C1CC",)),
        Question("large", "What is it?", "a polymer", ("C" * 300,)),
    ]
    shares = [rank_batches([*bad, *good], encoding, 2000, rank, 2) for rank in range(2)]
    for share in shares:
        assert [question.id for question, _ in share.skipped] == ["long", "broken", "large"]
        assert all(isinstance(error, InputError) for _, error in share.skipped)
    rows = [question for share in shares for group in share.questions for question in group]
    assert sorted(question.id for question in rows) == sorted(question.id for question in good)


def test_answers_that_are_cut_are_counted(encoding, real_data):
    whole = chebi_questions(real_data, 3)
    long = replace(whole[0], answer=whole[0].answer * 200)
    shares = [rank_batches([*whole, long, long], encoding, 2000, rank, 2) for rank in range(2)]
    assert sum(share.cut for share in shares) == 2 and not shares[0].skipped
    assert rank_batches(whole, encoding, 2000, 0, 1).cut == 0


def test_steps_are_a_pure_function_of_their_number(align_inputs, encoding, tmp_path):
    config = make_config(tmp_path, align_inputs)
    order = QuestionOrder(config.data.sources, 7)

    def ids(prepared):
        return [question.id for group in prepared.questions for question in group]

    straight = TrainingBatches(order, encoding, BATCH, 900, 0, 1)
    steps = [ids(straight.take(step)) for step in range(4)]
    assert ids(TrainingBatches(order, encoding, BATCH, 900, 0, 1).take(3, last=True)) == steps[3]
    for step, found in enumerate(steps):
        expected = [order.question(number)[0].id for number in range(step * BATCH, (step + 1) * BATCH)]
        assert sorted(found) == sorted(expected)
    halves = [ids(TrainingBatches(order, encoding, BATCH, 900, rank, 2).take(2, last=True)) for rank in range(2)]
    assert sorted(halves[0] + halves[1]) == sorted(steps[2])
