"""Work through the items of a task: in batches of like length, over all ranks, going on where a killed run stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console
from rich.progress import track

from align.batches import pack
from job.errors import InputError
from job.files import write_text
from parallel import ranks

Record = dict[str, Any]


class Journal:
    """What has been computed of a task, one JSON object per line, flushed batch by batch.

    Each rank appends to a file of its own and reads all of them. A journal that was begun for something else (another
    model, prompt or data: another fingerprint) is begun anew.
    """

    def __init__(self, directory: Path, task: str, fingerprint: str) -> None:
        self._records: dict[str, Record] = {}
        head = json.dumps({"fingerprint": fingerprint})
        name = task.replace("/", "-")
        mine = directory / f"{name}.rank-{ranks.rank()}.jsonl"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            begun = torn = False
            for file in sorted(directory.glob(f"{name}.rank-*.jsonl")):
                first, *lines = file.read_bytes().split(b"\n")
                if first != head.encode() or not lines:
                    continue
                if file == mine:
                    begun, torn = True, bool(lines[-1])
                self._records |= {record["id"]: record for record in map(_record, lines) if record is not None}
            if dist.is_initialized():
                dist.barrier()  # nobody writes before all have read
            if not begun:
                write_text(mine, head + "\n")
            self._file = mine.open("a", encoding="utf-8")
            if torn:
                self._file.write("\n")  # behind a line that a kill cut short
        except OSError as error:
            raise InputError(f"cannot write {mine}: {error.strerror}") from None

    def __contains__(self, identifier: str) -> bool:
        return identifier in self._records

    def __getitem__(self, identifier: str) -> Record:
        return self._records[identifier]

    def add(self, records: Sequence[Record]) -> None:
        """Keep some records, each with its `id`."""
        self._records |= {record["id"]: record for record in records}
        try:
            self._file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
            self._file.flush()
        except OSError as error:
            raise InputError(f"cannot write {self._file.name}: {error.strerror}") from None

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()


class Memory(Journal):
    """A journal that no file keeps."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}

    def add(self, records: Sequence[Record]) -> None:
        """Keep some records, each with its `id`."""
        self._records |= {record["id"]: record for record in records}

    def close(self) -> None:
        """Nothing is open."""


def _record(line: bytes) -> Record | None:
    """A line of a journal; None for one that a kill or a bad disk has damaged: its item is computed again."""
    try:
        record = json.loads(line.decode())
        return record if isinstance(record["id"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


def work_through(
    identifiers: Sequence[str],
    lengths: Sequence[int],
    work: Callable[[list[int]], Sequence[Record]],
    journal: Journal,
    token_budget: int,
    what: str,
) -> list[Record]:
    """Compute the record of every item that the journal lacks; every rank gets all of them, in the order given.

    Args:
        identifiers: of the items, unique.
        lengths: of the items in tokens; items of like length share a batch.
        work: given the numbers of the items of a batch, gives their records (JSON objects with `id`).
        journal: what has been computed already, and where new records go.
        token_budget: padded tokens of a batch (rows x longest).
        what: for the progress bar.

    Batches are the same whether or not a run was interrupted, so that its numbers are too.
    """
    batches = pack(lengths, token_budget, ranks.world())[ranks.rank()] if identifiers else []
    left = [rows for rows in batches if any(identifiers[row] not in journal for row in rows)]
    console = Console(stderr=True)
    for rows in track(left, what, console=console, disable=not console.is_terminal or ranks.rank() != 0):
        journal.add(work(rows))
    if dist.is_initialized():
        everyone: list[list[Record]] = [[] for _ in range(ranks.world())]
        dist.all_gather_object(everyone, [journal[name] for name in identifiers if name in journal])
        found = {record["id"]: record for records in everyone for record in records}
    else:
        found = {name: journal[name] for name in identifiers}
    return [found[name] for name in identifiers]
