"""One copy of each article: PubMed's update rules, retractions and duplicates, on real records."""

import dataclasses
import json

import numpy as np
import pytest

from data_shards.articles import Article, Deletion, Section
from data_shards.duplicates import KEY_DTYPE, REASONS, article_row, deletion_row, resolve, text_hash
from data_shards.readers import jsonl
from tests.data_shards.real_records import PUBMED_1979, PUBMED_2021, read_pubmed

PRIORITY = {"pmc": 0, "s2orc": 1, "pubmed": 2, "jsonl": 3}


@pytest.fixture(scope="module")
def pubmed(real_data):
    return {article.pmid: article for article in read_pubmed(real_data / PUBMED_2021)[0] if article.abstract}


def decide(records, include_retracted=False):
    rows = [
        deletion_row(record)
        if isinstance(record, Deletion)
        else article_row(record, record.text(), record.source, PRIORITY[record.source], None)
        for record in records
    ]
    return [REASONS[code] for code in resolve(np.array(rows, KEY_DTYPE), include_retracted)]


def as_full_text(article, source="pmc", **changes):
    """The same article as another source would have it."""
    body = (Section("Methods", ("We measured what had to be measured.",)),)
    return dataclasses.replace(article, source=source, sections=body, **changes)


def test_best_source_wins(pubmed):
    article = pubmed["25897341"]  # has a PMID, a PMCID and a DOI
    pmc = as_full_text(article, "pmc", pmid=None)
    s2orc = as_full_text(article, "s2orc", pmcid=None, doi=None, native_id="1")
    plain = as_full_text(article, "jsonl", pmid=None, pmcid=None, native_id="x")
    for records in ([pmc, s2orc, article, plain], [plain, article, s2orc, pmc]):
        reasons = decide(records)
        assert [record.source for record, reason in zip(records, reasons, strict=True) if not reason] == ["pmc"]
        assert reasons.count("duplicate_id") == 3
    # PMC (no PMID) and S2ORC (only a PMID) share no id: the PubMed record, itself dropped, is the bridge.
    assert decide([pmc, dataclasses.replace(s2orc, title="Another form")]) == ["", ""]
    assert decide([s2orc, article]) == ["", "duplicate_id"]


def test_records_without_text_still_connect_ids(pubmed):
    article = pubmed["25897341"]
    pmc, s2orc = as_full_text(article, pmid=None), as_full_text(article, "s2orc", pmcid=None, doi=None)
    rows = [
        article_row(pmc, pmc.text(), "pmc", 0, None),
        article_row(s2orc, s2orc.text(), "s2orc", 1, None),
        article_row(article, article.text(), "pubmed", 2, "no_text"),
    ]
    assert [REASONS[code] for code in resolve(np.array(rows, KEY_DTYPE), False)] == ["", "duplicate_id", "no_text"]


def test_the_longer_of_two_equal_sources_wins(pubmed):
    short = as_full_text(pubmed["25897341"], native_id="1")
    long = dataclasses.replace(short, sections=(*short.sections, Section("Results", ("More.",))))
    assert decide([short, long]) == ["duplicate_id", ""]
    assert decide([short, dataclasses.replace(short)]) == ["", "duplicate_id"]


def test_equal_texts_are_found_whatever_their_ids(real_data, pubmed):
    article = pubmed["29225084"]
    again = dataclasses.replace(article, pmid="1", pmcid=None, doi=None, title=article.title.upper())
    assert decide([article, again]) == ["", "duplicate_text"]
    assert text_hash("TNF-α, 5 μM.") == text_hash("tnf α 5 µM") != text_hash("TNF-α, 5 nM.")
    natural = list(jsonl.read(real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz", pytest.fail))
    reasons = decide(natural)
    assert reasons.count("duplicate_text") == 4 and reasons.count("retracted") == 1


def test_a_doi_shared_by_different_pmids_identifies_nothing(pubmed):
    """Abstracts of one conference supplement carry the supplement's DOI."""
    first, second = (
        dataclasses.replace(pubmed[pmid], doi="10.1000/supplement", pmcid=None) for pmid in ("25897341", "29225084")
    )
    assert decide([first, second]) == ["", ""]


def test_update_files(pubmed):
    old = pubmed["29225084"]
    revised = dataclasses.replace(old, title="Revised title", source_file="pubmed21n1299.xml.gz")
    gone = Deletion(old.pmid, 1, "pubmed21n1300.xml.gz", "byte 7")
    assert decide([old, revised]) == ["superseded", ""]
    assert decide([old, gone]) == ["deleted", "deleted"]
    assert decide([old, gone, revised]) == ["superseded", "superseded", ""]  # deleted, then published again
    other_version = Deletion(old.pmid, 2, "pubmed21n1300.xml.gz", "byte 7")
    assert decide([old, other_version])[0] == ""


def test_highest_version_wins_over_file_order(pubmed):
    third = pubmed["30271887"]
    assert third.version == 3
    fourth = dataclasses.replace(third, version=4, title="Version four")
    first = dataclasses.replace(third, version=1, title="Version one")
    assert decide([fourth, third, first]) == ["", "superseded", "superseded"]
    assert decide([first, fourth, Deletion(third.pmid, 4, "f", "byte 0")]) == ["", "deleted", "deleted"]


def test_retraction_reaches_every_copy(pubmed):
    retracted = pubmed["27602157"]
    assert retracted.retracted == "retracted"
    copy = as_full_text(retracted, "pmc", pmid=None, pmcid=None, retracted=None)
    by_text = dataclasses.replace(retracted, source="jsonl", pmid=None, pmcid=None, doi=None, retracted=None)
    other = pubmed["25897341"]
    assert decide([copy, retracted, by_text, other]) == ["retracted", "retracted", "retracted", ""]
    assert decide([copy, retracted, by_text, other], include_retracted=True)[0] == ""


def test_a_later_update_retracts_and_an_old_mark_does_not_linger(pubmed):
    marked = pubmed["27602157"]
    clean = dataclasses.replace(marked, retracted=None)
    assert decide([clean, marked]) == ["superseded", "retracted"]
    assert decide([marked, clean]) == ["superseded", ""]


def test_retraction_notice_is_dropped_but_not_what_it_names(real_data):
    articles, _, _ = read_pubmed(real_data / PUBMED_2021)
    notice = next(article for article in articles if article.retracted == "retraction-notice")
    notice = dataclasses.replace(notice, abstract=("This article was retracted.",))
    assert decide([notice, articles[0]]) == ["retraction_notice", ""]


def test_duplicate_ids_within_a_source():
    def article(identifier, text):
        return Article("jsonl", "a.jsonl", "line 1", native_id=identifier, abstract=(text,))

    assert decide([article("7", "One text."), article("7", "Another, longer text."), article("8", "A third.")]) == [
        "duplicate_id",
        "",
        "",
    ]


def test_order_of_unrelated_records_does_not_matter(real_data):
    articles = read_pubmed(real_data / PUBMED_2021)[0] + read_pubmed(real_data / PUBMED_1979)[0]
    plain = list(jsonl.read(real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz", pytest.fail))
    records = articles + plain
    forward, backward = decide(records), decide(records[::-1])[::-1]
    kept = [
        {record.id for record, why in zip(records, reasons, strict=True) if not why} for reasons in (forward, backward)
    ]
    # Only which of two equal texts stays depends on the order.
    assert len(kept[0]) == len(kept[1]) and len(kept[0] ^ kept[1]) <= 2 * forward.count("duplicate_text")


def test_rows_are_small_and_plain():
    assert KEY_DTYPE.itemsize <= 64 and not KEY_DTYPE.hasobject
    json.dumps(REASONS)
    assert resolve(np.empty(0, KEY_DTYPE), False).shape == (0,)
