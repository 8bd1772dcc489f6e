"""PMC full text in JATS XML, loose (`.nxml`, `.xml`) or in `.tar`/`.tar.gz`, as articles.

Kept are title, abstract, section headings and paragraphs of `article/body`. Reviewers' reports and replies
(sub-article, response), figures, tables, footnotes, author information and the reference list are left out, and so are
the marks that point to references; names that are part of the sentence stay.
"""

from __future__ import annotations

import posixpath
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lxml import etree

from data_shards import advance
from data_shards.articles import Article, Reject, RejectHandler, Section
from data_shards.clean import (
    CITATION,
    NAME_END,
    awaits_name,
    cut_plain_marks,
    is_bound,
    is_dropped_heading,
    is_narrative,
    tidy,
    work_name,
)
from data_shards.readers.identifiers import clean_doi, clean_pmcid, clean_pmid, clean_year
from data_shards.readers.licences import jats_licence
from data_shards.readers.markup import MATHML, entity_text, linear_formula, superscript
from data_shards.readers.streams import DamagedFile, read_whole
from job.errors import InputError

_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_ARTICLE_SUFFIXES = (".nxml", ".xml")
_MAXIMUM_MEMBER_BYTES = 256 << 20  # the largest real articles are about 20 MB

_DROPPED = frozenset(
    # floats and media
    "fig fig-group table-wrap table-wrap-group table array supplementary-material media graphic "  # noqa: SIM905
    "inline-supplementary-material chem-struct-wrap floats-group code preformat "
    # references, notes, authors and other apparatus
    "ref-list ref fn fn-group object-id label permissions sec-meta related-object related-article aff author-notes "
    "contrib-group history ack glossary app-group index-term sub-article response processing-meta "
    # a second writing of a formula
    "tex-math".split()
)
_BLOCKS = frozenset(
    "p title sec list list-item def-list def-item disp-quote boxed-text disp-formula disp-formula-group "  # noqa: SIM905
    "statement verse-group verse-line speech break".split()
)
_DROPPED_SECTION_TYPES = frozenset(
    [
        "supplementary-material",
        "COI-statement",
        "data-availability",
        "display-objects",
        "ref-list",
        "author-contribution",
    ]
)
_ABSTRACT_TYPES = (None, "", "abstract", "structured")


_LABEL_WORD = re.compile(
    r"\b(?:fig|figure|tab|table|sect|section|eq|equation|scheme|box|appendix)s?\.?\s+(?:[\w.]+\s*(?:,|and|to)\s+)*$",
    re.IGNORECASE,
)


def read(path: Path, on_reject: RejectHandler) -> Iterator[Article]:
    """Yield the articles of one JATS file or of every `.nxml`/`.xml` member of a tar archive.

    An article that cannot be read is handed to `on_reject` and skipped. Raises `DamagedFile` where an archive breaks
    off (after its last whole member), `InputError` where it cannot be opened.
    """
    for position, data in _documents(path, on_reject):
        # Loose files often have the same name in every article's folder.
        name = f"{path.parent.name}/{path.name}" if position == "file" else path.name
        try:
            article = parse(data, name, position)
        except etree.XMLSyntaxError as error:
            on_reject(Reject(name, position, "malformed_xml", str(error)))
        except ValueError as error:
            on_reject(Reject(name, position, "not_an_article", str(error)))
        else:
            yield article


def parse(data: bytes, source_file: str, source_position: str) -> Article:
    """One JATS document as an article. Raises `etree.XMLSyntaxError` or `ValueError` (no article element in it)."""
    # Neither DTD nor entities nor network: a document can only spell out its own text.
    parser = etree.XMLParser(
        load_dtd=False, no_network=True, resolve_entities=False, remove_comments=True, remove_pis=True, huge_tree=False
    )
    root = etree.fromstring(data, parser)
    article = root if root.tag == "article" else root.find(".//article")
    meta = article.find("front/article-meta") if article is not None else None
    if article is None or meta is None:
        raise ValueError(f"no article/front/article-meta in it (root element '{root.tag}')")
    ids = {item.get("pub-id-type"): (item.text or "").strip() for item in meta.iterfind("article-id")}
    kind = article.get("article-type") or ""
    return Article(
        source="pmc",
        source_file=source_file,
        source_position=source_position,
        title=_flat(meta.find("title-group/article-title")),
        abstract=_abstract(meta),
        sections=_cut_unlinked_marks(_body(article.find("body"))),
        pmid=clean_pmid(ids.get("pmid")),
        pmcid=clean_pmcid(ids.get("pmc") or ids.get("pmcid")),
        doi=clean_doi(ids.get("doi")),
        native_id=ids.get("publisher-id") or ids.get("publisher-manuscript") or None,
        year=_year(meta),
        licence=jats_licence(meta),
        language=(article.get(_LANGUAGE) or "en").lower()[:2],
        retracted={"retraction": "retraction-notice", "retracted-article": "retracted"}.get(kind),
    )


def _documents(path: Path, on_reject: RejectHandler) -> Iterator[tuple[str, bytes]]:
    if not path.name.endswith((".tar", ".tar.gz", ".tgz")):
        try:
            yield "file", read_whole(path)
        except DamagedFile as error:  # one file is one record here
            on_reject(Reject(path.name, "file", "damaged_file", str(error)))
        return
    last = "its start"
    try:
        with open(path, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
            position = 0
            for member in archive:
                advance.report(raw.tell() - position)
                position = raw.tell()
                last = f"member {member.name}"
                if not member.name.endswith(_ARTICLE_SUFFIXES):
                    continue
                if reason := _unsafe(member):
                    on_reject(Reject(path.name, last, "unsafe_member", reason))
                    continue
                handle = archive.extractfile(member)
                data = handle.read() if handle is not None else b""
                if len(data) != member.size:
                    raise EOFError("unexpected end of data")
                yield last, data
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DamagedFile(f"{path} is damaged: it breaks off at {last} ({error}); download it again") from None
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise DamagedFile(f"{path} cannot be read beyond {last}: {error.strerror or error}") from None


def _unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member is not read. Nothing is ever extracted to disk; names end up in provenance, so they must be sane."""
    if not member.isfile():
        return "a link or special file, not an article"
    if posixpath.isabs(member.name) or ".." in member.name.split("/"):
        return "its name leads out of the archive"
    if member.size > _MAXIMUM_MEMBER_BYTES:
        return f"{member.size:,} bytes are too many for an article"
    return None


def _year(meta: etree._Element) -> int | None:
    """The earliest publication year (electronic publication usually precedes print)."""
    dates = [clean_year(item.findtext("year")) for item in meta.iterfind("pub-date")]
    return min((year for year in dates if year), default=None)


def _abstract(meta: etree._Element) -> tuple[str, ...]:
    """Paragraphs of the abstract proper: summaries, contents blurbs and editors' notes have an abstract-type."""
    paragraphs: list[str] = []
    for abstract in meta.iterfind("abstract"):
        if abstract.get("abstract-type") not in _ABSTRACT_TYPES:
            continue
        for child in abstract:
            if child.tag == "sec":
                heading = _flat(child.find("title")).rstrip(":.")
                texts = [text for part in child if part.tag not in ("title", "label") for text in _paragraphs(part)]
                if texts and heading:
                    texts[0] = f"{heading.upper()}: {texts[0]}"
                paragraphs.extend(texts)
            elif child.tag not in ("title", "label"):
                paragraphs.extend(_paragraphs(child))
    return tuple(paragraphs)


def _body(body: etree._Element | None) -> Iterator[Section]:
    """Sections in reading order; paragraphs outside any section form one without heading."""
    if body is None:
        return
    loose: list[str] = []
    for child in body:
        if child.tag == "sec":
            if loose:
                yield Section("", tuple(loose))
                loose = []
            yield from _section(child, 1)
        else:
            loose.extend(_paragraphs(child))
    if loose:
        yield Section("", tuple(loose))


def _cut_unlinked_marks(sections: Iterable[Section]) -> tuple[Section, ...]:
    return tuple(
        Section(section.heading, tuple(map(cut_plain_marks, section.paragraphs)), section.level) for section in sections
    )


def _section(section: etree._Element, level: int) -> Iterator[Section]:
    heading = _flat(section.find("title"))
    if is_dropped_heading(heading) or section.get("sec-type") in _DROPPED_SECTION_TYPES:
        return
    paragraphs: list[str] = []
    inner: list[Section] = []
    for child in section:
        if child.tag == "sec":
            inner.extend(_section(child, level + 1))
        elif child.tag not in ("title", "label"):
            texts = _paragraphs(child)
            if inner and texts:  # text after a subsection: keep the reading order
                inner.append(Section("", tuple(texts), level))
            else:
                paragraphs.extend(texts)
    if paragraphs or inner:
        if heading or paragraphs:
            yield Section(heading, tuple(paragraphs), level)
        yield from inner


def _flat(element: etree._Element | None) -> str:
    """The text of a title as one line."""
    if element is None:
        return ""
    pieces: list[str] = []
    _children(element, pieces)
    return tidy("".join(pieces).replace("\n", " "))


def _paragraphs(element: etree._Element) -> list[str]:
    """The text of a block element as clean paragraphs."""
    pieces: list[str] = []
    _inline(element, pieces)
    return [text for text in map(tidy, "".join(pieces).split("\n")) if text]


def _children(element: etree._Element, pieces: list[str]) -> None:
    if element.text:
        pieces.append(element.text.replace("\n", " "))
    for child in element:
        _inline(child, pieces)
        if child.tail:
            pieces.append(child.tail.replace("\n", " "))


def _inline(element: etree._Element, pieces: list[str]) -> None:
    """Append the text of `element`; line feeds separate blocks, `CITATION` marks a cut reference."""
    if element.tag is etree.Entity:
        pieces.append(entity_text(element))
        return
    if not isinstance(element.tag, str):
        return
    if element.tag.startswith(MATHML):
        pieces.append(f" {linear_formula(element).strip()} ")
        return
    tag = element.tag if element.tag[0] != "{" else etree.QName(element).localname
    if tag == "alternatives":
        formula = next(element.iter(MATHML + "math"), None)
        if formula is not None:
            pieces.append(f" {linear_formula(formula).strip()} ")
    elif tag in ("email", "inline-graphic") or (tag == "ext-link" and not element.xpath("normalize-space()")):
        pieces.append(CITATION)  # an address, a formula as a picture: takes its empty brackets along
    elif tag in _DROPPED:
        return
    elif tag == "xref":
        _reference(element, pieces)
    elif tag == "sup":
        _superscript(element, pieces)
    elif tag in _BLOCKS:
        pieces.append("\n")
        _children(element, pieces)
        pieces.append("\n")
    else:
        _children(element, pieces)


def _reference(element: etree._Element, pieces: list[str]) -> None:
    """A cross-reference: marks that point to the bibliography are cut; names in the sentence and "Figure 2" stay."""
    inner: list[str] = []
    _children(element, inner)
    text = "".join(inner)
    kind = element.get("ref-type")
    before = "".join(pieces[-40:])
    if kind in ("bibr", "ref"):
        if is_bound(text, before) or is_narrative(text, before):
            pieces.append(text)
        else:
            name = _cited_work(element) if awaits_name(before) else ""
            pieces.append(f"{CITATION}{name}{NAME_END}" if name else CITATION)
    elif not text.strip() and _LABEL_WORD.search(before) and (number := _label_number(element)):
        pieces.append(number)
    elif not text.strip() or (kind is None and re.fullmatch(r"\s*\[?\d+\]?\s*", text)):
        pieces.append(CITATION)
    elif kind in ("fn", "table-fn", "aff", "corresp"):  # marks of footnotes that are left out
        pieces.append("" if re.fullmatch(r"[\s\d*†‡§¶#a-z]{0,3}", text) else text)
    else:
        pieces.append(text)


def _cited_work(reference: etree._Element) -> str:
    """The name of the work that a mark points to, from the reference list; empty where that does not tell."""
    target = (reference.get("rid") or "").split(" ")[0]
    root = reference.getroottree().getroot()
    entry = next((item for item in root.iter("ref") if item.get("id") == target), None)
    if entry is None:
        return ""
    persons = entry.find('.//person-group[@person-group-type="author"]')
    surnames = [item.text or "" for item in (entry if persons is None else persons).iter("surname", "collab")]
    year = clean_year(entry.findtext(".//year"))
    # A list that the source itself shortened ("et al.") has more authors than it names.
    return work_name(surnames + ["et al."] * 2 if entry.find(".//etal") is not None and surnames else surnames, year)


def _label_number(reference: etree._Element) -> str:
    """What stands for an empty cross-reference in print: the number of the figure, table, section ... pointed to."""
    target = (reference.get("rid") or "").split(" ")[0]
    found = next((item for item in reference.getroottree().iter(etree.Element) if item.get("id") == target), None)
    if found is None:
        return ""
    label = found.findtext("label") or ""
    if not label and found.tag in ("fig", "table-wrap"):  # Copernicus leaves labels out: its fifth figure is "Ch1.F5"
        label = re.sub(r"^0+", "", re.split(r"\D", target)[-1])
    number = re.search(r"[A-Z]?\d+(?:\.\d+)*[A-Za-z]?\W*$", label)
    return number[0].rstrip(":. ") if number else ""


def _superscript(element: etree._Element, pieces: list[str]) -> None:
    """A raised number keeps its caret (10^5); a raised group of citation marks is cut whole."""
    inner: list[str] = []
    _children(element, inner)
    text = "".join(inner)
    if CITATION in text and not re.sub(r"[\s,;:–—\-\[\]().\x00]|and", "", text):
        pieces.append(CITATION)
    else:
        pieces.append(superscript(text.replace(CITATION, "")))
