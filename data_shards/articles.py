"""The one record that every reader yields, and the text that training sees of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """A heading with the paragraphs below it; `level` 1 is a main section, 2 a subsection."""

    heading: str
    paragraphs: tuple[str, ...]
    level: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Article:
    """One article of one source, cleaned. Absent values are None or empty, never a made-up stand-in."""

    source: str
    """Format it was read from: pmc, s2orc, pubmed or jsonl."""
    source_file: str
    source_position: str
    """Where in the (uncompressed) file: `byte 20348`, `line 12`, `member PMC1/a.nxml`, or `file`."""
    title: str = ""
    abstract: tuple[str, ...] = ()
    """Paragraphs; of a structured abstract `METHODS: ...` and so on."""
    sections: tuple[Section, ...] = ()
    pmid: str | None = None
    pmcid: str | None = None
    """With its prefix, such as PMC5371592."""
    doi: str | None = None
    """Lower case, without https://doi.org/."""
    native_id: str | None = None
    """The source's own id, used where there is no PMID, PMCID or DOI (an S2 corpus id, a jsonl `id`)."""
    year: int | None = None
    licence: str = "none"
    """cc0, by, by-sa, by-nd, by-nc, by-nc-sa, by-nc-nd, open-unspecified, or none (no stated licence)."""
    language: str | None = None
    """As the source writes it: ISO 639-2 in PubMed (`eng`), ISO 639-1 elsewhere (`en`)."""
    retracted: str | None = None
    """`retracted` for a withdrawn article, `retraction-notice` for the note that says so."""
    version: int = 1

    @property
    def id(self) -> str:
        """Stable over builds, and the same for one article in different sources wherever they share a PMID."""
        if self.pmid:
            return f"pmid:{self.pmid}"
        if self.pmcid:
            return f"pmcid:{self.pmcid}"
        if self.doi:
            return f"doi:{self.doi}"
        if self.native_id:
            return f"{self.source}:{self.native_id}"
        return f"{self.source}:{self.source_file}:{self.source_position}"

    def has_body(self) -> bool:
        """Whether there is anything to read besides the title."""
        return bool(self.abstract or self.sections)

    def text(self) -> str:
        """Title, abstract, then each heading (`## Methods`) and its paragraphs, blank lines between them."""
        pieces = [self.title, *self.abstract] if self.title else list(self.abstract)
        for section in self.sections:
            if section.heading:
                pieces.append("#" * (section.level + 1) + " " + section.heading)
            pieces.extend(section.paragraphs)
        return "\n\n".join(pieces)

    def record(self) -> dict[str, Any]:
        """The provenance that travels with the tokens, one line of a shard's `documents.jsonl`."""
        return {
            "id": self.id,
            "pmid": self.pmid,
            "pmcid": self.pmcid,
            "doi": self.doi,
            "year": self.year,
            "licence": self.licence,
            "source": self.source,
            "source_file": self.source_file,
            "source_position": self.source_position,
            "title": self.title,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Deletion:
    """PubMed's order, in an update file, to forget one version of a record."""

    pmid: str
    version: int
    source_file: str
    source_position: str


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """A record that could not be read: where it is, a short countable reason, and what was wrong with it."""

    source_file: str
    source_position: str
    reason: str
    detail: str = ""


RejectHandler = Callable[[Reject], None]
"""What readers call for each record that they skip; `list.append` of a `list[Reject]` will do."""
