"""What was submitted: `slurm/chain.json` in a chain's directory, and a pointer to it in each run directory."""

from __future__ import annotations

import contextlib
import fcntl
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.files import as_dataclass, write_json
from slurm import scheduler

_FORMAT_VERSION = 1
_REMOVE = "remove it, and see `squeue --me`"


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


def write(directory: Path, source: Path, entries: Sequence[Entry], earlier: Sequence[Entry] = ()) -> None:
    """Keep what was submitted, and those of the chain's stages that were submitted `earlier` and not again.

    A run directory that lies elsewhere gets a pointer to the chain.
    """
    body = {
        "format_version": _FORMAT_VERSION,
        "source": str(source),
        "working_directory": str(Path.cwd()),
        "submitted": round(time.time()),
        "stages": [asdict(entry) for entry in (*earlier, *entries)],
    }
    here = directory.resolve()
    write_json(record_file(directory), body)
    for entry in entries:
        if entry.run is not None and Path(entry.run).resolve() != here:
            write_json(record_file(Path(entry.run)), {"chain": str(here)})


def read(directory: Path) -> list[Entry]:
    """The stages that were submitted from a chain's directory, or that a run directory belongs to.

    Raises `InputError` where there are none, or what there is was not written by `submit`.
    """
    path = record_file(directory)
    if not path.exists():
        raise InputError(f"{path} does not exist: nothing was submitted there with `python -m slurm submit`")
    body = _body(path)
    if (chain := _chain_of(body)) is not None:
        pointer, path = path, record_file(chain)
        if not path.exists():
            raise InputError(f"{pointer} names {path}, which is gone; submit again, or see `squeue --me`")
        body = _body(path)
        if _chain_of(body) is not None:
            raise InputError(f"{path} points to itself or another as the record of a chain; {_REMOVE}")
    try:
        if body["format_version"] > _FORMAT_VERSION:
            version = body["format_version"]
            raise InputError(f"{path} has format version {version}, newer than this code: update biomedgpt")
        entries = [as_dataclass(Entry, entry) for entry in body["stages"]]
        there = Path(body["working_directory"])
    except (KeyError, TypeError):
        raise InputError(f"{path} is not a record of what was submitted; {_REMOVE}") from None
    if there == Path.cwd():
        return entries
    return [
        replace(entry, log=str(there / entry.log), run=str(there / entry.run) if entry.run else None)
        for entry in entries
    ]


def _body(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); {_REMOVE}") from None
    if not isinstance(body, dict):
        raise InputError(f"{path} is not a record of what was submitted; {_REMOVE}")
    return body


def _chain_of(body: dict[str, Any]) -> Path | None:
    """The chain that a run directory's record points to; None of a chain's own."""
    chain = body.get("chain")
    return Path(chain) if isinstance(chain, str) else None


def exists(directory: Path) -> bool:
    """Whether something was submitted, the record of which is there: a chain may have been removed since."""
    path = record_file(directory)
    if not path.exists():
        return False
    chain = _chain_of(_body(path))
    return chain is None or record_file(chain).exists()


def active(directory: Path) -> list[Entry]:
    """Those stages whose jobs wait or run."""
    if not exists(directory):
        return []
    found = []
    for entry in read(directory):
        job = scheduler.info(entry.job)
        if job is not None and job.unfinished:
            found.append(entry)
    return found


def record_file(directory: Path) -> Path:
    """Where what was submitted is kept."""
    return directory / "slurm" / "chain.json"


@contextlib.contextmanager
def submitting(directories: Iterable[Path]) -> Iterator[None]:
    """Keep other submits out of some directories, so that two at once do not both find that nothing runs there.

    Raises `InputError` where another one is at work. A file system without locks goes without.
    """
    with contextlib.ExitStack() as resources:
        for directory in sorted({path.resolve() for path in directories}):
            path = directory / "slurm" / "submit.lock"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = resources.enter_context(open(path, "a", encoding="utf-8"))
            except OSError as error:
                raise InputError(f"cannot write {path}: {error.strerror}; choose another 'directory'") from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{directory} is being submitted by another process; wait for it") from None
            except OSError:
                continue
        yield
