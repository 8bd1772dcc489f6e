"""Selection of single articles, on real ones."""

import collections
import dataclasses

import pytest

from data_shards.config import Selection
from data_shards.readers import pmc, s2orc, s2orc_metadata
from data_shards.select import drop_reason
from tests.data_shards.real_records import PUBMED_1979, PUBMED_2021, read_pubmed


def reasons(articles, **settings):
    selection = Selection(**settings)
    return collections.Counter(drop_reason(article, article.text(), selection) for article in articles)


def test_s2orc_needs_a_pubmed_or_pmc_id(real_data, tmp_path):
    """The paper's filter; an id that stands only in the metadata table counts."""
    paths = [*sorted((real_data / "s2orc").glob("20*.json")), real_data / "s2orc" / "s2orc_v2_bulk_257292514.jsonl"]
    articles = [article for path in paths for article in s2orc.read(path, pytest.fail)]
    assert reasons(articles) == {"no_pubmed_or_pmc_id": 5, None: 2}
    index = tmp_path / "index.sqlite"
    s2orc_metadata.build([real_data / "s2orc" / "metadata_sample.v20200705.jsonl.gz"], index, pytest.fail)
    with_ids = dataclasses.replace(next(article for article in articles if article.native_id == "94551546"), pmid="7")
    assert reasons([with_ids]) == {None: 1}


def test_titles_alone_and_stubs(real_data):
    articles = [article for path in (PUBMED_1979, PUBMED_2021) for article in read_pubmed(real_data / path)[0]]
    found = reasons(articles)
    assert found["no_text"] == 864 and found["too_short"] == 4 and found[None] == 3399 - 868
    assert reasons(articles, minimum_characters=0)["too_short"] == 0
    assert reasons(articles, minimum_characters=1000)["too_short"] > 500
    # An English abstract under a foreign title language is kept.
    foreign = [article for article in articles if article.language != "eng" and article.abstract]
    assert reasons(foreign)[None] > 50


def test_licences(real_data):
    articles = [
        article
        for path in sorted((real_data / "jats_fulltext").glob("*.tar.gz"))
        for article in pmc.read(path, pytest.fail)
    ]
    assert reasons(articles) == {None: 209}
    assert reasons(articles, licences=["cc0", "by"]) == {None: 198, "licence": 11}
    assert reasons(articles, licences=["by-nc"])[None] == 8
