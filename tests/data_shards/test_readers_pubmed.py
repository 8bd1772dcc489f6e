"""PubMed XML: every trap that real files hold, on the real record that holds it."""

import gzip
import re

import pytest

from data_shards.clean import strip_notices
from data_shards.readers import pubmed
from data_shards.readers.markup import without_escaped_markup
from data_shards.readers.streams import DamagedFile
from job.errors import InputError
from tests.data_shards.real_records import PUBMED_1979, PUBMED_2021, pubmed_file, pubmed_records, read_pubmed


@pytest.fixture(scope="module")
def articles(real_data):
    found, deletions, rejects = read_pubmed(real_data / PUBMED_2021)
    assert not rejects
    return {article.pmid: article for article in found}, deletions


@pytest.fixture(scope="module")
def old_articles(real_data):
    found, deletions, rejects = read_pubmed(real_data / PUBMED_1979)
    assert not rejects and not deletions
    return {article.pmid: article for article in found}


def test_counts(articles, old_articles):
    found, deletions = articles
    assert len(found) == 2199 and len(old_articles) == 1200
    assert sum(bool(article.abstract) for article in found.values()) == 1967
    assert sum(bool(article.abstract) for article in old_articles.values()) == 568
    assert len(deletions) == 20 and (deletions[0].pmid, deletions[0].version) == ("31688362", 1)


def test_superscripts_after_digits_are_not_glued(articles):
    text = articles[0]["33553072"].text()
    assert "150 × 10^9/L" in text and "109/L" not in text
    assert "1.58 × 10^-4" in articles[0]["33020596"].text()


def test_nested_markup_loses_no_text(articles, real_data):
    """Parsers lose text around markup (pubmed_parser in 142 abstracts of this file); here every letter is kept."""
    found, _ = articles
    for pmid, record in pubmed_records(real_data / PUBMED_2021).items():
        source = re.search(rb"<Abstract>(.*?)</Abstract>", record, re.DOTALL)
        if source is None or b"<mml:" in source[1]:
            continue
        if re.search("opyright|©|rights reserved", source[1].decode()):
            continue
        source_text = "".join(re.findall(r"<AbstractText[^>]*>(.*?)</AbstractText>", source[1].decode(), re.DOTALL))
        letters = re.findall(r"[^\W\d_]", re.sub(r"<[^>]*>|&lt;/?(o:)?p&gt;|&amp;nbsp;|&\w+;", "", source_text))
        labels = re.findall(r'<AbstractText[^>]*?Label="([^"]*)"', source[1].decode())
        kept = len(re.findall(r"[^\W\d_]", "".join(found[pmid].abstract)))
        assert len(letters) <= kept <= len(letters) + sum(len(label) for label in labels), pmid
    assert "5DJ" in found["34019423"].text().replace("^", "")


def test_html_that_was_escaped_twice_is_read(articles, real_data):
    assert b"&lt;p&gt;Immediate fixed" in pubmed_records(real_data / PUBMED_2021)["34091678"]
    [abstract] = articles[0]["34091678"].abstract
    assert "<" not in abstract and "&nbsp;" not in abstract and abstract.startswith("Immediate fixed full arch")
    assert "quality of life. The surgical" in abstract and abstract.endswith("restored the arch immediately.")
    assert sum("<" in text for article in articles[0].values() for text in article.abstract) > 250  # p < 0.05 and so on


def test_only_escaped_markup_is_touched():
    for text in ("a<b and c>d", "p<0.05</i", "AT&T; R&D; x &lt y", "p <p0 and i>3"):
        assert without_escaped_markup(text) == text
    assert without_escaped_markup("10<sup>5</sup> CO<sub>2</sub>, p &lt; 0.05") == "10^5 CO2, p < 0.05"


def test_labels_are_kept_and_unlabelled_is_not_printed(articles, old_articles):
    abstract = articles[0]["31193743"].abstract
    assert abstract[0].startswith("BACKGROUND: Internet Gaming Disorder") and len(abstract) > 2
    assert old_articles["403755"].abstract[0].startswith("The objective of this study")
    assert all("UNLABELLED" not in article.text() for article in old_articles.values())


def test_titles_of_translations(old_articles):
    assert old_articles["399546"].title == "Jean-Baptiste Van Helmont (1579-1644), the baroque and teeth."
    assert old_articles["399758"].title == "Precordial St segment mapping and its clinical application."
    assert not any("transl)" in article.title or article.title.startswith("[") for article in old_articles.values())


def test_empty_titles_stay_empty(articles):
    assert articles[0]["34059504"].title == "" and articles[0]["34059504"].pmid in articles[0]["34059504"].id
    assert not any(article.title in (".", "[]", "[].") for article in articles[0].values())


def test_year_from_medline_date(articles, old_articles):
    assert old_articles["399364"].year == 1979  # <MedlineDate>1979 May-Jun</MedlineDate>
    assert old_articles["399829"].year == 1977  # <MedlineDate>1977-1978</MedlineDate>
    assert all(article.year for article in [*articles[0].values(), *old_articles.values()])


def test_identifiers_are_the_articles_own(articles, old_articles, real_data):
    """`.//ArticleId` would find the cited articles' ids in 450 of these records."""
    assert articles[0]["25897341"].pmcid == "PMC4402500" and articles[0]["25897341"].doi == "10.7150/thno.10853"
    assert old_articles["400085"].doi == "10.1007/bf00443286" and old_articles["400085"].pmcid is None
    records = pubmed_records(real_data / PUBMED_2021)
    with_pmc = [pmid for pmid, record in records.items() if re.search(rb'IdType="pmc">', _own_ids(record))]
    assert with_pmc == [pmid for pmid, article in articles[0].items() if article.pmcid]


def _own_ids(record):
    return record[record.index(b"<ArticleIdList>") : record.index(b"</ArticleIdList>")]


def test_retraction_markers(articles):
    found, _ = articles
    marked = {pmid: article.retracted for pmid, article in found.items() if article.retracted}
    assert marked == {"27602157": "retracted", "32743968": "retracted", "34086832": "retraction-notice"}


def test_version_is_exposed(articles):
    assert articles[0]["30271887"].version == 3


def test_foreign_language_with_english_abstract_is_read(old_articles):
    foreign = [article for article in old_articles.values() if article.language != "eng" and article.abstract]
    assert len(foreign) > 50
    assert sum(" the " in article.abstract[0] for article in foreign) > 0.8 * len(foreign)


def test_other_abstracts_are_left_out(articles):
    assert articles[0]["34003321"].abstract and "ZUSAMMENFASSUNG" not in articles[0]["34003321"].text()
    assert "Plain language" not in articles[0]["33759761"].text()


def test_copyright_sentences_are_cut(articles):
    text = articles[0]["33140849"].text()
    assert "Within artificial intelligence" in text and "©" not in text and "John Wiley" not in text
    assert articles[0]["32673026"].text().endswith("implications for both theory and practice.")
    ends = [article.text()[-300:] for article in articles[0].values()]
    assert not any("rights reserved" in end or "©" in end for end in ends)
    assert (
        strip_notices("Groups were (a) 2019, (b) 2020 and (c) 2021.") == "Groups were (a) 2019, (b) 2020 and (c) 2021."
    )
    assert strip_notices("It works. (ABSTRACT TRUNCATED AT 250 WORDS)") == "It works."


def test_unicode_survives_and_invisible_characters_go(articles):
    found, _ = articles
    assert "IL-1β" in found["29225084"].text() and "α-L-rhamnopyranosyl" in found["31397172"].text()
    assert "22.42 ng/ml" in found["34095410"].text()  # U+200B between them in the file
    text = "".join(article.text() for article in found.values())
    assert sum(letter in "αβγδεμ" for letter in text) > 500 and "≥" in text and "±" in text
    assert "µ" in text  # U+00B5, which NFKC would turn into U+03BC


def test_malformed_record_costs_only_itself(real_data, tmp_path):
    records = list(pubmed_records(real_data / PUBMED_2021).values())[:5]
    broken = records[2].replace(b"</ArticleTitle>", b"</Article>", 1)
    no_pmid = re.sub(rb'<PMID Version="1">\d+</PMID>', b"", records[3], count=1)
    path = pubmed_file(tmp_path / "pubmed.xml", [*records[:2], broken, no_pmid, records[4]])
    articles, _, rejects = read_pubmed(path)
    assert len(articles) == 3
    assert [reject.reason for reject in rejects] == ["malformed_xml", "missing_field"]
    position = int(rejects[0].source_position.removeprefix("byte "))
    assert path.read_bytes()[position:].startswith(broken) and "mismatch" in rejects[0].detail


def test_record_without_an_end_is_rejected_not_merged(real_data, tmp_path):
    records = list(pubmed_records(real_data / PUBMED_2021).values())[:3]
    path = pubmed_file(tmp_path / "pubmed.xml", [records[0], records[1][:1000], records[2]])
    articles, _, rejects = read_pubmed(path)
    assert len(articles) == 2 and [reject.reason for reject in rejects] == ["malformed_xml"]


def test_wrong_encoding_is_rejected(real_data, tmp_path):
    records = pubmed_records(real_data / PUBMED_2021)
    latin = records["29225084"].decode().replace("β", "é").encode("latin-1", "ignore")
    articles, _, rejects = read_pubmed(pubmed_file(tmp_path / "pubmed.xml", [latin, records["33553072"]]))
    assert [article.pmid for article in articles] == ["33553072"]
    assert rejects[0].reason == "malformed_xml" and "encoding" in rejects[0].detail


def test_truncated_files_keep_their_good_records_and_say_where(real_data, tmp_path):
    records = list(pubmed_records(real_data / PUBMED_2021).values())[:40]
    whole = pubmed_file(tmp_path / "whole.xml.gz", records)
    cut = tmp_path / "cut.xml.gz"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found = []
    with pytest.raises(DamagedFile, match=r"cut\.xml\.gz is damaged: .* after [\d,]+ decompressed bytes"):
        for article in pubmed.read(cut, pytest.fail):
            found.append(article)
    assert 5 < len(found) < 35
    short = tmp_path / "short.xml"
    content = gzip.decompress(whole.read_bytes())
    short.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedFile, match="no </PubmedArticleSet>"):
        list(pubmed.read(short, pytest.fail))


def test_another_file_is_refused(real_data, tmp_path):
    page = tmp_path / "page.xml"
    page.write_text("<html><body>404 Not Found</body></html>")
    with pytest.raises(InputError, match="is not PubMed XML"):
        read_pubmed(page)


def test_no_entity_expansion_and_no_files(real_data, tmp_path):
    """A record is parsed by itself, without the document's DTD: its entities mean nothing."""
    secret = tmp_path / "secret.txt"
    secret.write_text("TOP SECRET")
    record = next(iter(pubmed_records(real_data / PUBMED_2021).values()))
    evil = record.replace(b"<ArticleTitle>", b"<ArticleTitle>&secret;", 1)
    header = f'<!DOCTYPE PubmedArticleSet [<!ENTITY secret SYSTEM "file://{secret}">]>\n<PubmedArticleSet>'.encode()
    path = tmp_path / "pubmed.xml"
    path.write_bytes(header + evil + b"</PubmedArticleSet>")
    articles, _, rejects = read_pubmed(path)
    assert not articles and rejects[0].reason == "malformed_xml"
