"""Real articles for benchmarks, read by the project's own readers."""

import gzip
import json
from pathlib import Path

from data_shards.articles import Article
from data_shards.readers import pmc, pubmed


def abstracts(data: Path, limit: int | None = None) -> list[str]:
    """Title and abstract of the records in `pubmed_abstracts/*.jsonl.gz`."""
    texts = []
    for file in sorted((data / "pubmed_abstracts").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                record = json.loads(line)
                texts.append(f"{record['title']}\n\n{record['abstract']}")
                if limit and len(texts) == limit:
                    return texts
    return texts


def articles(data: Path) -> list[str]:
    """Full texts of `jats_fulltext/*.tar.gz` and the records with an abstract of `pubmed_xml/*.xml.gz`."""
    texts = []
    for reader, pattern in ((pmc, "jats_fulltext/*.tar.gz"), (pubmed, "pubmed_xml/*.xml.gz")):
        for file in sorted(data.glob(pattern)):
            found = reader.read(file, lambda reject: None)
            texts += [item.text() for item in found if isinstance(item, Article) and item.has_body()]
    return texts
