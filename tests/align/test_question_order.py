"""The order of questions: a pure function of n, every question once per epoch, shares exact."""

import pickle
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from align.question_order import QuestionOrder
from data_shards.order import first_difference
from job.errors import InputError
from tests.align.question_sets import chebi_questions, write_set

pytestmark = pytest.mark.real


class Source(NamedTuple):
    name: str
    directory: Path
    weight: float | None = None


@pytest.fixture(scope="module")
def sets(real_data, tmp_path_factory):
    """Two sets of real questions without a common one."""
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "large", chebi_questions(real_data, 90), block_rows=30, shard_bytes=15_000)
    write_set(root / "small", chebi_questions(real_data, 31, 90))
    return root


def order(sets, *weights, seed=7):
    return QuestionOrder([Source(name, sets / name, weight) for name, weight in zip(("large", "small"), weights)], seed)


def test_an_epoch_asks_every_question_once_and_the_next_one_in_another_order(sets):
    one = QuestionOrder([Source("large", sets / "large")], 7)
    epochs = [[one.question(n)[0].id for n in range(90 * epoch, 90 * (epoch + 1))] for epoch in range(3)]
    for ids in epochs:
        assert sorted(ids) == sorted(question.id for question in one.sets[0])
    assert len({tuple(ids) for ids in epochs}) == 3
    assert one.epochs(225) == {"large": 2.5}


def test_question_n_does_not_depend_on_what_was_asked_before(sets):
    counted = [order(sets, 0.3, 0.7).question(n) for n in range(200)]
    again = order(sets, 0.3, 0.7)
    assert [again.question(n) for n in reversed(range(200))] == counted[::-1]
    elsewhere = pickle.loads(pickle.dumps(again))
    assert elsewhere.question(123) == counted[123]
    other = order(sets, 0.3, 0.7, seed=8)
    assert [other.question(n) for n in range(200)] != counted


def test_mixture_follows_the_weights_and_reads_each_source_as_if_alone(sets):
    mixed = order(sets, 1, 3)
    alone = {name: QuestionOrder([Source(name, sets / name)], 7) for name in mixed.names}
    taken = Counter({"large": 0, "small": 0})
    for n in range(400):
        question, name = mixed.question(n)
        assert question == alone[name].question(taken[name])[0]
        taken[name] += 1
        assert mixed.counts(n + 1) == taken
        assert abs(taken["small"] - 0.75 * (n + 1)) < 1
    assert mixed.weights == {"large": 0.25, "small": 0.75}
    assert mixed.epochs(400)["small"] == 300 / 31


def test_without_weights_shares_follow_sizes(sets):
    mixed = order(sets, None, None)
    asked = [mixed.question(n)[0].id for n in range(121)]
    assert len(set(asked)) == 121, "both sets end their epoch together"


def test_far_away_agrees_with_counts(sets):
    mixed = order(sets, 0.123, 0.877)
    far = 10**9 + 7
    before = mixed.counts(far)
    assert sum(before.values()) == far
    names = [mixed.question(n)[1] for n in range(far, far + 40)]
    assert mixed.counts(far + 40) == {name: before[name] + names.count(name) for name in before}


def test_the_fingerprint_tells_what_changed(sets):
    base = order(sets, 1, 3).fingerprint()
    assert first_difference(base, order(sets, 1, 3).fingerprint()) is None
    assert first_difference(base, order(sets, 1, 3, seed=8).fingerprint()) == "seed was 7, is now 8"
    assert first_difference(base, order(sets, 1, 2).fingerprint()).startswith("sources[0].parts was 1")
    other = QuestionOrder([Source("large", sets / "small"), Source("small", sets / "large")], 7).fingerprint()
    assert "sources[0]" in first_difference(base, other)


def test_mistakes_are_named(sets, tmp_path):
    with pytest.raises(InputError, match="no training data"):
        QuestionOrder([], 7)
    with pytest.raises(InputError, match="two data sources are named 'a'"):
        QuestionOrder([Source("a", sets / "large"), Source("a", sets / "small")], 7)
    with pytest.raises(InputError, match=r"'small' has weight None.*proportion to their questions"):
        order(sets, 1, None)
    empty = write_set(tmp_path / "empty", [])
    with pytest.raises(InputError, match=r"'e' .* has no training questions"):
        QuestionOrder([Source("e", empty)], 7)
    with pytest.raises(IndexError):
        order(sets, 1, 1).question(-1)
    with pytest.raises(InputError, match="seed is -1"):
        order(sets, 1, 1, seed=-1)
