"""Promise 1: sample n is a pure function of (shard set, seed, sequence length, n)."""

import multiprocessing
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from data_shards import order
from data_shards.shards import ShardSet
from job.errors import InputError
from tests.data_shards.shard_sets import build_abstracts, write_build


@pytest.fixture(scope="module")
def shards(real_data, tmp_path_factory):
    return build_abstracts(tmp_path_factory.mktemp("build"), real_data, count=240)


def reference_stream(shards, seed, epochs):
    """The definition, written out: permuted documents of each epoch, one epoch after another."""
    parts = [shards[int(n)] for e in range(epochs) for n in order.permutation(len(shards), seed, e)]
    return np.concatenate(parts).astype(np.int64)


@pytest.mark.real
@pytest.mark.parametrize("sequence_length", [1, 7, 128, 2048, 500_000])
def test_windows_are_the_stream_cut_at_multiples_of_the_sequence_length(shards, sequence_length):
    """Over more than three epochs, borders included; 500,000 is several epochs in one window."""
    stream = reference_stream(shards, 11, 4 if sequence_length < 500_000 else 12)
    windows = order.TrainingWindows(shards, sequence_length, 11)
    last = (len(stream) - 1) // sequence_length
    samples = range(last) if sequence_length > 100 else [*range(40), *range(0, last, 9973), last - 1]
    # The windows around each epoch's end matter most.
    borders = [shards.tokens * epoch // sequence_length + shift for epoch in (1, 2, 3) for shift in (-1, 0, 1)]
    for sample in [*samples, *(border for border in borders if 0 <= border < last)]:
        start = sample * sequence_length
        assert np.array_equal(windows[sample], stream[start : start + sequence_length + 1])


@pytest.mark.real
def test_each_token_is_an_input_exactly_once_per_epoch(shards):
    """Counted over two epoch borders, by what the documents hold rather than by the reading code."""
    length = 97
    windows = order.TrainingWindows(shards, length, 5)
    held = np.bincount(np.concatenate([shards[n] for n in range(len(shards))]), minlength=32000)
    inputs = np.concatenate([windows[n][:-1] for n in range(3 * shards.tokens // length + 1)])
    for epoch in range(3):
        part = inputs[epoch * shards.tokens : (epoch + 1) * shards.tokens]
        assert np.array_equal(np.bincount(part, minlength=32000), held)


@pytest.mark.real
def test_targets_are_the_next_inputs(shards):
    windows = order.TrainingWindows(shards, 300, 0)
    count = 2 * shards.tokens // 300
    assert all(windows[n][-1] == windows[n + 1][0] for n in range(count))


@pytest.mark.real
def test_the_stream_does_not_depend_on_the_sequence_length(shards):
    short, long = order.TrainingWindows(shards, 256, 2), order.TrainingWindows(shards, 1024, 2)
    for sample in range(0, 200, 3):
        joined = np.concatenate([short[4 * sample + part][:-1] for part in range(4)])
        assert np.array_equal(joined, long[sample][:-1])


@pytest.mark.real
def test_opening_anywhere_in_any_order_gives_the_same_samples(shards):
    """Forwards, backwards, by freshly opened readers, pickled ones and in another process."""
    straight = order.TrainingWindows(shards, 512, 9)
    count = 3 * shards.tokens // 512
    wanted = [straight[n] for n in range(count)]
    backwards = order.TrainingWindows(ShardSet(shards.directory), 512, 9)
    assert all(np.array_equal(backwards[n], wanted[n]) for n in reversed(range(count)))
    for sample in range(0, count, 37):
        assert np.array_equal(order.TrainingWindows(shards, 512, 9)[sample], wanted[sample])
    copy = pickle.loads(pickle.dumps(straight))
    assert np.array_equal(copy[count - 1], wanted[count - 1])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        elsewhere = pool.map(straight.__getitem__, range(0, count, 50))
    assert all(np.array_equal(got, wanted[n]) for got, n in zip(elsewhere, range(0, count, 50), strict=True))


@pytest.mark.real
def test_any_split_over_ranks_and_restarts_gives_every_sample_once(shards):
    """Data-parallel size and stops only decide who reads which n; the union is the same."""
    wanted = [order.TrainingWindows(shards, 256, 1)[n] for n in range(96)]
    for schedule in ([(1, 96)], [(2, 48), (4, 48)], [(3, 30), (8, 16), (1, 50)]):
        seen, consumed = {}, 0
        for ranks, samples in schedule:  # each entry is a restart with another number of ranks
            readers = [order.TrainingWindows(ShardSet(shards.directory), 256, 1) for _ in range(ranks)]
            for n in range(consumed, consumed + samples):
                assert n not in seen
                seen[n] = readers[n % ranks][n]
            consumed += samples
        assert all(np.array_equal(seen[n], wanted[n]) for n in range(96))


def test_permutations_are_whole_uniform_and_differ_by_seed_and_epoch():
    documents = 60
    orders = np.array([order.permutation(documents, seed, epoch) for seed in range(60) for epoch in range(50)])
    assert (np.sort(orders, axis=1) == np.arange(documents)).all()
    assert len({row.tobytes() for row in orders}) == len(orders)
    counts = np.zeros((documents, documents))
    for place in range(documents):
        counts[place] = np.bincount(orders[:, place], minlength=documents)
    expected = len(orders) / documents
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (documents - 1) ** 2
    assert abs(chi_square - freedom) < 5 * (2 * freedom) ** 0.5
    follows = np.mean(orders[:, 1:] == orders[:, :-1] + 1)
    assert abs(follows - 1 / documents) < 0.002


def test_a_known_permutation_stays_what_it_is():
    """Written down once: a change here would silently change the data order of every resumed run."""
    assert order.permutation(10, 1234, 0).tolist() == [8, 9, 7, 3, 0, 1, 4, 2, 5, 6]
    assert order.permutation(10, 1234, 1).tolist() == [0, 9, 5, 6, 4, 2, 8, 1, 7, 3]


@pytest.mark.real
def test_documents_of_a_window_are_named_for_logs(shards):
    windows = order.TrainingWindows(shards, 700, 4)
    for sample in (0, 5, shards.tokens // 700, 2 * shards.tokens // 700):
        joined = np.concatenate([shards[number] for _, number in windows.documents(sample)]).astype(np.int64)
        window = windows[sample]
        ends = [start for start in range(len(joined) - 700) if np.array_equal(joined[start : start + 701], window)]
        assert ends
    border = windows.documents(shards.tokens // 700)
    assert {epoch for epoch, _ in border} == {0, 1}


@pytest.mark.real
@pytest.mark.parametrize("sequence_length", [64, 333, 10_000_000])
def test_validation_windows_cover_every_target_once(shards, sequence_length):
    split = ShardSet(shards.directory, "validation")
    windows = order.ValidationWindows(split, sequence_length)
    whole = np.concatenate([split[n] for n in range(len(split))]).astype(np.int64)
    inputs = np.concatenate([tokens[:-1][mask] for tokens, mask in windows])
    targets = np.concatenate([tokens[1:][mask] for tokens, mask in windows])
    assert np.array_equal(inputs, whole[:-1])
    assert np.array_equal(targets, whole[1:])
    assert all(mask.all() for _, mask in list(windows)[:-1])
    tokens, mask = windows[len(windows) - 1]
    assert (tokens[1:][~mask] == 2).all()
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_memory_per_document_is_as_documented():
    """The reader's own arrays and an epoch's, at two million documents."""
    count = 2_000_000
    lengths = np.full(count, 300, np.int32)
    tracemalloc.start()
    epoch = order._Epoch(order.permutation(count, 0, 0), lengths)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert epoch.starts[-1] == 300 * count
    assert kept / count < 4.6
    assert peak / count < 25


@pytest.mark.real
def test_a_changed_shard_set_is_explained_by_its_first_difference(shards, real_data, tmp_path):
    stored = order.fingerprint(shards)
    assert order.first_difference(stored, order.fingerprint(ShardSet(shards.directory))) is None
    other = build_abstracts(tmp_path / "other", real_data, count=240, first=1)
    difference = order.first_difference(stored, order.fingerprint(other))
    assert difference.startswith("shards[0].tokens was")
    fewer = build_abstracts(tmp_path / "fewer", real_data, count=150)
    assert "shards[2]" in order.first_difference(stored, order.fingerprint(fewer))
    assert order.first_difference({"a": 1}, {"b": 1}) == "a is gone"
    assert order.first_difference({"a": [1]}, {"a": [1, 2]}) == "a had 1 entries, has now 2"


def test_user_mistakes_are_one_sentence(tmp_path):
    build = write_build(tmp_path, {"train": [np.array([1, 2], np.uint16)], "validation": []})
    with pytest.raises(InputError, match="has no tokens"):
        order.ValidationWindows(ShardSet(build, "validation"), 8)
    with pytest.raises(InputError, match="no split 'test'"):
        ShardSet(build, "test")
    with pytest.raises(InputError, match="sequence length is 0"):
        order.TrainingWindows(ShardSet(build), 0, 1)
    with pytest.raises(InputError, match="seed is -1"):
        order.TrainingWindows(ShardSet(build), 8, -1)


def test_an_id_beyond_the_vocabulary_stops_training_with_a_sentence(tmp_path):
    documents = [np.array([1, 5, 6, 2], np.uint16)] * 9
    build = write_build(tmp_path, {"train": documents, "validation": []})
    with open(build / "train" / "shard-00000.tar", "r+b") as shard:
        shard.seek(512 + 128 + 2 * 5)
        shard.write(b"\xff\xff")  # same size: only reading shows it
    with pytest.raises(InputError, match=r"id 65535 among tokens .* data_shards verify"):
        order.TrainingWindows(ShardSet(build), 36, 0)[0]


def test_reading_needs_no_tar_library_and_no_torch(tmp_path):
    """Workers start fast, and nothing decodes tar while training reads."""
    write_build(tmp_path, {"train": [np.array([1, 4, 2], np.uint16)] * 9, "validation": []})
    program = f"""
import sys
from pathlib import Path
from data_shards.mixture import Source, TrainingOrder
import tarfile
order = TrainingOrder([Source("a", Path({str(tmp_path)!r}))], 5, 0)
tarfile.open = tarfile.TarFile.__init__ = None
assert order.sample(7).tokens.tolist() == [2, 1, 4, 2, 1, 4]  # all documents are alike: tokens 35 to 41
assert "torch" not in sys.modules and "webdataset" not in sys.modules, "heavy import"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
