"""What was submitted: `slurm/chain.json` in a chain's directory, and a pointer to it in each run directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from job.errors import InputError
from job.files import read_json, write_json
from slurm import scheduler

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Entry:
    """A submitted stage."""

    name: str
    kind: str
    job: str
    after: list[str]
    log: str
    run: str | None
    """run directory of a training stage"""


def write(directory: Path, source: Path, entries: Sequence[Entry]) -> None:
    """Keep what was submitted."""
    body = {
        "format_version": _FORMAT_VERSION,
        "source": str(source),
        "working_directory": str(Path.cwd()),
        "submitted": round(time.time()),
        "stages": [asdict(entry) for entry in entries],
    }
    write_json(directory / "slurm" / "chain.json", body)
    for entry in entries:
        if entry.run is not None and Path(entry.run) != directory:
            write_json(Path(entry.run) / "slurm" / "chain.json", {"chain": str(directory.resolve())})


def read(directory: Path) -> list[Entry]:
    """The stages that were submitted from a chain's directory, or that a run directory belongs to.

    Raises `InputError` where there are none.
    """
    path = directory / "slurm" / "chain.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: nothing was submitted there with `python -m slurm submit`")
    body = read_json(path)
    if "chain" in body:
        return read(Path(body["chain"]))
    if body.get("format_version", 0) > _FORMAT_VERSION:
        raise InputError(f"{path} has format version {body['format_version']}, newer than this code: update biomedgpt")
    entries = [Entry(**entry) for entry in body["stages"]]
    if (there := Path(body["working_directory"])) == Path.cwd():
        return entries
    return [
        replace(entry, log=str(there / entry.log), run=str(there / entry.run) if entry.run else None)
        for entry in entries
    ]


def active(directory: Path) -> list[Entry]:
    """Those stages whose jobs wait or run."""
    if not (directory / "slurm" / "chain.json").exists():
        return []
    found = []
    for entry in read(directory):
        job = scheduler.info(entry.job)
        if job is not None and job.unfinished:
            found.append(entry)
    return found
