"""Compressed input as bytes: one clear sentence where a file is cut short or is not what its name says."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from job.errors import InputError

_BLOCK_BYTES = 1 << 20


class DamagedFile(InputError):
    """A file that ends or breaks off in the middle; everything before that point has been yielded already."""


def read_blocks(path: Path, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """The decompressed content of a plain, `.gz` or `.zst` file in blocks of about `block_bytes`.

    Raises `DamagedFile`, with the offset that could still be read, where the compressed stream is cut short or does
    not decode; `InputError` where the file cannot be opened.
    """
    offset = 0
    try:
        with open(path, "rb") as raw:
            blocks = _decompress(raw, path.suffix, block_bytes)
            for block in blocks:
                offset += len(block)
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise DamagedFile(
            f"{path} is damaged: its compressed data breaks off after {offset:,} decompressed bytes ({error}); "
            "download it again"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file (without their line ends) split at line feeds only: real abstracts contain U+2028.

    Raises as `read_blocks` does; where the stream breaks off, the unfinished last line is not yielded.
    """
    rest = b""
    for block in read_blocks(path):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        yield from lines
    if rest:
        yield rest


def read_whole(path: Path) -> bytes:
    """The decompressed content of a small file; raises as `read_blocks` does."""
    return b"".join(read_blocks(path))


def _decompress(raw: IO[bytes], suffix: str, block_bytes: int) -> Iterator[bytes]:
    if suffix == ".gz":
        with gzip.GzipFile(fileobj=raw) as handle:
            while block := handle.read(block_bytes):
                yield block
    elif suffix == ".zst":
        yield from _decompress_zstandard(raw, block_bytes)
    else:
        while block := raw.read(block_bytes):
            yield block


def _decompress_zstandard(raw: IO[bytes], block_bytes: int) -> Iterator[bytes]:
    """Frame by frame: the library's own stream reader takes a file cut inside a frame for a complete one."""
    data = raw.read(block_bytes)
    while data:
        frame = zstandard.ZstdDecompressor().decompressobj()
        while not frame.eof:
            if not data:
                raise EOFError("the last frame is incomplete")
            if block := frame.decompress(data):
                yield block
            data = frame.unused_data if frame.eof else raw.read(block_bytes)
        data = data or raw.read(block_bytes)
