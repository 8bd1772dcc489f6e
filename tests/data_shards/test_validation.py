"""Validation windows by source: every target of a source once, under names that stay apart."""

import pytest

from data_shards.shards import ShardSet
from data_shards.validation import validation_sources
from job.errors import InputError
from tests.data_shards.shard_sets import build_abstracts


@pytest.fixture(scope="module")
def corpora(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    for name, first in (("one", 0), ("two", 130)):
        build_abstracts(folder / name, real_data, 130, first)
    return folder


@pytest.mark.real
def test_every_target_counts_once(corpora):
    [(name, windows)] = validation_sources({"one": corpora / "one"}, 128).items()
    assert name == "shard"  # the source's name in its build
    validation = ShardSet(corpora / "one", "validation")
    assert sum(int(mask.sum()) for _, mask in windows) == validation.tokens - 1
    targets = [token for tokens, mask in windows for token in tokens[1:][mask].tolist()]
    stored = [token for number in range(len(validation)) for token in validation[number].tolist()]
    assert targets == stored[1:]


@pytest.mark.real
def test_sources_of_one_name_take_their_corpus_name(corpora):
    found = validation_sources({"one": corpora / "one", "two": corpora / "two"}, 128)
    assert list(found) == ["one-shard", "two-shard"]
    assert found["one-shard"][0][0].tolist() != found["two-shard"][0][0].tolist()


def test_refuses_what_is_no_build(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json does not exist"):
        validation_sources({"none": tmp_path}, 128)
