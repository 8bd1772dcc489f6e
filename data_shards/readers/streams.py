"""Compressed input as bytes: one clear sentence where a file is cut short or is not what its name says."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from data_shards import advance
from job.errors import InputError

_BLOCK_BYTES = 1 << 20
_COMPRESSED_BYTES = 1 << 17


class DamagedFile(InputError):
    """A file that ends or breaks off in the middle; everything before that point has been yielded already."""


def read_blocks(path: Path, block_bytes: int = _BLOCK_BYTES) -> Iterator[bytes]:
    """The decompressed content of a plain, `.gz` or `.zst` file in blocks (of `block_bytes` where it is plain).

    Raises `DamagedFile`, with the offset that could still be read, where the compressed stream is cut short or does
    not decode; `InputError` where the file cannot be opened.
    """
    offset = 0
    try:
        with open(path, "rb") as raw:
            position = 0
            for block in _decompress(raw, path.suffix, block_bytes):
                offset += len(block)
                advance.report(raw.tell() - position)
                position = raw.tell()
                yield block
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
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
        # Not gzip.GzipFile: where the data breaks off, that throws away what it has already decompressed.
        yield from _decompress_frames(raw, lambda: zlib.decompressobj(wbits=31), padding=b"\0")
    elif suffix == ".zst":
        # Not zstandard's stream reader: it takes a file cut inside a frame for a complete one.
        yield from _decompress_frames(raw, lambda: zstandard.ZstdDecompressor().decompressobj(), padding=b"")
    else:
        while block := raw.read(block_bytes):
            yield block


def _decompress_frames(raw: IO[bytes], start_frame: Callable[[], Any], padding: bytes) -> Iterator[bytes]:
    """The content of all frames (gzip: members) of a file; `padding` may follow each. Checksums are verified."""
    data = raw.read(_COMPRESSED_BYTES)
    while data:
        frame = start_frame()
        while not frame.eof:
            if not data:
                raise EOFError("its end is missing")
            if block := frame.decompress(data):
                yield block
            data = frame.unused_data if frame.eof else raw.read(_COMPRESSED_BYTES)
        data = (data or raw.read(_COMPRESSED_BYTES)).lstrip(padding) if padding else data or raw.read(_COMPRESSED_BYTES)
