"""ChEBI-20 (Edwards et al. 2021, as MolT5 publishes it): `CID<TAB>SMILES<TAB>description`, quotation marks are text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from align.questions import MOLECULE_QUESTION, Question
from align.readers.text import Row, need, read_table
from data_shards.articles import RejectHandler


def read(path: Path, on_reject: RejectHandler) -> Iterator[Row]:
    """One question per molecule. Raises `InputError` where a column is missing."""
    for position, row in read_table(path, on_reject, delimiter="\t", quoted=False):
        cid, smiles, text = (row[need(row, (name,), path)].strip() for name in ("cid", "smiles", "description"))
        yield Row(Question(f"chebi20:{cid}", MOLECULE_QUESTION, text, (smiles,)), position)
