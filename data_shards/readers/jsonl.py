"""Plain JSON lines (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`): one article a line.

Fields: `text`, or `title` and `abstract` (text, paragraphs separated by blank lines), and optionally `sections`
(objects with `heading` and `paragraphs` or `text`), `id`, `pmid`, `pmcid` (or `pmc`), `doi`, `year`, `licence` (or
`license`), `language`, `retracted` (true) and `pub_types` (PubMed's publication types).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_shards.articles import Article, Reject, RejectHandler, Section
from data_shards.clean import normalise, paragraphs_of
from data_shards.readers.identifiers import clean_doi, clean_pmcid, clean_pmid, clean_year
from data_shards.readers.json_records import MalformedRecord, read_records
from data_shards.readers.licences import classify_licence


def read(path: Path, on_reject: RejectHandler) -> Iterator[Article]:
    """Yield the articles of a file; a line that cannot be read is handed to `on_reject` and skipped."""
    for position, record in read_records(path, on_reject):
        try:
            yield _article(record, path.name, position)
        except MalformedRecord as error:
            on_reject(Reject(path.name, position, "malformed_record", str(error)))


def _article(record: dict[str, Any], source_file: str, position: str) -> Article:
    title = normalise(_text(record, "title"))
    abstract = paragraphs_of(_text(record, "abstract"))
    sections = list(_sections(record))
    if text := paragraphs_of(_text(record, "text")):
        sections.append(Section("", text))
    if not {"title", "abstract", "text", "sections"} & record.keys():
        raise MalformedRecord(f"none of 'text', 'title', 'abstract', 'sections' among its keys {sorted(record)[:12]}")
    identifier = record.get("id")
    return Article(
        source="jsonl",
        source_file=source_file,
        source_position=position,
        title=title,
        abstract=abstract,
        sections=tuple(sections),
        pmid=clean_pmid(record.get("pmid")),
        pmcid=clean_pmcid(record.get("pmcid") or record.get("pmc")),
        doi=clean_doi(record.get("doi")),
        native_id=normalise(str(identifier)) if identifier is not None else None,
        year=clean_year(record.get("year")),
        licence=classify_licence(str(record.get("licence") or record.get("license") or "")),
        language=record.get("language") or None,
        retracted=_retracted(record),
    )


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise MalformedRecord(f"'{key}' is a {type(value).__name__}, not text")
    return value


def _sections(record: dict[str, Any]) -> Iterator[Section]:
    sections = record.get("sections") or []
    if not isinstance(sections, list) or not all(isinstance(item, dict) for item in sections):
        raise MalformedRecord("'sections' is not a list of objects")
    for item in sections:
        texts = item.get("paragraphs")
        paragraphs = texts if isinstance(texts, list) else [_text(item, "text")]
        if not all(isinstance(text, str) for text in paragraphs):
            raise MalformedRecord("a section's 'paragraphs' are not all text")
        cleaned = tuple(part for text in paragraphs for part in paragraphs_of(text))
        heading = normalise(_text(item, "heading"))
        if cleaned or heading:
            yield Section(heading, cleaned)


def _retracted(record: dict[str, Any]) -> str | None:
    types = record.get("pub_types") or []
    if record.get("retracted") is True or "Retracted Publication" in types:
        return "retracted"
    return "retraction-notice" if "Retraction of Publication" in types else None
