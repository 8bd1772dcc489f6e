"""Text of articles made fit for training: Unicode, white space, and what citation marks leave behind.

Normalisation is NFC with a map of our own. NFKC and transliteration are out of the question: they turn 10⁵ into 105,
½ into 1⁄2 and μM into mM.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

CITATION = "\x00"
"""Stands where a citation mark was cut, until `tidy` removes it with its brackets. It cannot occur in XML, and the JSON
readers remove it from their input."""

NAME_END = "\x01"
"""Ends the name that may follow `CITATION`: what the sentence calls the cited work where it cannot do without it."""

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
_MARK = r"\x00(?:[^\x00\x01]*\x01)?"
_NAMED_MARK = r"\x00[^\x00\x01]+\x01"
_MARK_SEPARATOR = r"[\s,;–—-]*(?:and\s+)?"
# Words that are nothing without what they refer to; of many verbs "to", "from" and "on" are the end ("stained to [3]").
_NEEDS_OBJECT = (
    r"(?:\b(?:in|by|of|with|see|see also|than|between|following|refs?\.?|references?|such as|"
    r"(?:obtained|adapted|taken|derived|modified|revised|compiled|reanaly[sz]ed|reproduced|\w+ (?:is|are)) from|"
    r"from refs?\.?|based on|(?:according|similar|similarly|analogous|refer|refers|referred|compared) to)\s+)"
)
_BLANK_LINE = re.compile(r"\n[ \t]*\r?\n\s*")
_LINE_END = re.compile(r"\n")
_FILLER = rf"(?:{_LINKING_WORDS}|[\s,;:–—\-&.])"
# Each pattern starts with a rare character, so that searching costs little; the spaces it leaves behind collapse later.
_BRACKETED_CITATION = re.compile(rf"[\[(（]\s*{_FILLER}*\x00(?:\x00|{_FILLER})*[\])）]", re.IGNORECASE)
_MARKS = rf"{_MARK}(?:{_MARK_SEPARATOR}{_MARK})*"
_REFERENCE_ASIDE = re.compile(  # "(reviewed in [3, 4])", also where the source forgot to close it
    rf"[(（\[]\s*(?:{_LINKING_WORDS}[\s,:]*)+(?:{_MARKS}|\[{_MARKS}\]|\({_MARKS}\))"
    rf"(?:(?:{_FILLER})*[)）\]]|(?=\.\s+[A-Z]))",
    re.IGNORECASE,
)
_NARRATIVE = re.compile(
    rf"(?P<before>{_NEEDS_OBJECT})(?P<bracket>[\[(]?)(?P<marks>{_NAMED_MARK}(?:{_MARK_SEPARATOR}{_NAMED_MARK})*)"
    r"(?P<close>[\])]?)",
    re.IGNORECASE,
)
_TRAILING_ASIDE = re.compile(  # "(Figure 1H; see also [3])"
    rf"[,;](?<![\x00\x01].)\s*(?:{_LINKING_WORDS}[\s,:]*)*(?:{_MARKS}|\[{_MARKS}\])(?=\s*[)）\]])", re.IGNORECASE
)
_AWAITS_NAME = re.compile(rf"(?:{_NEEDS_OBJECT}[\[(]?|\x01{_MARK_SEPARATOR})$", re.IGNORECASE)
_REFERENCE_WORD = re.compile(r"(?:refs?\.?|references?)\s+$", re.IGNORECASE)
_LAST_WORDS = frozenset(
    "in by of with see also than between following ref ref. refs refs. reference references as from on to".split()  # noqa: SIM905
)
_NAMES_SHOWN = 3
_SENTENCE_REACH = 60  # characters before a mark in which the work's author may stand already
_AND_BEFORE_BRACKET = re.compile(r"\s+(?:and|or)\s*\x00(?=[)\]])")
_CITATION_AFTER_BRACKET = re.compile(r"([(\[])\s*\x00(?:\x00|[\s,;–\-&]|and\s)*")
_CITATION_BEFORE_BRACKET = re.compile(r"\x00(?:\x00|[\s,;.–\-&])*(?=[)\]])")
_COMMA_BEFORE_BRACKET = re.compile(rf"[,;]\s*(?:{_LINKING_WORDS}\s*)*(?=[)\]])", re.IGNORECASE)
_CITATIONS = re.compile(r"\x00(?:[\s,;–\-]*\x00)*")
_EMPTY_BRACKETS = re.compile(r"\(\s*[,;–\-\s]*\)|\[\s*[,;–\-\s]*\]")
_COMMAS = re.compile(r",\s*,+|;\s*,|,\s*;")
_INTERVAL_START = re.compile(
    r"(?:[=∈∊∉≈∪∩×⊂⊆]|\bintervals?(?:\s+(?:of|on))?)\s*\[\s*(?:[-−]?[\d.]+\s*,\s*)?$",
    re.IGNORECASE,
)
_PLAIN_MARK = re.compile(r" \[\d{1,3}\](?=[\s.,;:)])")
_NO_MARK_AFTER = re.compile(
    r"(?:[^a-zA-Z)]|\b(?:equations?|eqn?s?|steps?|compounds?|of|in|by|and|or|to|intervals?|range|value))$",
    re.IGNORECASE,
)
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
        if NAME_END in text:
            text = _REFERENCE_ASIDE.sub(CITATION, text)
            text = _TRAILING_ASIDE.sub("", text)
            text = _NARRATIVE.sub(_name_works, text)
            text = re.sub(_MARK, CITATION, text)
        before = ""
        while before != text:  # brackets nest: "(see [3] for review)"
            before, text = text, _BRACKETED_CITATION.sub(CITATION, text)
        text = _AND_BEFORE_BRACKET.sub("", text)
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


def _name_works(found: re.Match[str]) -> str:
    """`in [<mark>, <mark>]` -> `in Hu et al. (2002) and Best (2005)`; "and others" where there are more, or a range."""
    names = list(dict.fromkeys(re.findall(r"\x00([^\x00\x01]+)\x01", found["marks"])))
    before, bracket, close = _REFERENCE_WORD.sub("", found["before"]), found["bracket"], found["close"]
    if bracket and close:
        bracket = close = ""
    surname = re.split(r" \(| and | et al", names[0])[0]
    sentence = found.string[max(0, found.start() - _SENTENCE_REACH) : found.start()]
    if not bracket and re.search(rf"\b{re.escape(surname)}\b", sentence.rsplit(". ", 1)[-1]):
        return close  # "Hu et al. in [3] report": it is said already
    if re.search("[–—-]", re.sub(_MARK, "", found["marks"])) or len(names) > _NAMES_SHOWN:
        names = [*names[: _NAMES_SHOWN - 1], "others"]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return before + bracket + listed + close


def awaits_name(before: str) -> bool:
    """Whether a citation mark after the text `before` is a word of its sentence ("as described in [3]").

    The mark is then to be followed by the work's name (`work_name`) and `NAME_END`; `tidy` decides whether it is shown.
    """
    words = before[-40:].rstrip("[( \n,;–—-").rsplit(None, 1)
    # Most marks follow some other word: said by one look, where the pattern would try every position.
    last = words[-1].lower().lstrip("([") if words else ""
    return (last in _LAST_WORDS or NAME_END in before[-8:]) and bool(_AWAITS_NAME.search(before[-80:]))


def work_name(surnames: Sequence[str], year: str | int | None) -> str:
    """How a sentence calls a cited work: `Hu and Feng (2003)`; empty where an author or the year is unknown."""
    surnames = [name for name in map(normalise, surnames) if name]
    if not surnames or not year or surnames[0].lower().startswith("anon"):
        return ""
    listed = " and ".join(surnames) if len(surnames) <= 2 else f"{surnames[0]} et al."
    return f"{listed} ({normalise(str(year))})"


def is_bound(mark: str, before: str) -> bool:
    """Whether a linked number is no citation but a bound: real files tag the 5 in `x ∈ [5, 120]`."""
    return mark.strip().isdigit() and "[" in before[-12:] and bool(_INTERVAL_START.search(before[-30:]))


def cut_plain_marks(text: str) -> str:
    """Cut bracketed numbers after a word that the source left unlinked ("in DOC [45]").

    Single numbers only: two might be an interval. Numbers of equations and the like stay.
    """
    if "[" not in text:
        return text
    return _PLAIN_MARK.sub(lambda mark: mark[0] if _NO_MARK_AFTER.search(text[: mark.start()][-12:]) else "", text)


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


def cut_spans(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """Cut the citation spans `(start, end, name)` (character offsets) from `text`, keep narrative ones, and tidy up.

    `name` is that of the cited work (`work_name`), or empty where it is unknown.

    Spans beyond the text, empty, or overlapping an earlier one are ignored: real S2ORC files hold all three.
    """
    pieces: list[str] = []
    position = 0
    for start, end, name in sorted(spans):
        if start < position or end > len(text) or end <= start:
            continue
        mark = text[start:end]
        pieces.append(text[position:start])
        before = text[max(0, start - _BRACKET_REACH) : start]
        if is_bound(mark, before):
            pieces.append(mark)
        elif is_narrative(mark, before):
            # With a closing bracket too many it stood in brackets, of which the parser lost one.
            pieces.append(mark if mark.count(")") <= mark.count("(") else CITATION)
        elif name and awaits_name("".join(pieces[-3:])):
            pieces.append(f"{CITATION}{name}{NAME_END}")
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


_INITIALS = r"(?:[A-Z][a-z]?\.?-?){1,4}"
_APPARATUS = re.compile(
    rf"(?-i:(?:{_INITIALS}(?:,? and |, ))+{_INITIALS}) (?:\w+ ){{0,3}}"
    r"(?:conceived|designed|responsible|contributed|performed|wrote|drafted|participated|carried|did|analy[sz]ed|supervised)\b.*\b(?:manuscript|study|experiments?|data)\b|"
    r"(?:all )?(?:the )?authors? (?:declares?|have declared|report|disclose)\b.{0,80}\b(?:interests?|conflicts?)\b|"
    r"(?:the )?authors? (?:(?:would like to|wish to) )?(?:thank|acknowledge|(?:are|is) grateful)\b|"
    r"we (?:(?:would like to|wish to|also) )?(?:thank|gratefully acknowledge|are (?:very )?grateful to)\b|"
    r"this (?:work|study|research) was (?:\w+ )?(?:supported|funded) (?:\w+ )?by\b",
    re.IGNORECASE,
)
_APPARATUS_CHARACTERS = 1500  # longer paragraphs say something else as well


def is_apparatus(paragraph: str) -> bool:
    """Whether a closing paragraph without heading is about authors' contributions, interests, thanks or funding."""
    return len(paragraph) <= _APPARATUS_CHARACTERS and bool(_APPARATUS.match(paragraph))


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
