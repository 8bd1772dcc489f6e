"""S2ORC's metadata tables (2020: `metadata_*.jsonl.gz`; today: s2ag `papers` and `abstracts`) as an on-disk index.

A hundred million rows do not fit in memory and are not sharded like the full text, so the rows that matter (those with
a PubMed or PMC id, and those that complete them) go into one SQLite file that every reading process opens read-only.
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_shards.articles import Article, Reject, RejectHandler
from data_shards.clean import normalise, paragraphs_of
from data_shards.readers.identifiers import clean_doi, clean_pmcid, clean_pmid, clean_year
from data_shards.readers.json_records import read_records
from data_shards.readers.licences import classify_licence
from job.errors import InputError

_COLUMNS = ("id", "title", "abstract", "year", "pmid", "pmcid", "doi", "licence")
_ROWS_A_TRANSACTION = 50_000


def build(paths: Iterable[Path], target: Path, on_reject: RejectHandler) -> int:
    """Write the index of all metadata files to `target` (a new file); returns the number of papers in it.

    A later row completes an earlier one of the same paper (the `abstracts` table after `papers`).
    """
    assignments = ", ".join(f"{name} = coalesce({name}, excluded.{name})" for name in _COLUMNS[1:])
    marks = ", ".join("?" * len(_COLUMNS))
    statement = (
        f"insert into papers ({', '.join(_COLUMNS)}) values ({marks}) on conflict (id) do update set {assignments}"
    )
    connection = sqlite3.connect(target)
    try:
        connection.execute("pragma journal_mode = off")  # written aside and renamed when whole: needs no journal
        connection.execute("pragma synchronous = off")
        connection.execute(
            "create table papers (id integer primary key, title text, abstract text, year integer, pmid text, "
            "pmcid text, doi text, licence text)"
        )
        batch: list[tuple[Any, ...]] = []
        for path in paths:
            for row in _rows(path, on_reject):
                batch.append(row)
                if len(batch) >= _ROWS_A_TRANSACTION:
                    connection.executemany(statement, batch)
                    batch.clear()
        connection.executemany(statement, batch)
        connection.commit()
        return connection.execute("select count(*) from papers").fetchone()[0]
    finally:
        connection.close()


def build_task(outputs: tuple[Path], paths: list[Path]) -> dict[str, Any]:
    """`build` as a resumable task: the index appears under its name only when whole."""
    temporary = outputs[0].with_name(f".{outputs[0].name}.{os.getpid()}.tmp")
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    rejected = 0

    def count(_: Reject) -> None:
        nonlocal rejected
        rejected += 1

    try:
        papers = build(paths, temporary, count)
        temporary.replace(outputs[0])
    except (sqlite3.Error, OSError) as error:
        raise InputError(f"cannot write {outputs[0]}: {error}; free space or choose another directory") from None
    finally:
        temporary.unlink(missing_ok=True)
    return {"papers": papers, "malformed_rows": rejected}


def _rows(path: Path, on_reject: RejectHandler) -> Iterator[tuple[Any, ...]]:
    for _, record in read_records(path, on_reject):
        number = str(record.get("paper_id") or record.get("corpusid") or "")
        if not number.isdigit():
            continue
        access = record.get("openaccessinfo") or {}
        outside = record.get("externalids") or access.get("externalids") or {}
        ids = {key.lower(): value for key, value in outside.items()}
        yield (
            int(number),
            normalise(record.get("title") or "") or None,
            record.get("abstract") or None,
            clean_year(record.get("year")),
            clean_pmid(record.get("pubmed_id") or ids.get("pubmed")),
            clean_pmcid(record.get("pmc_id") or ids.get("pubmedcentral")),
            clean_doi(record.get("doi") or ids.get("doi")),
            classify_licence(access["license"]) if access.get("license") else None,
        )


class S2orcMetadata:
    """Read-only look-ups in an index that `build` wrote."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)

    def complete(self, article: Article) -> Article:
        """Ids, year, licence and abstract that the article lacks; the title always, since parsed ones are often wrong
        (running headers such as "JNMA I VOL 61 I ISSUE 259").
        """
        if not (article.native_id or "").isdigit():
            return article
        row = self._connection.execute(
            f"select {', '.join(_COLUMNS[1:])} from papers where id = ?", (int(article.native_id or 0),)
        ).fetchone()
        if row is None:
            return article
        title, abstract, year, pmid, pmcid, doi, licence = row
        return dataclasses.replace(
            article,
            title=title or article.title,
            abstract=article.abstract or paragraphs_of(abstract or ""),
            year=article.year or year,
            pmid=article.pmid or pmid,
            pmcid=article.pmcid or pmcid,
            doi=article.doi or doi,
            licence=article.licence if article.licence != "none" else licence or "none",
        )
