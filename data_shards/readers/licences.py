"""Licence statements as one of a few classes, so that a build can say which it takes."""

from __future__ import annotations

import re

from lxml import etree

_HREF = "{http://www.w3.org/1999/xlink}href"
_ALI_LICENSE = "{http://www.niso.org/schemas/ali/1.0/}license_ref"

_NON_COMMERCIAL = re.compile(r"by-nc|non-?\s?commercial|\bCC[ -]BY[ -]NC", re.IGNORECASE)
_NO_DERIVATIVES = re.compile(r"by-(nc-)?nd|no-?\s?deriv|\bBY[ -](NC[ -])?ND\b", re.IGNORECASE)
_SHARE_ALIKE = re.compile(r"by-(nc-)?sa|share-?\s?alike|\bBY[ -](NC[ -])?SA\b", re.IGNORECASE)
_PUBLIC_DOMAIN = re.compile(
    r"publicdomain/(zero|mark)|\bcc-?0\b|\bcc zero\b|public domain|copyright waiver", re.IGNORECASE
)
_ATTRIBUTION = re.compile(
    r"licen[sc]es/by/|creative commons attribution|terms of the creative commons|\bcc[ -]by\b|"
    r"unrestricted\s+(non-?commercial\s+)?use,?\s+distribution|verbatim copying and redistribution",
    re.IGNORECASE,
)
_OPEN = re.compile(r"open[- ]access", re.IGNORECASE)


def classify_licence(text: str) -> str:
    """The class of a licence statement, URL or short name.

    One of cc0, by, by-sa, by-nd, by-nc, by-nc-sa, by-nc-nd, open-unspecified ("open access" and no more), none. A
    statement that mentions both is non-commercial: the narrower reading wins.
    """
    if not text:
        return "none"
    non_commercial = bool(_NON_COMMERCIAL.search(text))
    if not non_commercial and _PUBLIC_DOMAIN.search(text):
        return "cc0"
    if non_commercial or _ATTRIBUTION.search(text) or re.fullmatch(r"\s*by(-\w+)*\s*", text, re.IGNORECASE):
        suffix = "-nd" if _NO_DERIVATIVES.search(text) else "-sa" if _SHARE_ALIKE.search(text) else ""
        return ("by-nc" if non_commercial else "by") + suffix
    return "open-unspecified" if _OPEN.search(text) else "none"


def jats_licence(meta: etree._Element) -> str:
    """The licence class of a JATS `article-meta`.

    Half of real files have no licence URL and a quarter no licence element at all: then the terms stand in the
    copyright statement, in words.
    """
    permissions = meta.find("permissions")
    where = permissions if permissions is not None else meta
    words: list[str] = []
    for licence in where.iter("license"):
        words += [licence.get(_HREF) or "", licence.get("license-type") or ""]
        words += [link.get(_HREF) or "" for link in licence.iter("ext-link", "uri")]
        words += [str(text) for text in licence.itertext()]
    for reference in where.iter(_ALI_LICENSE):
        words.append(reference.text or "")
    for statement in where.iter("copyright-statement"):
        words += [str(text) for text in statement.itertext()]
    return classify_licence(" ".join(" ".join(words).split()))
