"""Identifiers and years as sources write them, brought to one form; None for anything that is not one."""

from __future__ import annotations

import re
from typing import Any

from data_shards.clean import normalise

_DOI = re.compile(r"10\.\d{4,9}/\S+")
_YEAR = re.compile(r"(?<!\d)(1[5-9]\d\d|20\d\d)(?!\d)")


def clean_pmid(value: Any) -> str | None:
    """A PubMed id as digits without leading zeros."""
    digits = re.fullmatch(r"\s*(?:pmid:?\s*)?0*([1-9]\d{0,9})(?:\.0)?\s*", str(value or ""), re.IGNORECASE)
    return digits[1] if digits else None


def clean_pmcid(value: Any) -> str | None:
    """A PubMed Central id with its prefix: `PMC5371592`."""
    digits = re.fullmatch(r"\s*(?:pmc:?\s*)?(?:pmc)?0*([1-9]\d{0,9})(?:\.\d+)?\s*", str(value or ""), re.IGNORECASE)
    return f"PMC{digits[1]}" if digits else None


def clean_doi(value: Any) -> str | None:
    """A DOI in lower case (DOIs are case-insensitive), without resolver address or trailing punctuation."""
    found = _DOI.search(str(value or "").strip().lower())
    return normalise(found[0]).rstrip(".,;") if found else None


def clean_year(value: Any) -> int | None:
    """The first four-digit year in a date."""
    found = _YEAR.search(str(value or ""))
    return int(found[1]) if found else None
