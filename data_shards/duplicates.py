"""One copy of each article: PubMed's updates applied, retractions followed across sources, the best source kept.

Every record read, kept or not, leaves one fixed-size row of keys (identifiers and hashes; 57 bytes). `resolve` sees
only these rows and takes about 190 bytes for each (measured; 8 GB for all of PubMed and PMC). The outcome depends on
their order (sources as configured, files by name) and on nothing else.

Identifiers and texts are compared by 64-bit hashes: among 50 million articles the chance that any two different ones
collide is below one in ten thousand.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np

from data_shards.articles import Article, Deletion

KEY_DTYPE = np.dtype(
    [
        ("pmid", "<u8"),
        ("pmcid", "<u8"),
        ("doi", "<u8"),
        ("native", "<u8"),
        ("text", "<u8"),
        ("split", "<u8"),  # hash of the article's id, which decides train or validation
        ("bytes", "<u4"),  # UTF-8 bytes of its text
        ("version", "<u2"),
        ("status", "u1"),
        ("reason", "u1"),  # index into REASONS
        ("priority", "u1"),  # of its source: the lowest wins
    ]
)
PUBMED, DELETION, RETRACTED, NOTICE = 1, 2, 4, 8
"""Bits of `status`."""
REASONS = (
    "",  # kept
    "no_pubmed_or_pmc_id",
    "no_text",
    "licence",
    "too_short",
    "superseded",
    "deleted",
    "retracted",
    "retraction_notice",
    "duplicate_id",
    "duplicate_text",
)
_CODE = {reason: code for code, reason in enumerate(REASONS)}
_NOT_WORDS = bytes(code for code in range(128) if not (chr(code).isalnum() or chr(code) == "_"))
_WIDE_NOT_WORDS = re.compile(r"[^\x00-\x7f\w]+")


def hash64(text: str) -> int:
    """A stable 64-bit hash that is never 0 (0 means: no such key)."""
    return _hash64(text.encode())


def _hash64(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def text_hash(text: str) -> int:
    """Hash of the words alone: case, punctuation, white space and compatibility forms make no difference."""
    text = text.lower()
    if not text.isascii():
        text = _WIDE_NOT_WORDS.sub("", unicodedata.normalize("NFKC", text))
    return _hash64(text.encode().translate(None, _NOT_WORDS))


def article_row(article: Article, text: str, source_name: str, priority: int, reason: str | None) -> tuple[int, ...]:
    """The `KEY_DTYPE` row of an article that selection drops for `reason` (None: keeps)."""
    status = PUBMED if article.source == "pubmed" else 0
    status |= {"retracted": RETRACTED, "retraction-notice": NOTICE}.get(article.retracted or "", 0)
    # Only these two formats have ids of their own that are unique within a source.
    native = article.native_id if article.source in ("s2orc", "jsonl") else None
    return (
        int(article.pmid or 0),
        int((article.pmcid or "PMC0")[3:]),
        hash64(article.doi) if article.doi else 0,
        hash64(f"{source_name}:{native}") if native else 0,
        text_hash(text) if reason is None else 0,
        hash64(article.id),
        min(len(text.encode()), 0xFFFFFFFF),
        min(article.version, 0xFFFF),
        status,
        _CODE[reason or ""],
        priority,
    )


def deletion_row(deletion: Deletion) -> tuple[int, ...]:
    """The `KEY_DTYPE` row of an entry of PubMed's DeleteCitation."""
    return (
        int(deletion.pmid),
        0,
        0,
        0,
        0,
        0,
        0,
        min(deletion.version, 0xFFFF),
        PUBMED | DELETION,
        _CODE["deleted"],
        255,
    )


def resolve(keys: np.ndarray, include_retracted: bool) -> np.ndarray:
    """Decide about every row.

    Args:
        keys: `KEY_DTYPE` [rows], in source, file and record order.
        include_retracted: keep retracted articles and retraction notices.

    Returns:
        uint8 [rows]: index into `REASONS`; 0 is kept.
    """
    reasons = keys["reason"].copy()
    current = _apply_updates(keys, reasons)
    columns = [_unambiguous(keys[name], keys["pmid"], current) for name in ("pmcid", "doi")]
    columns += [np.where(current, keys[name], 0) for name in ("pmid", "native")]
    labels = _components(columns)
    if not include_retracted:
        text = np.where(current, keys["text"], 0)
        related = _components([*columns, text])
        _mark_related(keys, reasons, related, RETRACTED, "retracted")
        _mark_related(keys, reasons, labels, NOTICE, "retraction_notice")
    # Best source first, then the longest text, then the first read.
    rank = np.lexsort((np.arange(len(keys)), -keys["bytes"].astype(np.int64), keys["priority"]))
    _keep_first(labels, rank, reasons, "duplicate_id")
    _keep_first(keys["text"], rank, reasons, "duplicate_text")
    return reasons


def _apply_updates(keys: np.ndarray, reasons: np.ndarray) -> np.ndarray:
    """PubMed's rules: of one PMID and version the last record counts, a later deletion removes it, and of the versions
    of one PMID the highest counts. Returns which rows still count (bool [rows]).
    """
    current = np.ones(len(keys), bool)
    rows = np.flatnonzero(keys["status"] & PUBMED)
    if len(rows) == 0:
        return current
    order = rows[np.lexsort((rows, keys["version"][rows], keys["pmid"][rows]))]
    pmid, version = keys["pmid"][order], keys["version"][order]
    last = np.append((pmid[1:] != pmid[:-1]) | (version[1:] != version[:-1]), True)
    group = np.cumsum(last) - last
    deleted = (keys["status"][order[last]] & DELETION) != 0
    superseded = order[~last]
    current[superseded] = False
    reasons[superseded] = _CODE["superseded"]
    gone = order[deleted[group]]
    current[gone] = False
    reasons[gone] = _CODE["deleted"]
    alive = order[last][~deleted]
    older = alive[:-1][
        keys["pmid"][alive[:-1]] == keys["pmid"][alive[1:]]
    ]  # sorted by version: the last is the highest
    current[older] = False
    reasons[older] = _CODE["superseded"]
    return current


def _unambiguous(column: np.ndarray, pmids: np.ndarray, current: np.ndarray) -> np.ndarray:
    """`column` with 0 wherever its key stands on records of different PMIDs: a supplement's DOI on each of its
    abstracts identifies none of them.
    """
    values = np.where(current, column, 0)
    rows = np.flatnonzero((values != 0) & (pmids != 0))
    if len(rows) == 0:
        return values
    order = rows[np.lexsort((pmids[rows], values[rows]))]
    same_key = values[order[1:]] == values[order[:-1]]
    conflicting = np.unique(values[order[1:]][same_key & (pmids[order[1:]] != pmids[order[:-1]])])
    values[np.isin(values, conflicting)] = 0
    return values


def _components(columns: list[np.ndarray]) -> np.ndarray:
    """Connected components of rows that share a non-zero key in any column: uint64 [rows], the same number in each."""
    labels = np.arange(1, len(columns[0]) + 1, dtype=np.uint64)
    groups = []
    for column in columns:
        order = np.flatnonzero(column)
        order = order[np.argsort(column[order], kind="stable")]
        if len(order) == 0:
            continue
        starts = np.flatnonzero(np.append(True, column[order][1:] != column[order][:-1]))
        counts = np.diff(np.append(starts, len(order)))
        groups.append((order, starts, counts))
    changed = True
    while changed:
        changed = False
        for order, starts, counts in groups:
            before = labels[order]
            after = np.repeat(np.minimum.reduceat(before, starts), counts)
            if not np.array_equal(before, after):
                labels[order] = after
                changed = True
    return labels


def _mark_related(keys: np.ndarray, reasons: np.ndarray, labels: np.ndarray, status: int, reason: str) -> None:
    """Drop every copy of an article that any current record marks with `status`."""
    marked = (keys["status"] & status != 0) & (reasons != _CODE["superseded"]) & (reasons != _CODE["deleted"])
    related = np.isin(labels, labels[marked])
    reasons[related & (reasons == 0)] = _CODE[reason]


def _keep_first(labels: np.ndarray, rank: np.ndarray, reasons: np.ndarray, reason: str) -> None:
    """Of the kept rows with the same non-zero label, keep the first in `rank`."""
    order = rank[(reasons[rank] == 0) & (labels[rank] != 0)]
    order = order[np.argsort(labels[order], kind="stable")]
    repeated = np.append(False, labels[order][1:] == labels[order][:-1])[: len(order)]
    reasons[order[repeated]] = _CODE[reason]
