"""Small input files made of real records, byte for byte."""

import gzip
import re
from pathlib import Path

from data_shards.articles import Article, Deletion, Reject
from data_shards.readers import pubmed

PUBMED_2021 = "pubmed_xml/pubmed21n1298.open.xml.gz"
PUBMED_1979 = "pubmed_xml/pubmed20n0014.open.xml.gz"
_HEADER = b'<?xml version="1.0" encoding="utf-8"?>\n<PubmedArticleSet>\n'
_END = b"\n</PubmedArticleSet>\n"


def pubmed_records(path: Path) -> dict[str, bytes]:
    """PMID -> the record's bytes."""
    content = gzip.decompress(path.read_bytes())
    records = re.findall(rb"<PubmedArticle>.*?</PubmedArticle>", content, re.DOTALL)
    return {re.search(rb"<PMID[^>]*>(\d+)</PMID>", record)[1].decode(): record for record in records}


def pubmed_file(path: Path, records: list[bytes], deleted: list[tuple[str, int]] = ()) -> Path:
    """A PubMed file of real records, with a DeleteCitation block in PubMed's form."""
    block = b""
    if deleted:
        lines = [f'<PMID Version="{version}">{pmid}</PMID>' for pmid, version in deleted]
        block = ("\n<DeleteCitation>\n" + "\n".join(lines) + "\n</DeleteCitation>").encode()
    content = _HEADER + b"\n".join(records) + block + _END
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read_pubmed(path: Path) -> tuple[list[Article], list[Deletion], list[Reject]]:
    rejects: list[Reject] = []
    records = list(pubmed.read(path, rejects.append))
    articles = [record for record in records if isinstance(record, Article)]
    return articles, [record for record in records if isinstance(record, Deletion)], rejects
