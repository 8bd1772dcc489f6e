"""Mixtures: whose turn it is follows from n alone, shares are exact, sources are read as if alone."""

import itertools
import json
import pickle

import numpy as np
import pytest

from data_shards.deficit import one_period, whole_parts
from data_shards.mixture import Source, TrainingOrder
from data_shards.order import TrainingWindows, first_difference
from data_shards.shards import ShardSet, TokenizerInfo
from job.errors import InputError
from tests.data_shards.shard_sets import build_abstracts, write_build


@pytest.fixture(scope="module")
def corpora(real_data, tmp_path_factory):
    """Two real corpora, the second half as large."""
    root = tmp_path_factory.mktemp("corpora")
    build_abstracts(root / "large", real_data, count=160)
    build_abstracts(root / "small", real_data, count=80, first=200)
    return root


def mixture(corpora, *weights, sequence_length=128, seed=7):
    names = ["large", "small"]
    sources = [Source(name, corpora / name, weight) for name, weight in zip(names, weights, strict=True)]
    return TrainingOrder(sources, sequence_length, seed)


@pytest.mark.real
def test_every_source_is_read_as_if_it_were_alone(corpora):
    """Over two epochs of the smaller: the k-th sample taken from a source is its k-th window, none skipped."""
    order = mixture(corpora, 0.3, 0.7)
    alone = {name: TrainingWindows(ShardSet(corpora / name), 128, 7) for name in order.names}
    taken = dict.fromkeys(order.names, 0)
    n = 0
    while taken["small"] * 128 < 2.1 * order.tokens()["small"]:
        sample = order.sample(n)
        assert sample.number == taken[sample.source]
        assert np.array_equal(sample.tokens, alone[sample.source][sample.number])
        assert sample.tokens.dtype == np.int64
        taken[sample.source] += 1
        n += 1
        assert order.counts(n) == taken
    assert order.epochs(n)["small"] == pytest.approx(2.1, abs=0.01)
    assert order.epochs(n)["large"] == taken["large"] * 128 / order.tokens()["large"]


@pytest.mark.real
def test_opening_far_away_agrees_with_counting_from_the_start(corpora):
    order = mixture(corpora, 0.123, 0.877)
    far = 1_000_003  # several periods away
    counts = order.counts(far)
    assert sum(counts.values()) == far
    for n in range(far, far + 50):
        source, number = order.choose(n)
        name = order.names[source]
        assert number == order.counts(n)[name]
        assert order.counts(n + 1)[name] == number + 1
    again = pickle.loads(pickle.dumps(order))
    assert np.array_equal(again.sample(far).tokens, order.sample(far).tokens)
    fresh = mixture(corpora, 0.123, 0.877)
    assert np.array_equal(fresh.sample(far).tokens, order.sample(far).tokens)


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [0.5, 0.3, 0.2], [1e-9, 1.0], [3.3, 1.1, 2.7, 0.001]])
def test_largest_deficit_keeps_every_prefix_within_one_sample_of_its_share(weights):
    parts = whole_parts([float(weight) for weight in weights])
    choice, before = one_period(parts)
    total = sum(parts)
    assert np.array_equal(before[-1], parts), "after a period every source is exactly at its share"
    shares = np.arange(total + 1)[:, None] * (np.array(parts) / total)
    assert np.abs(before - shares).max() < len(parts)
    assert (before - shares).max() < 1
    assert np.array_equal(np.bincount(choice, minlength=len(parts)), parts)
    exact = np.array(weights) / sum(weights)
    assert np.abs(np.array(parts) / total - exact).max() < 2e-5


def test_the_period_equals_the_definition():
    """choice(n) = argmax over sources of share*(n+1) - taken, computed here with fractions over three periods."""
    from fractions import Fraction

    parts = [7, 2, 4]
    choice, _ = one_period(parts)
    taken = [0, 0, 0]
    for n in range(3 * 13):
        deficits = [Fraction(part, 13) * (n + 1) - count for part, count in zip(parts, taken)]
        source = deficits.index(max(deficits))
        assert choice[n % 13] == source
        taken[source] += 1


@pytest.mark.real
def test_without_weights_sources_end_their_epochs_together(corpora):
    order = mixture(corpora, None, None)
    tokens = order.tokens()
    assert order.weights["large"] == pytest.approx(tokens["large"] / sum(tokens.values()), abs=1e-5)
    epochs = order.epochs(100_000)
    assert epochs["large"] == pytest.approx(epochs["small"], rel=1e-3)


@pytest.mark.real
def test_seed_weights_and_length_are_part_of_the_function(corpora):
    def first(order):
        return [order.sample(n).tokens.tobytes() for n in range(20)]

    plain = first(mixture(corpora, 0.5, 0.5))
    assert plain == first(mixture(corpora, 1, 1))
    assert plain != first(mixture(corpora, 0.5, 0.5, seed=8))
    assert plain != first(mixture(corpora, 0.6, 0.4))


@pytest.mark.real
def test_fingerprint_survives_json_and_names_what_changed(corpora):
    stored = json.loads(json.dumps(mixture(corpora, 0.5, 0.5).fingerprint()))
    assert first_difference(stored, mixture(corpora, 0.5, 0.5).fingerprint()) is None
    changed = {
        "seed was 7, is now 8": mixture(corpora, 0.5, 0.5, seed=8),
        "sequence_length was 128, is now 256": mixture(corpora, 0.5, 0.5, sequence_length=256),
        "sources[0].parts was 1, is now 3": mixture(corpora, 0.75, 0.25),
    }
    for sentence, order in changed.items():
        assert first_difference(stored, order.fingerprint()) == sentence
    other = TrainingOrder([Source("large", corpora / "large", 1), Source("small", corpora / "large", 1)], 128, 7)
    assert first_difference(stored, other.fingerprint()).startswith("sources[1].shards[0].")


@pytest.mark.real
def test_a_batch_is_its_samples(corpora):
    order = mixture(corpora, 0.6, 0.4)
    borders = [order.tokens()["large"] * 10 // (6 * 128), order.tokens()["small"] * 10 // (4 * 128)]
    for first in (0, 1, 500, 131_070, *(border - 3 for border in borders)):  # ends of epochs and of the period
        for count in (1, 2, 9):
            batch = order.batch(first, count)
            assert batch.shape == (count, 129) and batch.flags.c_contiguous
            assert all(np.array_equal(batch[row], order.sample(first + row).tokens) for row in range(count))
    alone = TrainingWindows(ShardSet(corpora / "small"), 700_000, 3)
    assert np.array_equal(alone.batch(2, 2), np.stack([alone[2], alone[3]]))
    with pytest.raises(IndexError):
        order.batch(-1, 2)


@pytest.mark.real
def test_documents_of_a_sample_belong_to_its_source(corpora):
    order = mixture(corpora, 0.5, 0.5)
    for n in range(10):
        sample = order.sample(n)
        shards = ShardSet(corpora / sample.source)
        joined = np.concatenate([shards[number] for _, number in order.documents(n)]).astype(np.int64)
        assert sample.tokens.tobytes() in joined.tobytes()


def test_user_mistakes_are_one_sentence(tmp_path):
    ids = [np.array([1, 5, 2], np.uint16)] * 4
    a = write_build(tmp_path / "a", {"train": ids, "validation": []})
    other = TokenizerInfo("gpt2", "1" * 64, 50257, None, 2)
    b = write_build(tmp_path / "b", {"train": ids, "validation": []}, tokenizer=other)
    cases = {
        "no training data": [],
        "two data sources are named 'x'": [Source("x", a), Source("x", a)],
        "tokenised with gpt2": [Source("x", a), Source("y", b)],
        "has weight None": [Source("x", a, 1.0), Source("y", a)],
        "has weight -1": [Source("x", a, 1.0), Source("y", a, -1)],
        "has weight nan": [Source("x", a, float("nan"))],
        r"manifest\.json does not exist": [Source("x", tmp_path)],
    }
    for sentence, sources in cases.items():
        with pytest.raises(InputError, match=sentence):
            TrainingOrder(sources, 8, 0)
    with pytest.raises(IndexError):
        TrainingOrder([Source("x", a)], 8, 0).sample(-1)


@pytest.mark.real
def test_interleaving_is_even_not_in_runs(corpora):
    order = mixture(corpora, 0.25, 0.75)
    runs = [len(list(group)) for _, group in itertools.groupby(order.choose(n)[0] for n in range(400))]
    assert max(runs) <= 3
