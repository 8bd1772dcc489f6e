"""S2ORC of five layouts, CORD-19 and plain JSON lines, on real records."""

import gzip
import json

import pytest
import zstandard

from data_shards.readers import jsonl, s2orc, s2orc_metadata
from data_shards.readers.streams import DamagedFile


def read(path, metadata=None):
    rejects = []
    return list(s2orc.read(path, rejects.append, metadata)), rejects


@pytest.fixture(scope="module")
def metadata(real_data, tmp_path_factory):
    index = tmp_path_factory.mktemp("metadata") / "index.sqlite"
    files = [
        real_data / "s2orc" / "metadata_sample.v20200705.jsonl.gz",
        real_data / "s2orc" / "s2ag_papers_and_abstract_examples.jsonl",
    ]
    assert s2orc_metadata.build(files, index, pytest.fail) == 802
    return s2orc_metadata.S2orcMetadata(index)


def test_bulk_record_with_misplaced_spans(real_data):
    """Its table spans lie beyond the text, its formula spans on prose, two of its headings are captions, and its first
    title is a running header."""
    [article], rejects = read(real_data / "s2orc" / "s2orc_v2_bulk_257292514.jsonl")
    assert not rejects
    assert (article.pmid, article.pmcid, article.doi) == ("37203959", "PMC10231538", "10.31729/jnma.7979")
    assert article.title == ""  # rather than "JNMA I VOL 61 I ISSUE 259 ..."
    assert [section.heading for section in article.sections] == ["INTRODUCTION", "CASE REPORT", "DISCUSSION"]
    text = article.text()
    assert "newborn who presents with an abdominal mass. Radical nephrectomy" in text  # marks cut
    assert "Figure 1" not in [section.heading[:8] for section in article.sections]
    source = json.loads((real_data / "s2orc" / "s2orc_v2_bulk_257292514.jsonl").read_text())["content"]
    for formula in json.loads(source["annotations"]["formula"])[:1]:
        words = source["text"][int(formula["start"]) : int(formula["end"])].split()
        assert " ".join(words) in text
    assert "@" not in text  # the authors' addresses, which precede the abstract


def test_layout_of_2019_with_ids_inside(real_data):
    [article], rejects = read(real_data / "s2orc" / "20190928_10002293.json")
    assert not rejects and article.id == "pmid:28424663" and article.pmcid == "PMC5371592" and article.year == 2017
    text = article.text()
    # One span for each author of a list: "(Siqueira et al., 2000;" and "Nair, 2006)".
    assert "a microbial infection in the root canal system. Microbial biofilms" in text
    assert "Siqueira" not in text and "BIBREF" not in text


def test_what_the_parser_lost_leaves_no_scars(real_data):
    """A citation span whose opening bracket is gone, and authors' contributions without their heading."""
    path = real_data / "s2orc" / "20190928_10002293.json"
    raw = path.read_text()
    assert "according to the literature Menezes et al., 2014)" in raw and "PD, IM, JS, FC, and TG were resp" in raw
    [article], _ = read(path)
    assert "isolated according to the literature. Their 1 H NMR" in article.text()
    assert "responsible for the conception" not in article.text()
    assert article.text().endswith("optimization of light delivery and new PS formulations.")


def test_marks_that_are_words_of_their_sentence_become_names(real_data):
    [article], _ = read(real_data / "s2orc" / "20200705_18980380.json")
    text = article.text()
    assert "In Xu and Mannor (2012) the state-wise ambiguity set" in text
    assert "similar to Xu and Mannor (2012) and can be found in Yu and Xu (2015)." in text
    assert "we generalize a previous study which concentrates" in text  # a mark that has no span


def test_layout_of_2020_takes_title_and_ids_from_metadata(real_data, metadata):
    path = real_data / "s2orc" / "pdf_parses_20200705.jsonl"
    without, _ = read(path)
    assert [article.title for article in without] == ["", ""]
    articles, rejects = read(path, metadata)
    assert not rejects and articles[1].title.startswith("Gd(III) ion-chelated supramolecular assemblies")
    assert articles[1].doi == "10.1038/am.2015.67" and articles[1].year == 2015
    assert articles[1].sections[0].heading == "INTRODUCTION"


def test_metadata_brings_pubmed_ids(real_data, metadata, tmp_path):
    """A full text whose PubMed id stands only in the metadata table (as all of 2020's do)."""
    lines = gzip.decompress((real_data / "s2orc" / "metadata_sample.v20200705.jsonl.gz").read_bytes()).splitlines()
    row = next(row for row in map(json.loads, lines) if row["pubmed_id"])
    parse = json.loads((real_data / "s2orc" / "pdf_parses_20200705.jsonl").read_text().splitlines()[0])
    (tmp_path / "pdf_parses_0.jsonl.gz").write_bytes(
        gzip.compress(json.dumps(parse | {"paper_id": row["paper_id"]}).encode())
    )
    [article], _ = read(tmp_path / "pdf_parses_0.jsonl.gz", metadata)
    assert article.pmid == row["pubmed_id"] and article.title == " ".join(row["title"].split())


def test_layout_of_2021_and_cord19(real_data):
    [article], _ = read(real_data / "s2orc" / "20210101_24e6b80e338a4e543de6b49cada07156c9149d22.json")
    assert [section.heading for section in article.sections] == ["", "MATERIALS AND METHODS", "RESULTS", "DISCUSSION"]
    assert "energy flux and element cycling. " in article.text()  # "(14, 28)" cut
    folder = real_data / "cord19" / "document_parses"
    [article], _ = read(folder / "pmc_json" / "PMC140314.xml.json")
    assert article.pmcid == "PMC140314"
    # Paths are written from the inside out: "Organism ::: Methods".
    headings = [(section.level, section.heading) for section in article.sections]
    assert headings[1:3] == [(1, "Methods"), (2, "Organism")]
    [article], _ = read(folder / "pdf_json" / "8377625371f618e98225d922c389f9da4bf059da.json")
    assert "Kuntz et al." in article.text()  # a name in the sentence stays


def test_malformed_records_are_rejected_by_line(real_data, tmp_path):
    good = (real_data / "s2orc" / "pdf_parses_20200705.jsonl").read_bytes().splitlines()
    path = tmp_path / "mixed.jsonl"
    lines = [good[0], good[1][:500], b'{"no": "id"}', b"[1]", '{"paper_id": "é"}'.encode("latin-1"), good[1]]
    lines.append(b'{"paper_id": "1", "body_text": [{"section": "x"}]}')
    path.write_bytes(b"\n".join(lines) + b"\n")
    articles, rejects = read(path)
    assert len(articles) == 2
    assert [(reject.source_position, reject.reason) for reject in rejects] == [
        ("line 2", "malformed_json"),
        ("line 3", "malformed_record"),
        ("line 4", "malformed_record"),
        ("line 5", "wrong_encoding"),
        ("line 7", "malformed_record"),
    ]


def test_plain_json_lines(real_data):
    """Real abstracts contain U+2028, where str.splitlines would cut a record in two."""
    path = real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz"
    assert "\u2028" in gzip.decompress(path.read_bytes()).decode()
    articles = list(jsonl.read(path, pytest.fail))
    assert len(articles) == 8495 and len({article.id for article in articles}) == 8495
    article = next(article for article in articles if article.pmid == "33957517")
    assert article.doi == "10.1016/j.envpol.2021.117254" and article.year == 2021 and article.language == "eng"
    assert sum(bool(article.retracted) for article in articles) == 1
    structured = next(article for article in articles if len(article.abstract) > 3)
    assert ": " in structured.abstract[0]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_compressions_agree_and_cuts_are_noticed(real_data, tmp_path, ending):
    source = gzip.decompress(
        (real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz").read_bytes()
    ).split(b"\n")[:300]
    content = b"\n".join(source) + b"\n"
    frames = zstandard.ZstdCompressor()
    packed = {
        "jsonl": content,
        "jsonl.gz": gzip.compress(content[:100_000]) + gzip.compress(content[100_000:]),  # two members, as bgzip does
        "jsonl.zst": frames.compress(content[:100_000]) + frames.compress(content[100_000:]),
    }[ending]
    path = tmp_path / f"whole.{ending}"
    path.write_bytes(packed)
    articles = list(jsonl.read(path, pytest.fail))
    assert len(articles) == 300
    if ending == "jsonl":
        return
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(packed[:-1000])
    found = []
    with pytest.raises(DamagedFile, match=r"cut\.jsonl\.(gz|zst) is damaged: .* download it again"):
        for article in jsonl.read(cut, pytest.fail):
            found.append(article)
    # zstd blocks hold 128 KB and decode only whole: the last one may go with the cut.
    assert [article.text() for article in articles[: len(found)]] == [article.text() for article in found]
    assert len(found) >= (30 if ending.endswith("zst") else 280)


def test_flipped_byte_in_gzip_is_noticed(real_data, tmp_path):
    data = bytearray((real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    path = tmp_path / "flipped.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"flipped\.jsonl\.gz is damaged"):
        list(jsonl.read(path, lambda reject: None))


def test_json_fields(tmp_path):
    path = tmp_path / "articles.jsonl"
    records = [
        {"id": "7\ud800", "title": "T\udfff", "text": "One.\n\nTwo\u200b.\u0000", "license": "CC-BY-NC"},
        {"pmc": "123", "abstract": "A", "sections": [{"heading": "Methods", "paragraphs": ["x", "y\n\nz"]}]},
        {"title": 3},
        {"body": "?"},
        {"title": "T", "sections": ["x"]},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + "\n")  # lone surrogates as \\ud800
    rejects = []
    first, second = jsonl.read(path, rejects.append)
    assert first.text() == "T\n\nOne.\n\nTwo." and first.id == "jsonl:7" and first.licence == "by-nc"
    assert second.text() == "A\n\n## Methods\n\nx\n\ny\n\nz" and second.pmcid == "PMC123"
    assert [reject.source_position for reject in rejects] == ["line 3", "line 4", "line 5"]
    assert all(reject.reason == "malformed_record" for reject in rejects)
