"""Directories that all ranks write together, and that are either whole or absent.

One is written to a hidden directory beside its place, synced, checksummed by all ranks together, and renamed;
`manifest.json` inside it, written last, is what makes it count. Only torch.distributed is needed here.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from job import manifest
from job.errors import InputError
from job.files import fsync_directory, sha256_file
from parallel import ranks
from parallel.checkpoint_files import verify_file


def write_directory(
    path: Path, fill: Callable[[Path], None], stage: str, config: dict[str, Any], inputs: list[Any], content: Any
) -> int:
    """Write the directory `path`; collective. Returns its size in bytes.

    Args:
        path: replaced where it exists.
        fill: writes the files into the directory that it is given, on every rank; wraps what may fail on one rank
            alone in `ranks.together`, and what writes in `explained`.
        stage: what the manifest says made the directory.
        config: the resolved config, for the manifest.
        inputs: the manifest's references to what was read.
        content: the manifest's further keys; `files` and `world_size` are added.

    Raises `InputError` on every rank where any rank cannot write.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        ranks.together(lambda: on_first_rank(path, lambda: _make_empty(temporary)))
        fill(temporary)
        files = _checksums(path, temporary)
        body = content | {"world_size": dist.get_world_size(), "files": files}

        def finish() -> None:
            manifest.write(temporary, stage, config, inputs, body)
            shutil.rmtree(path, ignore_errors=True)
            temporary.rename(path)
            fsync_directory(path.parent)

        ranks.together(lambda: on_first_rank(path, finish))
    except InputError:
        if dist.get_rank() == 0:
            shutil.rmtree(temporary, ignore_errors=True)  # it may be what fills the disk
        raise
    return sum(entry["bytes"] for entry in files.values())


def verify_directory(path: Path, stage: str) -> dict[str, Any]:
    """Check this rank's share of a directory's files against its manifest, and return that.

    Raises `InputError` naming the damaged file; call it in `ranks.together`.
    """
    body = manifest.read(path, stage)
    if not isinstance(body.get("files"), dict):
        raise InputError(f"{path / manifest.NAME} has no list of files; restore it from where it was made")
    for name, expected in sorted(body["files"].items())[dist.get_rank() :: dist.get_world_size()]:
        verify_file(path, name, expected)
    return body


def on_first_rank(path: Path, function: Callable[[], None]) -> None:
    """`function()` on rank 0, its failures explained as those of writing `path`."""
    if dist.get_rank() == 0:
        with explained(path):
            function()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """A failed write of `path` as one sentence; an error of a collective passes."""
    try:
        yield
    except CheckpointException as error:  # a BaseException, which torch raises on all ranks where it failed on any
        causes = [failure[0] for failure in error.failures.values()]
        raise InputError(_cannot_write(path, causes), everywhere=True) from error
    except (OSError, RuntimeError) as error:
        if ranks.is_lost_contact(error):
            raise
        raise InputError(_cannot_write(path, [error])) from error


def random_state() -> dict[str, Any]:
    """The state of this rank's generators: Python's, numpy's, torch's and the device's, for `torch.save`."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.get_rng_state(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The opposite of `random_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(state["device"])


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _checksums(path: Path, directory: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file, each rank reading its share; files are synced to disk on the way."""

    def share() -> dict[str, dict[str, Any]]:
        names = sorted(str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file())
        mine = {}
        with explained(path):
            for name in names[dist.get_rank() :: dist.get_world_size()]:
                file = directory / name
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
                mine[name] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        return mine

    mine = ranks.together(share)
    parts: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return dict(sorted((name, entry) for part in parts for name, entry in part.items()))


def _cannot_write(path: Path, errors: list[BaseException]) -> str:
    reason = next(filter(None, map(_system_error, errors)), None) or _try_writing(path.parent)
    if reason is None:
        reason = (str(errors[0]).strip().splitlines() or [type(errors[0]).__name__])[-1]
    with contextlib.suppress(OSError):
        reason += f" ({shutil.disk_usage(path.parent).free / 1e9:.1f} GB free)"
    return (
        f"cannot write checkpoint {path}: {reason}; earlier ones are untouched: make room and start the same command "
        "again"
    )


def _system_error(error: BaseException | None) -> str | None:
    """The operating system's words, where an error or one behind it has them."""
    while error is not None:
        if isinstance(error, OSError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None


def _try_writing(directory: Path) -> str | None:
    """What the operating system says to another megabyte: torch's file writer does not pass on what it was told."""
    try:
        with tempfile.TemporaryFile(dir=directory) as handle:
            handle.write(bytes(1 << 20))
            os.fsync(handle.fileno())
    except OSError as error:
        return error.strerror
    return None
