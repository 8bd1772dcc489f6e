"""Inline XML markup (superscripts, subscripts, formulas) as plain text, for PubMed and JATS alike."""

from __future__ import annotations

import html
import re

from lxml import etree

MATHML = "{http://www.w3.org/1998/Math/MathML}"


def inline_text(element: etree._Element) -> str:
    """All text inside `element`, white space untouched.

    A superscript that starts with a digit or a sign is written with a caret: 10<sup>5</sup> is 10^5, never 105.
    MathML becomes linear text.
    """
    if len(element) == 0:
        return element.text or ""
    pieces: list[str] = []
    _collect(element, pieces)
    return "".join(pieces)


def _collect(element: etree._Element, pieces: list[str]) -> None:
    if element.text:
        pieces.append(element.text)
    for child in element:
        tag = child.tag
        if isinstance(tag, str):
            if tag.startswith(MATHML):
                pieces.append(f" {linear_formula(child).strip()} ")
            elif tag == "sup":
                inner: list[str] = []
                _collect(child, inner)
                pieces.append(superscript("".join(inner)))
            else:
                _collect(child, pieces)
        elif tag is etree.Entity:
            pieces.append(entity_text(child))
        if child.tail:
            pieces.append(child.tail)


def entity_text(entity: etree._Element) -> str:
    """What an entity that only a DTD could resolve stands for, where HTML knows it (`&beta;`); else its name."""
    return html.unescape(entity.text or "")


_ESCAPED_TAG = re.compile(
    r"<(?P<end>/?)(?P<name>o:p|p|sup|sub|i|b|u|em|strong|br|span|div|ul|ol|li)(?:\s+[\w:-]+=\"[^\"<>]*\")*\s*/?>",
    re.IGNORECASE,
)
_ESCAPED_SUP = re.compile(r"<sup>([^<>]*)</sup>", re.IGNORECASE)


def without_escaped_markup(text: str) -> str:
    """Text in which a publisher escaped HTML twice, as that HTML would read; any other text as it is.

    Recognised by a closing tag or an entity that can be nothing else: "a<b" and "p<0.05" stay.
    """
    if "</" in text and _ESCAPED_TAG.search(text):
        text = _ESCAPED_SUP.sub(lambda found: superscript(found[1]), text)
        text = _ESCAPED_TAG.sub(lambda tag: " " if tag["name"].lower() in _ESCAPED_BLOCKS else "", text)
        text = re.sub(r"([.!?])\s*\.(\s*)$", r"\1\2", text)  # the stop that PubMed puts after the last tag
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    return text


_ESCAPED_BLOCKS = {"p", "br", "div", "ul", "ol", "li"}
_ENTITY = re.compile(
    r"&(?:nbsp|lt|gt|amp|quot|apos|ndash|mdash|[lr][sd]quo|alpha|beta|gamma|delta|micro|mu|#\d{2,6}|#x[0-9a-fA-F]{2,5});"
)


def superscript(text: str) -> str:
    """`^` before a raised number or signed number, nothing before other raised text (a name, a mark)."""
    stripped = text.strip()
    if stripped[:1].isdigit() or (len(stripped) > 1 and stripped[0] in "-−–+" and stripped[1].isdigit()):
        return "^" + text.lstrip()
    return text


def linear_formula(element: etree._Element) -> str:
    """MathML as one line: x_i^2, (a)/(b), sqrt(x). TeX and other annotations beside it are left out."""
    tag = etree.QName(element).localname
    if tag in ("annotation", "annotation-xml", "tex-math"):
        return ""
    if tag in ("mi", "mn", "mo", "ms"):
        return (element.text or "").strip()
    if tag == "mtext":
        return element.text or ""
    if tag == "mspace":
        return " "
    parts = [linear_formula(child) for child in element if isinstance(child.tag, str)]
    if tag == "msub" and len(parts) == 2:
        return f"{parts[0]}_{parts[1]}"
    if tag == "msup" and len(parts) == 2:
        return f"{parts[0]}^{parts[1]}"
    if tag == "msubsup" and len(parts) == 3:
        return f"{parts[0]}_{parts[1]}^{parts[2]}"
    if tag == "mfrac" and len(parts) == 2:
        return f"({parts[0]})/({parts[1]})"
    if tag == "msqrt":
        return f"sqrt({''.join(parts)})"
    if tag == "mtr":
        return " ".join(parts) + ";"
    return "".join(parts)
