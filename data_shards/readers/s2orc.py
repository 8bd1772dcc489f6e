"""S2ORC full text: the layout of 2019-2021 (`pdf_parses` beside `metadata`) and the current bulk layout.

Both say with character spans what is a citation, a heading or a paragraph, and both hold spans that are wrong: beyond
the end of the text (tables, 10 of 10 in a real record), figure captions tagged as headings, formulas that cover prose.
Hence only abstract, paragraph, section header and citation spans are used, each checked; formulas are never cut.

PubMed and PMC ids, titles and years come from the metadata table where one is given (`S2orcMetadata`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_shards.articles import Article, Reject, RejectHandler, Section
from data_shards.clean import (
    cut_plain_marks,
    cut_spans,
    is_apparatus,
    is_dropped_heading,
    normalise,
    paragraphs_of,
    work_name,
)
from data_shards.readers.identifiers import clean_doi, clean_pmcid, clean_pmid, clean_year
from data_shards.readers.json_records import MalformedRecord, read_records
from data_shards.readers.licences import classify_licence
from data_shards.readers.s2orc_metadata import S2orcMetadata

_CAPTION = re.compile(r"(figure|fig\.?|table|scheme|chart)\s*[\dIVX]", re.IGNORECASE)
_RUNNING_HEADER = re.compile(r"www\.|https?:|\bVOL\b|\bISSUE\b|\bISSN\b|\bdoi\b|©", re.IGNORECASE)
_MAXIMUM_HEADING = 120  # characters; longer "headings" are captions or prose
_Span = tuple[int, int]


def read(path: Path, on_reject: RejectHandler, metadata: S2orcMetadata | None = None) -> Iterator[Article]:
    """Yield the articles of a `.jsonl`, `.jsonl.gz` or one-document `.json` file of any S2ORC layout (also CORD-19's).

    A record that cannot be read is handed to `on_reject` and skipped. Raises as `streams.read_lines` does.
    """
    for position, record in read_records(path, on_reject):
        try:
            if isinstance(record.get("content"), dict):
                article = _bulk(record, path.name, position)
            elif "paper_id" in record:
                article = _pdf_parse(record, path.name, position)
            else:
                raise MalformedRecord("neither 'paper_id' nor 'corpusid' with 'content' in it")
            if metadata is not None:
                article = metadata.complete(article)
        except (MalformedRecord, KeyError, TypeError, ValueError, AttributeError) as error:
            on_reject(Reject(path.name, position, "malformed_record", f"{type(error).__name__}: {error}"))
            continue
        yield article


def _bulk(record: dict[str, Any], source_file: str, position: str) -> Article:
    content = record["content"]
    text = (content.get("text") or "").replace("\0", " ").replace("\1", " ")
    annotations = content.get("annotations") or {}
    citations = _spans(annotations, "bibref", len(text))
    captions = _spans(annotations, "figure", len(text)) + _spans(annotations, "table", len(text))

    def passage(span: _Span) -> str:
        inside = ((a - span[0], b - span[0], "") for a, b in citations if span[0] <= a and b <= span[1])
        return cut_spans(text[slice(*span)], inside)

    def in_caption(span: _Span) -> bool:
        return any(start <= span[0] and span[1] <= end for start, end in captions)

    abstract = [passage(span) for span in _spans(annotations, "abstract", len(text))]
    marked = [(span, "heading") for span in _spans(annotations, "sectionheader", len(text))]
    marked += [(span, "paragraph") for span in _spans(annotations, "paragraph", len(text))]
    paragraphs: list[tuple[tuple[str, ...], str]] = []
    heading: tuple[str, ...] = ()
    for span, kind in sorted(marked):
        if in_caption(span):
            continue
        if kind == "paragraph":
            paragraphs.append((heading, passage(span)))
        elif not _CAPTION.match(words := normalise(text[slice(*span)])) and len(words) <= _MAXIMUM_HEADING:
            heading = (words,)
    ids = {key.lower(): value for key, value in (record.get("externalids") or {}).items()}
    access = (content.get("source") or {}).get("oainfo") or {}
    titles = [normalise(text[slice(*span)]) for span in _spans(annotations, "title", len(text))]
    return Article(
        source="s2orc",
        source_file=source_file,
        source_position=position,
        title=next((title for title in titles if title and not _RUNNING_HEADER.search(title)), ""),
        abstract=tuple(part for part in abstract if part),
        sections=_sections(paragraphs),
        pmid=clean_pmid(ids.get("pubmed")),
        pmcid=clean_pmcid(ids.get("pubmedcentral")),
        doi=clean_doi(ids.get("doi")),
        native_id=str(record["corpusid"]),
        licence=classify_licence(access.get("license") or ""),
    )


def _spans(annotations: dict[str, Any], kind: str, length: int) -> list[_Span]:
    """The spans of one kind, sorted, those outside the text dropped. The bulk layout stores a JSON string or null."""
    value = annotations.get(kind)
    items = json.loads(value) if isinstance(value, str) else value or []
    spans = ((int(item["start"]), int(item["end"])) for item in items if item.get("start") is not None)
    return sorted((start, end) for start, end in spans if 0 <= start < end <= length)


def _pdf_parse(record: dict[str, Any], source_file: str, position: str) -> Article:
    """The layouts of 2019, 2020 and 2021, doc2json and CORD-19: paragraphs with their own spans."""
    header = record.get("metadata") or {}
    parse = record.get("grobid_parse") or record.get("pdf_parse") or record
    body = parse.get("body_text") or (record.get("latex_parse") or {}).get("body_text") or []
    works = {key: _work(entry) for key, entry in (parse.get("bib_entries") or {}).items()}
    abstract = parse.get("abstract") or record.get("abstract") or header.get("abstract") or ()
    return Article(
        source="s2orc",
        source_file=source_file,
        source_position=position,
        title=normalise(header.get("title") or record.get("title") or ""),
        abstract=paragraphs_of(abstract)
        if isinstance(abstract, str)
        else tuple(text for item in abstract if (text := _cut_paragraph(item, works))),
        sections=_sections(
            _without_apparatus([(_section_path(item.get("section")), _cut_paragraph(item, works)) for item in body])
        ),
        pmid=clean_pmid(header.get("pubmed_id")),
        pmcid=clean_pmcid(header.get("pmc_id") or (record["paper_id"] if _is_pmcid(record["paper_id"]) else None)),
        doi=clean_doi(header.get("doi")),
        native_id=normalise(str(record["paper_id"])),
        year=clean_year(header.get("year") or record.get("year")),
    )


def _is_pmcid(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("PMC")


def _work(entry: dict[str, Any]) -> str:
    return work_name([author.get("last") or "" for author in entry.get("authors") or ()], entry.get("year"))


def _cut_paragraph(item: dict[str, Any], works: dict[str, str]) -> str:
    text = item["text"].replace("\0", " ").replace("\1", " ")
    spans = [
        (int(span["start"]), int(span["end"]), works.get(span.get("ref_id") or "", ""))
        for span in item.get("cite_spans") or ()
        if span.get("start") is not None and span.get("end") is not None
    ]
    return cut_plain_marks(cut_spans(text, spans))


def _without_apparatus(paragraphs: list[tuple[tuple[str, ...], str]]) -> list[tuple[tuple[str, ...], str]]:
    """Drop closing paragraphs about the authors, where the parser lost the heading that would have told."""
    while paragraphs and (not paragraphs[-1][1] or is_apparatus(paragraphs[-1][1])):
        paragraphs.pop()
    return paragraphs


def _section_path(value: Any) -> tuple[str, ...]:
    """Headings from the outermost in. CORD-19 writes paths from the inside out: `Organism ::: Methods`."""
    parts = value.split(" ::: ")[::-1] if isinstance(value, str) else [str(part) for part in value or () if part]
    return tuple(part for part in map(normalise, parts) if part)


def _sections(paragraphs: Iterable[tuple[tuple[str, ...], str]]) -> tuple[Section, ...]:
    """Consecutive paragraphs under the same heading path become one section; new outer headings get their own."""
    sections: list[Section] = []
    current: tuple[str, ...] | None = None
    texts: list[str] = []

    def close() -> None:
        if sections and texts:
            sections[-1] = Section(sections[-1].heading, tuple(texts), sections[-1].level)

    for path, text in paragraphs:
        if not text or any(is_dropped_heading(heading) for heading in path):
            continue
        if path != current:
            close()
            texts = []
            shared = 0
            while current is not None and shared < min(len(path), len(current)) and path[shared] == current[shared]:
                shared += 1
            sections.extend(Section(path[depth], (), depth + 1) for depth in range(shared, len(path)))
            if shared == len(path):  # back to an outer section, or no heading at all
                sections.append(Section("", (), max(len(path), 1)))
            current = path
        texts.append(text)
    close()
    return tuple(sections)
