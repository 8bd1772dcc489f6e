"""Text of articles made fit for training: Unicode, white space, and what citation marks leave behind.

Normalisation is NFC with a map of our own. NFKC and transliteration are out of the question: they turn 10⁵ into 105,
½ into 1⁄2 and μM into mM.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

CITATION = "\x00"
"""Stands where a citation mark was cut, until `tidy` removes it with its brackets. It cannot occur in XML, and the JSON
readers remove it from their input."""

_INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f"  # controls that are not white space
    "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff"  # soft hyphen, zero-width, direction, byte order marks
    "\ud800-\udfff"  # lone surrogates, which JSON can spell and UTF-8 cannot
    "\ue000-\uf8ff"  # private use: a publisher's own font, meaningless without it
    "]"
)

_LINKING_WORDS = (
    r"(?:e\.g\.,?|i\.e\.,?|see(?: also)?|as|reviewed (?:in|by)|for (?:a )?reviews?,?(?: see)?|cf\.|and|also|in|"
    r"refs?\.?|references?|references therein|therein|by|from)"
)
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n\s*")
_LINE_END = re.compile(r"\n")
_FILLER = rf"(?:{_LINKING_WORDS}|[\s,;:–—\-&.])"
# Each pattern starts with a rare character, so that searching costs little; the spaces it leaves behind collapse later.
_BRACKETED_CITATION = re.compile(rf"[\[(（]\s*{_FILLER}*\x00(?:\x00|{_FILLER})*[\])）]", re.IGNORECASE)
_CITATION_AFTER_BRACKET = re.compile(r"([(\[])\s*\x00(?:\x00|[\s,;–\-&]|and\s)*")
_CITATION_BEFORE_BRACKET = re.compile(r"\x00(?:\x00|[\s,;.–\-&])*(?=[)\]])")
_COMMA_BEFORE_BRACKET = re.compile(rf"[,;]\s*(?:{_LINKING_WORDS}\s*)?(?=[)\]])", re.IGNORECASE)
_CITATIONS = re.compile(r"\x00(?:[\s,;–\-]*\x00)*")
_EMPTY_BRACKETS = re.compile(r"\(\s*[,;–\-\s]*\)|\[\s*[,;–\-\s]*\]")
_COMMAS = re.compile(r",\s*,+|;\s*,|,\s*;")
_COMMA_STOP = re.compile(r"[,;] ?\.(?=\s|$)")
_SPACE_STOP = re.compile(r" ([,;)\]]|[.:](?=\s|$))")
_SPACE_STOP_GLUED = re.compile(r" \.(?=[A-Z][a-z])")
_SPACE_STOPS = (" ,", " ;", " )", " ]", " .", " :")

_BRACKETS = re.compile(r"[()\[\]]")
_BRACKET_REACH = 400  # characters; a bracket opened before that was never meant to be closed
_SENTENCE_WORD = re.compile(r"[A-Z][\w'’\-]+")

_NOTICE = re.compile(
    r"(?<=[.!?)\]])\s*(?:\(PsycINFO Database Record|This article is protected by copyright|All rights reserved|"
    r"(?:©|\(c\)|Copyright(?:\s*(?:©|\(c\)))?)\s*(?:the\s|[12]\d{3}\b|elsevier|wiley|springer))",
    re.IGNORECASE,
)
_NOTICE_CHARACTERS = 320  # longest tail that is taken for a notice
_TRUNCATED_MARK = re.compile(r"\s*\(ABSTRACT TRUNCATED AT \d+ WORDS\)\.?", re.IGNORECASE)


def normalise(text: str) -> str:
    """NFC, every kind of white space one space, invisible and private-use characters gone."""
    if not text.isprintable():  # as all invisible characters are, and few texts hold one
        text = _INVISIBLE.sub("", text)
    if not text.isascii() and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.split())


def tidy(text: str) -> str:
    """Remove `CITATION` marks with the brackets, commas and linking words that only served them; one line out."""
    if CITATION in text:
        before = ""
        while before != text:  # brackets nest: "(see [3] for review)"
            before, text = text, _BRACKETED_CITATION.sub(CITATION, text)
        text = _CITATION_AFTER_BRACKET.sub(r"\1", text)
        text = _CITATION_BEFORE_BRACKET.sub("", text)
        text = _COMMA_BEFORE_BRACKET.sub("", text)
        text = _CITATIONS.sub("", text)
        text = _EMPTY_BRACKETS.sub("", text)
        text = _COMMAS.sub(",", text)
        text = _SPACE_STOP_GLUED.sub(". ", text)
    text = normalise(text)
    # Plain searches first: the patterns would try every space.
    if any(space_stop in text for space_stop in _SPACE_STOPS):
        text = _SPACE_STOP.sub(r"\1", text)
    text = text.replace("( ", "(").replace("[ ", "[").replace("et al..", "et al.")
    return _COMMA_STOP.sub(".", text)


def is_narrative(mark: str, before: str) -> bool:
    """Whether a citation mark is part of the sentence ("by Agulnik et al. (1998), who ..."), so that it must stay.

    `before` is the text up to the mark: a name inside open brackets is a mere reference, a name outside them is a word
    of the sentence.
    """
    if not _SENTENCE_WORD.match(mark.strip()) or before.rstrip()[-1:] in (";", CITATION):
        return False
    closed = 0
    for bracket in reversed(_BRACKETS.findall(before[-_BRACKET_REACH:])):
        if bracket in ")]":
            closed += 1
        elif closed == 0:
            return False
        else:
            closed -= 1
    return True


def cut_spans(text: str, spans: Iterable[tuple[int, int]]) -> str:
    """Cut the citation spans `(start, end)` (character offsets) from `text`, keep narrative ones, and tidy up.

    Spans beyond the text, empty, or overlapping an earlier one are ignored: real S2ORC files hold all three.
    """
    pieces: list[str] = []
    position = 0
    for start, end in sorted(spans):
        if start < position or end > len(text) or end <= start:
            continue
        mark = text[start:end]
        pieces.append(text[position:start])
        if is_narrative(mark, text[max(0, start - _BRACKET_REACH) : start]):
            pieces.append(mark)
        else:
            pieces.append(_balance(mark))
        position = end
    pieces.append(text[position:])
    return tidy("".join(pieces))


def _balance(mark: str) -> str:
    """A cut mark: the brackets that it opens or closes for a neighbouring span stay, so that pairs stay pairs."""
    opened = mark.count("(") - mark.count(")")
    return "(" * max(opened, 0) + CITATION + ")" * max(-opened, 0)


def strip_notices(paragraph: str) -> str:
    """Cut what indexers and publishers append to an abstract: copyright lines and `(ABSTRACT TRUNCATED ...)`."""
    if "TRUNCATED" in paragraph:
        paragraph = _TRUNCATED_MARK.sub("", paragraph)
    tail = paragraph[-_NOTICE_CHARACTERS:].lower()
    if "copyright" not in tail and "©" not in tail and "(c)" not in tail and "rights reserved" not in tail:
        return paragraph
    notice = _NOTICE.search(paragraph, max(0, len(paragraph) - _NOTICE_CHARACTERS))
    return paragraph[: notice.start()] if notice else paragraph


def paragraphs_of(text: str) -> tuple[str, ...]:
    """Split plain text at blank lines (or, where there are none, at line ends) into clean paragraphs."""
    if "\n" not in text:  # nearly all abstracts
        text = normalise(text)
        return (text,) if text else ()
    separator = _BLANK_LINE if _BLANK_LINE.search(text) else _LINE_END
    pieces = separator.split(text)
    return tuple(piece for piece in map(normalise, pieces) if piece)


_DROPPED_HEADINGS = re.compile(
    r"(supporting information|supplementa(ry|l) (material|information|data|files?)s?|supplements?|"
    r"additional (data )?files?|author(s|s['’`]|['’`]s)? (contributions?|details|information)|"
    r"(declaration of )?(competing|conflicts?( of)?|potential conflicts? of) interests?|competing financial interests?|"
    r"acknowledge?ments?|pre-?publication history|abbreviations?( used)?|list of abbreviations.*|"
    r"funding( sources?| statement| information)?|financial (support|disclosures?)|references|bibliography|"
    r"literature cited|electronic supplementary material|data availability.*|availability of data.*|"
    r"ethics (statement|approval.*)|disclosures?( statement)?|consent for publication|publisher['’`]?s note|"
    r"(open access|copyright)|figures? legends?|tables?)\s*[:.]?",
    re.IGNORECASE,
)


def is_dropped_heading(heading: str) -> bool:
    """Whether a section is about authors, funding, references or supplements rather than the subject.

    Decided by title, since most files leave `sec-type` out (59 of 89 "Supporting Information" in real JATS files).
    """
    heading = re.sub(r"^[\d.\s]+", "", heading.strip())
    return bool(_DROPPED_HEADINGS.fullmatch(heading))
