"""The demo corpus is well formed, and holds the records that `configs/demo/corpus/README.md` promises."""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from lxml import etree

CORPUS = Path(__file__).resolve().parent.parent / "configs" / "demo" / "corpus"
FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())
LARGEST_FILE = 300 * 1000  # bytes

PUBMED_FILE = CORPUS / "pubmed" / "demo_baseline.xml"
PMC_FILES = sorted((CORPUS / "pmc").glob("*.nxml"))


def parse(path: Path) -> etree._Element:
    """The root element, read as the readers must read it: no DTD, no network, no entity expansion."""
    parser = etree.XMLParser(load_dtd=False, no_network=True, resolve_entities=False)
    return etree.parse(str(path), parser).getroot()


def lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (CORPUS / name).read_text(encoding="utf-8").splitlines()]


def pubmed_records() -> list[etree._Element]:
    return parse(PUBMED_FILE).findall("PubmedArticle")


def pmid_and_version(record: etree._Element) -> tuple[str, str]:
    pmid = record.find("MedlineCitation/PMID")
    return pmid.text, pmid.get("Version")


def pmids_where(path: str) -> set[str]:
    return {record.findtext("MedlineCitation/PMID") for record in pubmed_records() if record.find(path) is not None}


def jats_ids(path: Path) -> dict[str, str]:
    return {found.get("pub-id-type"): found.text for found in parse(path).findall("front/article-meta/article-id")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_is_small_normalised_utf8(path: Path):
    text = path.read_bytes().decode("utf-8")
    assert path.stat().st_size <= LARGEST_FILE
    assert unicodedata.is_normalized("NFC", text)
    assert "\r" not in text and "\ufffd" not in text and "\u2028" not in text
    assert text.endswith("\n")


def test_counts():
    assert len(pubmed_records()) == 73
    assert len(PMC_FILES) == 20
    assert len(lines("s2orc/metadata.jsonl")) == len(lines("s2orc/pdf_parses.jsonl")) == 8
    assert len(lines("plain/notes.jsonl")) == 20


def test_identifiers_are_artificial_and_unique():
    versions = [pmid_and_version(record) for record in pubmed_records()]
    assert len(set(versions)) == len(versions)
    assert [pmid for pmid, count in Counter(pmid for pmid, _ in versions).items() if count > 1] == ["90000017"]
    assert all(int(pmid) > 90_000_000 for pmid, _ in versions)

    for kind in ("pmid", "pmc", "doi"):
        values = [jats_ids(path)[kind] for path in PMC_FILES]
        assert len(set(values)) == len(PMC_FILES)
    for path in PMC_FILES:
        ids = jats_ids(path)
        assert path.stem == f"PMC{ids['pmc']}"
        assert int(ids["pmid"]) > 90_000_000 and int(ids["pmc"]) > 9_900_000
        assert ids["doi"].startswith("10.5555/demo.")

    for name, key in (("s2orc/metadata.jsonl", "paper_id"), ("plain/notes.jsonl", "id")):
        values = [row[key] for row in lines(name)]
        assert len(set(values)) == len(values)
    dois = [record.findtext("PubmedData/ArticleIdList/ArticleId[@IdType='doi']") for record in pubmed_records()]
    assert all(doi.startswith("10.5555/demo.") for doi in dois)


def test_pubmed_holds_the_records_to_be_dropped():
    comments = "MedlineCitation/CommentsCorrectionsList/CommentsCorrections"
    publication_type = "MedlineCitation/Article/PublicationTypeList/PublicationType"
    assert pmids_where(f"{comments}[@RefType='RetractionIn']") == {"90000069"}
    assert pmids_where(f"{publication_type}[.='Retracted Publication']") == {"90000069"}
    assert pmids_where(f"{comments}[@RefType='RetractionOf']") == {"90000070"}
    assert pmids_where(f"{publication_type}[.='Retraction of Publication']") == {"90000070"}
    every = pmids_where("MedlineCitation")
    assert every - pmids_where("MedlineCitation/Article/Abstract/AbstractText") == {"90000071"}
    deleted = [element.text for element in parse(PUBMED_FILE).findall("DeleteCitation/PMID")]
    assert deleted == ["90000072"] and set(deleted) <= every

    versions = [record for record in pubmed_records() if pmid_and_version(record)[0] == "90000017"]
    old, new = sorted(versions, key=lambda record: int(pmid_and_version(record)[1]))
    abstract = "MedlineCitation/Article/Abstract/AbstractText"
    assert len(old.findtext(abstract)) < len(new.findtext(abstract))


def test_pubmed_has_labels_greek_letters_and_superscripts():
    root = parse(PUBMED_FILE)
    assert len(root.xpath("//AbstractText[@Label]")) >= 20
    text = "".join(root.itertext())
    assert all(letter in text for letter in "αβγμ≥−′")
    powers = [element for element in root.iter("sup") if (element.getprevious() is None)]
    assert any((element.getparent().text or "").endswith("10") for element in powers)


def test_full_texts_shared_with_pubmed_and_s2orc():
    pubmed = {pmid for pmid, _ in map(pmid_and_version, pubmed_records())}
    pmc = {jats_ids(path)["pmid"]: jats_ids(path) for path in PMC_FILES}
    assert pubmed & set(pmc) == {"90000001", "90000044"}

    metadata = {row["paper_id"]: row for row in lines("s2orc/metadata.jsonl")}
    without_id = [key for key, row in metadata.items() if not row["pubmed_id"] and not row["pmc_id"]]
    assert without_id == ["990000008"]
    shared = {key: row for key, row in metadata.items() if row["pubmed_id"] in pmc}
    assert list(shared) == ["990000006"]
    assert shared["990000006"]["pmc_id"] == "PMC" + pmc[shared["990000006"]["pubmed_id"]]["pmc"]


@pytest.mark.parametrize("path", PMC_FILES, ids=lambda path: path.stem)
def test_full_text_has_what_cleaning_removes(path: Path):
    root = parse(path)
    body = root.find("body")
    assert len(body.findall("sec")) >= 4
    assert root.find(".//table-wrap/table") is not None and root.find(".//fig/graphic") is not None
    references = {reference.get("id") for reference in root.findall("back/ref-list/ref")}
    cited = {xref.get("rid") for xref in root.xpath("//xref[@ref-type='bibr']")}
    assert references == cited and len(references) >= 4
    words = sum(len("".join(paragraph.itertext()).split()) for paragraph in body.xpath(".//sec/p"))
    assert 550 <= words <= 950
    assert (
        root.find("front/article-meta/permissions/license")
        .get("{http://www.w3.org/1999/xlink}href")
        .endswith("/publicdomain/zero/1.0/")
    )


def test_s2orc_spans_match_their_text():
    parses = lines("s2orc/pdf_parses.jsonl")
    assert [row["paper_id"] for row in parses] == [row["paper_id"] for row in lines("s2orc/metadata.jsonl")]
    spans = 0
    for row in parses:
        for paragraph in row["body_text"]:
            for kind, entries in (("cite_spans", "bib_entries"), ("ref_spans", "ref_entries")):
                for span in paragraph[kind]:
                    assert paragraph["text"][span["start"] : span["end"]] == span["text"]
                    assert span["ref_id"] in row[entries]
                    spans += 1
    assert spans >= 24


def test_no_article_text_occurs_twice():
    """Only the promised duplicates share text; a paragraph repeated by accident would be trained on twice."""
    paragraphs: Counter[str] = Counter()
    for path in PMC_FILES:
        paragraphs.update("".join(found.itertext()) for found in parse(path).xpath("//body//sec/p"))
    paragraphs.update(row["text"] for row in lines("plain/notes.jsonl"))
    paragraphs.update("".join(found.itertext()) for found in parse(PUBMED_FILE).iter("AbstractText"))
    assert [text for text, count in paragraphs.items() if count > 1] == []
