"""UniProt entries, as the flat file or XML that UniProt publishes -> the four questions of UniProtQA.

    function    comment FUNCTION                                       several comments: one after another
    names       recommended (else submitted), then alternative, full names; not those of parts of the protein
    family      comment SIMILARITY, where it says what the protein belongs to (not which domains it contains)
    location    comment SUBCELLULAR LOCATION: places with topology, without notes

Evidence (`{ECO:...}`, `(By similarity)`) and references (`(PubMed:...)`) are removed. The flat file breaks lines after
hyphens as well as at blanks; the blank that joining them leaves is removed. An entry gives the same questions from
either format. Files are streamed, plain, `.gz` or `.zst`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from Bio import SwissProt
from lxml import etree

from align.questions import PROTEIN_QUESTIONS, Question
from align.readers.text import Row, suffix_of
from data_shards.articles import Reject, RejectHandler
from data_shards.readers.streams import read_blocks, read_lines
from job.errors import InputError

FLAT_SUFFIXES = (".dat", ".txt", ".sprot", ".swiss")

_EVIDENCE = re.compile(r"\s*\{ECO:[^{}]*\}")
_QUALIFIER = re.compile(r"\s*\((?:By similarity|Probable|Potential)\)")
_REFERENCE = re.compile(r"\s*\((?:Ref\.\s*\d+|PubMed:\s*\d+)(?:\s*,\s*(?:Ref\.\s*\d+|PubMed:\s*\d+))*\)")
# A line ended in a hyphen: "GPI- anchor" was "GPI-anchor", but "alpha- and beta-subunits" is meant so.
_BROKEN_WORD = re.compile(r"(?<=[^\s-]-) (?!(?:and|or|to|nor|but|as|versus|vs)\b)(?=[\w'(*])")
_BROKEN_AT_SLASH = re.compile(r"(?<=\w/) (?=\w)")
_MOLECULE = re.compile(r"^\[([^\[\]]+)\]:\s*")
_NAMESPACE = "{*}"


class _Entry(NamedTuple):
    """What the questions need of an entry; texts are cleaned."""

    accession: str
    sequence: str
    functions: list[str]
    names: list[str]
    families: list[str]
    locations: list[str]


def read(path: Path, on_reject: RejectHandler) -> Iterator[Row]:
    """The questions that each entry answers: up to four; ids are `uniprot:P12345:function`.

    Raises `InputError` where the file is not UniProt's or ends inside an entry.
    """
    entries = _read_xml(path, on_reject) if suffix_of(path) == ".xml" else _read_flat(path, on_reject)
    for position, entry in entries:
        answers = {
            "function": " ".join(map(_sentence, entry.functions)),
            "names": "; ".join(dict.fromkeys(entry.names)),
            "family": " ".join(map(_sentence, dict.fromkeys(entry.families))),
            "location": " ".join(map(_sentence, dict.fromkeys(entry.locations))),
        }
        for name, question in PROTEIN_QUESTIONS.items():
            if answers[name]:
                identifier = f"uniprot:{entry.accession}:{name}"
                yield Row(Question(identifier, question, answers[name], proteins=(entry.sequence,)), position)


def clean(text: str) -> str:
    """A comment's text without evidence, references and the blanks of line breaks."""
    text = " ".join(text.split())
    text = _BROKEN_AT_SLASH.sub("", _BROKEN_WORD.sub("", text))
    text = _REFERENCE.sub("", _QUALIFIER.sub("", _EVIDENCE.sub("", text)))
    return re.sub(r"\s+([.,;])", r"\1", re.sub(r"\.{2,}$", ".", " ".join(text.split()))).strip()


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def _is_family(text: str) -> bool:
    return "elongs to the" in text


# The flat file.


def _read_flat(path: Path, on_reject: RejectHandler) -> Iterator[tuple[str, _Entry]]:
    """Entries of a flat file; one that Biopython cannot parse is rejected with its line."""
    lines: list[bytes] = []
    start = 1
    number = 0
    for number, line in enumerate(read_lines(path), 1):
        lines.append(line)
        if line.rstrip() == b"//":
            if entry := _parse_flat(path, lines, start, on_reject):
                yield f"line {start}", entry
            lines, start = [], number + 1
    if any(line.strip() for line in lines):
        raise InputError(f"{path} ends inside the entry that starts at line {start}: no line '//'; download it again")
    if number == 0:
        raise InputError(f"{path} is empty; a UniProt flat file is needed")


def _parse_flat(path: Path, lines: list[bytes], start: int, on_reject: RejectHandler) -> _Entry | None:
    try:
        record = SwissProt.read(io.StringIO(b"\n".join([*lines, b""]).decode("utf-8")))
    except (ValueError, AssertionError, IndexError, KeyError) as error:
        on_reject(Reject(path.name, f"line {start}", "malformed_entry", f"{type(error).__name__}: {error}"))
        return None
    if not record.accessions or not record.sequence:
        on_reject(Reject(path.name, f"line {start}", "malformed_entry", "no accession or no sequence"))
        return None
    comments: dict[str, list[str]] = {}
    for comment in record.comments:
        topic, _, text = comment.partition(":")
        comments.setdefault(topic.strip().upper(), []).append(clean(text))
    locations: list[str] = []
    for text in comments.get("SUBCELLULAR LOCATION", ()):
        text = re.split(r"(?:^|\s)Note=", _MOLECULE.sub("", text))[0]
        locations += [place.strip() for place in re.split(r"\.(?:\s+|$)", text) if place.strip()]
    return _Entry(
        record.accessions[0],
        record.sequence,
        comments.get("FUNCTION", []),
        _flat_names(record.description),
        [text for text in comments.get("SIMILARITY", ()) if _is_family(text)],
        locations,
    )


def _flat_names(description: str) -> list[str]:
    """Full names of the whole protein, from `RecName: Full=...; AltName: Full=...; Contains: ...`."""
    whole = re.split(r"(?:^|\s)(?:Contains|Includes):", description)[0]
    names = [clean(name) for name in re.findall(r"Full=(.*?)(?=;(?:\s|$))", whole)]
    if not names and "=" not in whole:  # before release 14 (2008) the line was the name, then `(EC ...)`, `(synonym)`
        names = [clean(re.sub(r"\s*\(EC [^)]*\)", "", whole)).rstrip(".")]
    return [name for name in names if name]


# XML.


def _read_xml(path: Path, on_reject: RejectHandler) -> Iterator[tuple[str, _Entry]]:
    """Entries of an XML file, one in memory at a time; no entity is expanded and nothing is fetched."""
    stream = _Stream(path)
    number = 0
    try:
        for _, element in etree.iterparse(
            stream, tag=_NAMESPACE + "entry", resolve_entities=False, no_network=True, load_dtd=False, huge_tree=True
        ):
            number += 1
            if entry := _parse_xml(element):
                yield f"entry {number}", entry
            else:
                on_reject(Reject(path.name, f"entry {number}", "malformed_entry", "no accession or no sequence"))
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    except etree.XMLSyntaxError as error:
        raise InputError(f"{path} is damaged after entry {number}: {error}; download it again") from None
    if number == 0:
        raise InputError(f"{path} has no UniProt <entry>; give a file of UniProtKB in XML")


def _parse_xml(element: etree._Element) -> _Entry | None:
    accession = _text(element.find(_NAMESPACE + "accession"))
    sequence = "".join(_text(element.find(_NAMESPACE + "sequence")).split())
    if not accession or not sequence:
        return None
    functions, families, locations = [], [], []
    for comment in element.iterfind(_NAMESPACE + "comment"):
        kind = comment.get("type")
        if kind == "subcellular location":
            locations += [_xml_location(place) for place in comment.iterfind(_NAMESPACE + "subcellularLocation")]
        elif kind in ("function", "similarity"):
            text = clean(" ".join(_sentence(_text(part)) for part in comment.iterfind(_NAMESPACE + "text")))
            molecule = clean(_text(comment.find(_NAMESPACE + "molecule")))
            if kind == "function" and text:
                functions.append(f"[{molecule}]: {text}" if molecule else text)
            elif _is_family(text):
                families.append(text)
    return _Entry(
        accession, sequence, functions, _xml_names(element), families, [place for place in locations if place]
    )


def _xml_names(element: etree._Element) -> list[str]:
    names = []
    protein = element.find(_NAMESPACE + "protein")
    for kind in ("recommendedName", "submittedName", "alternativeName"):
        found = () if protein is None else protein.iterfind(f"{_NAMESPACE}{kind}/{_NAMESPACE}fullName")
        names += [clean(_text(name)) for name in found]
    return [name for name in names if name]


def _xml_location(place: etree._Element) -> str:
    """`Cell membrane; Lipid-anchor, GPI-anchor`, as the flat file has it."""
    # Before 2010 the parts of a place were elements of their own: Secreted, Extracellular space.
    first, *more = [_text(part) for part in place.iterfind(_NAMESPACE + "location")] or [""]
    parts = [", ".join([first, *(part[:1].lower() + part[1:] for part in more)])]
    for kind in ("topology", "orientation"):  # the flat file writes "Lipid-anchor, GPI-anchor"
        parts.append(", ".join(_text(part) for part in place.iterfind(_NAMESPACE + kind)))
    return clean("; ".join(part for part in parts if part))


def _text(element: etree._Element | None) -> str:
    return "" if element is None else " ".join("".join(map(str, element.itertext())).split())


class _Stream(io.RawIOBase):
    """Decompressed blocks of a file as the file object that lxml reads."""

    def __init__(self, path: Path) -> None:
        self._blocks = read_blocks(path)
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; empty at the end."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._rest = block
        count = len(self._rest) if size < 0 else size
        piece, self._rest = self._rest[:count], self._rest[count:]
        return piece
