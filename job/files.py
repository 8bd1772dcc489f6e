"""Files that are either whole or absent: atomic writes, checksums, and what a full disk looks like."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import IO, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from job.errors import InputError

Kept = TypeVar("Kept")


def fsync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` survive a power cut (POSIX: the directory itself must be synced)."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success it is fsynced and renamed to `path`, on failure removed.

    Readers therefore see the old content or the new, never a part. Raises `InputError` where the disk is full or the
    directory cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # absent, or its directory is none
            temporary.unlink()


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a hidden directory beside `path`; on success it is synced and renamed to `path`, on failure removed.

    What an earlier, killed writer left there is cleared. Raises `InputError` where `path` exists, where another
    process is writing it now, or where the disk is full.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path} exists already; remove it or choose another directory")
    temporary = path.with_name(f".{path.name}.writing")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another directory") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{path} is being written by another process; wait for it") from None
        try:
            for leftover in temporary.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            yield temporary
            _sync_tree(temporary)
            temporary.rename(path)
            fsync_directory(path.parent)
        except OSError as error:
            raise _cannot_write(path, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror or error}; free space or choose another directory")


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            share(Path(folder) / name)
            with open(Path(folder) / name, "rb") as handle:
                os.fsync(handle.fileno())
        fsync_directory(Path(folder))


def share(file: Path) -> None:
    """Let those read a file who may read its directory: safetensors makes files for their owner alone."""
    file.chmod(file.parent.stat().st_mode & 0o666)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_file(path, "w") as handle:
        handle.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented, key-ordered JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises `InputError` naming the file where it is absent or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); restore it from where it was made") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def as_dataclass(kind: type[Kept], values: Any) -> Kept:
    """A dataclass of what a JSON object holds.

    Its fields are strings, numbers, `Literal`, None, lists of these, or unions. Raises `TypeError` where one is
    missing, unknown or of another type.
    """
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} is not an object")
    kept = kind(**values)
    for name, hint in get_type_hints(kind).items():
        if not _fits(value := getattr(kept, name), hint):
            raise TypeError(f"{name} is {value!r}")
    return kept


def _fits(value: Any, hint: Any) -> bool:
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in choices
    if origin in (Union, UnionType):
        return any(_fits(value, choice) for choice in choices)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, choices[0]) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class HashingWriter:
    """A binary sink that hashes what passes through, so that checksums cost no second read."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._digest = hashlib.sha256()
        self.bytes_written = 0

    def write(self, data: Any) -> int:
        """Write a bytes-like object; returns its length in bytes."""
        self._digest.update(data)
        written = self._handle.write(data)
        self.bytes_written += written
        return written

    def flush(self) -> None:
        """Flush the underlying file."""
        self._handle.flush()

    def tell(self) -> int:
        """Bytes written so far (the sink is not seekable)."""
        return self.bytes_written

    def hexdigest(self) -> str:
        """Hex SHA-256 of everything written so far."""
        return self._digest.hexdigest()


def cut_torn_line(path: Path) -> None:
    """Cut off a last line that a kill left unfinished, so that the next one does not continue it."""
    if not path.exists():
        return
    with open(path, "r+b") as handle:
        end = handle.seek(0, os.SEEK_END)
        while end and handle.seek(end - 1) is not None and handle.read(1) != b"\n":
            end -= 1
        handle.truncate(end)
