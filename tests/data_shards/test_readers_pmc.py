"""JATS full text: every trap that real files hold, on the real article that holds it."""

import collections
import io
import re
import tarfile

import pytest
from lxml import etree

from data_shards.readers import pmc
from data_shards.readers.licences import classify_licence
from data_shards.readers.streams import DamagedFile
from job.errors import InputError


def members(path):
    with tarfile.open(path) as archive:
        return {
            member.name: archive.extractfile(member).read()
            for member in archive
            if member.name.endswith((".nxml", ".xml"))
        }


@pytest.fixture(scope="module")
def sources(real_data):
    return {
        name.split("/")[-1]: data
        for path in sorted((real_data / "jats_fulltext").glob("*.tar.gz"))
        for name, data in members(path).items()
    }


@pytest.fixture(scope="module")
def articles(real_data):
    rejects = []
    found = {}
    for path in sorted((real_data / "jats_fulltext").glob("*.tar.gz")):
        for article in pmc.read(path, rejects.append):
            found[article.source_position.split("/")[-1]] = article
    assert not rejects
    return found


def test_counts_and_licences(articles):
    assert len(articles) == 209 and all(article.sections and article.title for article in articles.values())
    assert sum(not article.abstract for article in articles.values()) == 13
    licences = collections.Counter(article.licence for article in articles.values())
    assert licences == {"by": 190, "by-nc": 8, "cc0": 8, "by-nc-nd": 1, "open-unspecified": 1, "none": 1}


def test_licence_in_words_of_the_copyright_statement(sources, articles):
    """The terms of this one stand in prose; "all rights reserved" comes before them."""
    assert b"<license" in sources["Nucleic Acids Res-33-12-1175460.nxml"]
    assert articles["Nucleic Acids Res-33-12-1175460.nxml"].licence == "by-nc"
    without_link = [name for name, data in sources.items() if not re.search(rb"<license[^>]*href", data)]
    assert len(without_link) > 100 and sum(articles[name].licence == "by" for name in without_link) > 100


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("http://creativecommons.org/licenses/by/4.0/", "by"),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", "by-nc-nd"),
        ("CC BY-NC", "by-nc"),
        ("CC0", "cc0"),
        ("CCBYSA creative commons attribution share-alike", "by-sa"),
        ("Copyright 2001 BioMed Central", "none"),
    ],
)
def test_licence_classes(text, licence):
    assert classify_licence(text) == licence


def test_identifiers(articles):
    assert articles["PMC7417471.nxml"].doi and articles["PMC7417471.nxml"].year == 2020
    assert articles["PMC7417471.nxml"].pmcid == "PMC7417471" and articles["PMC7417471.nxml"].id.startswith("pmid:")
    assert articles["PLoS Biol-2-1-314463.nxml"].id == "doi:10.1371/journal.pbio.0020003"
    assert articles["PLoS Biol-2-1-314463.nxml"].year == 2004


def test_citation_marks_are_cut_and_names_in_the_sentence_stay(articles):
    text = articles["PLoS Biol-2-1-314463.nxml"].text()
    assert "based on studies by Agulnik et al. (1998), who described" in text
    assert "evolutionary and ecological perspective" in text and "Boughman 2001" not in text
    assert (
        "although differences in the disease pattern exist. Characteristic"
        in articles["Arthritis Res Ther-8-2-1526604.nxml"].text()
    )


def test_nothing_is_left_of_cut_citations(articles):
    texts = "\n".join(article.text() for article in articles.values())
    assert "\0" not in texts and " ," not in texts and "( " not in texts and "et al.." not in texts
    assert len(re.findall(r"[(\[]\s*[)\]]", texts)) == 3  # R code: family=poisson()
    assert len(re.findall(r"\([A-Z][a-z]+ et al\.?,? \d{4}[a-z]?\)", texts)) <= 12  # plain text in the source
    assert texts.count("et al.") > 400


def test_marks_that_are_words_of_their_sentence_become_names(articles):
    """Cutting "[B5]" out of "as described in [B5]." leaves a sentence that ends in "in."."""
    for name, sentence in {
        "BMC Neurosci-6-_-1087847.nxml": "mouse has been verified in Herr et al. (2001). In another",
        "BMC Dev Biol-4-_-471547.nxml": "muscle mass morphology according to Robson et al. (1994).",
        "elife-14093-v1.xml": "pioneers such as Bonnet (1754), Braun (1831) and Bravais and Bravais (1837) and",
        "journal.pgen.1000052.xml": "using Eigenstrat as described in Price et al. (2006). Structure",
        "journal.pcbi.1004152.xml": "under study (see Bajardi et al. (2011) and S1 Text).",
        "journal.pone.0116201.xml": "with the exception of Borghesi et al. (2007) where however",
        "journal.pone.0012262.xml": "Rabiau et al.show that BRCA1",  # already named
        "PLoS Genet-2-11-1657042.nxml": "described in Lehnertz et al. (2003), Chapman et al. (1984) and others. The",
    }.items():
        assert sentence in articles[name].text(), name
    texts = "\n".join(article.text() for article in articles.values())
    assert len(re.findall(r"\bdescribed in[.,;)]|\baccording to[.,;)]|\breviewed in[.,;)]", texts)) == 0
    assert len(re.findall(r"\b[Rr]efs?\.?(?= ?[.,;)])", texts)) <= 2


def test_asides_that_only_refer_go_whole(articles):
    text = articles["BMC Dev Biol-5-_-1208873.nxml"].text()  # the source forgot to close this bracket
    assert "growth factor complexes to gene transcription. However, despite" in text
    assert "some (but not all) studies, glucose" in articles["PLoS Biol-5-6-1892821.nxml"].text()
    assert "1O of this paper), not the loss" in articles["PLoS Genet-2-12-1756909.nxml"].text()


def test_empty_references_get_the_number_they_point_to(sources, articles):
    assert b'<xref ref-type="fig" rid="Ch1.F5"/>' in sources["copernicus_1.xml"]
    text = articles["copernicus_1.xml"].text()
    assert "as illustrated in Figs. 5 and 6. In that case" in text and "Second, Tables 2 and 3 only deal" in text
    assert "gracile limb bones (Figs. 1–3)." in articles["journal.pone.0005723.xml"].text()  # hidden one within 1-3


def test_interval_tagged_as_citation_keeps_its_bounds(sources, articles):
    assert b'[<xref ref-type="bibr" rid="pcbi.1004113.ref005">5</xref>, 120]' in sources["journal.pcbi.1004113.xml"]
    text = articles["journal.pcbi.1004113.xml"].text()
    assert "[5, 80] in the HIV-negative cohort" in text and "[5, 120] in the HIV-positive cohort" in text


def test_marks_without_a_link_are_cut_and_intervals_stay(articles):
    text = articles["journal.pbio.1000359.xml"].text()
    assert "Salinibacter ruber. Xanthorhodopsin" in text and "glycine amino acid, suggesting" in text
    assert "increases in DOC and increased iron" in articles["journal.pone.0070598.xml"].text()
    text = articles["journal.pone.0117688.xml"].text()
    assert "intervals [10, 20] mm and [90, 100] mm" in text
    assert "triazolo-pyrido [2, 3 -b] [1, 5] benzoxazepines" in articles["hindawi_1.xml"].text()


def test_superscripts(articles):
    text = articles["BMC Biochem-4-_-194730.nxml"].text()
    assert "674 × 10^3/μl and 774 × 10^3/μl" in text
    assert "over 10^7 molecules" in articles["BMC Cancer-5-_-1310620.nxml"].text()  # <sup>7 </sup>molecules
    # A raised citation mark goes, with its group.
    assert "the development of calcinosis" in articles["pubmed_full_2.xml"].text()
    assert "calcinosis1" not in articles["pubmed_full_2.xml"].text()
    assert "calcinosis^1" not in articles["pubmed_full_2.xml"].text()


def test_reviews_and_replies_are_not_part_of_the_article(sources, articles):
    for name, data in sources.items():
        if b"<sub-article" not in data:
            continue
        first_words = re.search(rb"<sub-article.*?<body>.*?<p[^>]*>([^<]{60,120})", data, re.DOTALL)
        if first_words:
            assert first_words[1].decode().split(".")[0] not in articles[name].text(), name
    assert sum(b"<sub-article" in data for data in sources.values()) == 16


def test_only_the_abstract_proper(sources, articles):
    name = "PLoS Biol-2-1-314463.nxml"
    blurb = re.search(rb'<abstract abstract-type="toc"><p>([^<]{10,60})', sources[name])[1].decode()
    assert articles[name].abstract and blurb not in articles[name].text()


def test_structured_abstract_and_headings(articles):
    article = articles["Arthritis Res Ther-8-2-1526604.nxml"]
    assert article.abstract[0].startswith("INTRODUCTION: ") or article.abstract[0].isprintable()
    text = article.text()
    assert "\n\n## Introduction\n\n" in text and "\n\n### " in text
    for heading in ("Competing interests", "Authors' contributions", "Abbreviations", "References"):
        assert f"# {heading}" not in text
    assert not any("Supporting Information" in section.heading for a in articles.values() for section in a.sections)


def test_figures_tables_and_authors_are_left_out(sources, articles):
    parser = etree.XMLParser(load_dtd=False, no_network=True, resolve_entities=False)
    captions = found = 0
    for name, data in sources.items():
        text = articles[name].text()
        for paragraph in etree.fromstring(data, parser).iterfind(".//fig/caption/p"):
            words = " ".join((paragraph.text or "").split())[:90]
            if len(words) > 50:
                captions += 1
                found += words in text
        for address in re.findall(rb"<corresp.*?<email>([^<]+)", data, re.DOTALL):
            assert address.decode() not in text, name
    assert captions > 150 and found <= 5  # authors repeat a sentence now and then
    assert "(Figure 1A)" in articles["Nucleic Acids Res-33-12-1175460.nxml"].text()  # mentions stay


def test_formulas(articles):
    text = articles["PMC7417471.nxml"].text()
    assert "documentclass" not in text and "usepackage" not in text
    assert "CF=" in articles["PMC6398430.nxml"].text().replace(" ", "")


def test_entities_without_dtd_network_or_expansion(sources, tmp_path):
    """Real files name HTML entities that only a DTD on the network declares; a bomb stays the few bytes that it is."""
    source = sources["Arthritis Res Ther-8-2-1526604.nxml"]
    named = source.replace(b"<article-title>", b"<article-title>&beta;-cells &amp; ", 1)
    bomb = b'<!DOCTYPE article [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]>'
    (tmp_path / "named.nxml").write_bytes(named)
    rejects = []
    [article] = pmc.read(tmp_path / "named.nxml", rejects.append) if b"<!DOCTYPE" in named else [None]
    assert article is None or article.title.startswith("β-cells & ")
    body = source[source.index(b"<article") :].replace(b"<article-title>", b"<article-title>X&b;Y&c;Z ", 1)
    (tmp_path / "bomb.nxml").write_bytes(bomb + body)
    [article] = pmc.read(tmp_path / "bomb.nxml", rejects.append)
    assert "haha" not in article.title and "root:" not in article.text() and not rejects


def test_loose_files_and_archives_agree(sources, articles, tmp_path):
    name = "PLoS Biol-2-1-314463.nxml"
    (tmp_path / name).write_bytes(sources[name])
    [article] = pmc.read(tmp_path / name, pytest.fail)
    assert article.text() == articles[name].text() and article.source_position == "file"


def test_bad_members_cost_only_themselves(sources, tmp_path):
    good = sources["PLoS Biol-2-1-314463.nxml"]
    path = tmp_path / "mixed.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in [
            ("a/good.nxml", good),
            ("a/cut.nxml", good[: len(good) // 2]),
            ("a/other.xml", b"<html><body>moved</body></html>"),
            ("../../evil.nxml", good),
            ("a/readme.txt", b"hello"),
        ]:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("a/link.nxml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    rejects = []
    articles = list(pmc.read(path, rejects.append))
    assert [article.source_position for article in articles] == ["member a/good.nxml"]
    assert [(reject.source_position, reject.reason) for reject in rejects] == [
        ("member a/cut.nxml", "malformed_xml"),
        ("member a/other.xml", "not_an_article"),
        ("member ../../evil.nxml", "unsafe_member"),
        ("member a/link.nxml", "unsafe_member"),
    ]


def test_truncated_archive_keeps_its_good_members(real_data, tmp_path):
    whole = (real_data / "jats_fulltext" / "craft.open.tar.gz").read_bytes()
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    found = []
    with pytest.raises(DamagedFile, match=r"cut\.tar\.gz is damaged: it breaks off at member craft/"):
        for article in pmc.read(cut, pytest.fail):
            found.append(article)
    assert 20 < len(found) < 60


def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        list(pmc.read(tmp_path / "none.nxml", pytest.fail))
    with pytest.raises(InputError, match=r"none\.tar\.gz"):
        list(pmc.read(tmp_path / "none.tar.gz", pytest.fail))


def test_article_longer_than_any_context(sources, tmp_path):
    source = sources["PLoS Biol-2-1-314463.nxml"]
    paragraph = b"<p>" + b"The cell divides and the tissue grows. " * 200 + b"</p>"
    (tmp_path / "long.nxml").write_bytes(source.replace(b"<body>", b"<body>" + paragraph * 1300, 1))
    [article] = pmc.read(tmp_path / "long.nxml", pytest.fail)
    assert len(article.text()) > 10_000_000
