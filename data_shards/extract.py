"""First pass of a build: one input file (or a batch of small ones) -> cleaned documents and their keys.

Documents go into a zstd file of independent frames of a few megabytes, so that the second pass starts reading anywhere.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from data_shards.articles import Deletion, Reject
from data_shards.config import Selection
from data_shards.duplicates import KEY_DTYPE, article_row, deletion_row
from data_shards.readers import formats
from data_shards.readers.s2orc_metadata import S2orcMetadata
from data_shards.readers.streams import DamagedFile
from data_shards.select import drop_reason
from job.errors import InputError
from job.files import atomic_file

_FRAME_BYTES = 4 << 20
_ROWS_A_CHUNK = 8192


def extract(
    outputs: tuple[Path, Path, Path],
    source_name: str,
    kind: str,
    priority: int,
    paths: list[Path],
    selection: Selection,
    metadata_index: Path | None,
) -> dict[str, Any]:
    """Read, clean and select the articles of `paths`.

    Args:
        outputs: (documents `.zst`, keys `.npy`, rejects `.jsonl`) to write.
        source_name: of the config.
        kind: format of the files.
        priority: rank of the source where an article is in several (0 wins).
        paths: the files, in order.
        selection: what to drop at once.
        metadata_index: S2ORC's, or None.

    Returns:
        `read` (records, malformed ones included), `rejected` (reason -> count), `frames` ([first document, byte offset]
        of each), `documents` (stored) and `damage` (a sentence for each file that breaks off).
    """
    documents_path, keys_path, rejects_path = outputs
    metadata = S2orcMetadata(metadata_index) if metadata_index else None
    rejected: collections.Counter[str] = collections.Counter()
    damage: list[str] = []
    keys = _KeyTable()
    articles = 0
    with (
        atomic_file(rejects_path, "w") as rejects_file,
        atomic_file(documents_path) as documents_file,  # nearly all writes are its own: so a full disk names it
        _FrameWriter(documents_file) as documents,
    ):

        def reject(found: Reject) -> None:
            rejected[found.reason] += 1
            line = {"source": source_name, **dataclasses.asdict(found)}
            rejects_file.write(json.dumps(line, ensure_ascii=False) + "\n")

        for path in paths:
            try:
                for record in formats.read(kind, path, reject, metadata):
                    if isinstance(record, Deletion):
                        keys.add(deletion_row(record))
                        continue
                    articles += 1
                    text = record.text()
                    reason = drop_reason(record, text, selection)
                    keys.add(article_row(record, text, source_name, priority, reason))
                    if reason == "no_text" and kind != "pubmed":  # in PubMed half of the old records are only titles
                        reject_empty = Reject(record.source_file, record.source_position, "empty_article")
                        line = {"source": source_name, **dataclasses.asdict(reject_empty)}
                        rejects_file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    elif reason is None:
                        documents.add(record.record(), text)
            except DamagedFile as error:
                damage.append(str(error))
    with atomic_file(keys_path) as keys_file:
        np.lib.format.write_array(keys_file, keys.table(), allow_pickle=False)
    return {
        "read": articles + rejected.total(),
        "rejected": dict(sorted(rejected.items())),
        "documents": documents.count,
        "frames": documents.frames,
        "damage": damage,
    }


class _KeyTable:
    """Rows of `KEY_DTYPE`, packed in chunks (a Python tuple takes ten times the memory)."""

    def __init__(self) -> None:
        self._chunks: list[np.ndarray] = []
        self._rows: list[tuple[int, ...]] = []

    def add(self, row: tuple[int, ...]) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_A_CHUNK:
            self._pack()

    def table(self) -> np.ndarray:
        self._pack()
        return np.concatenate(self._chunks)

    def _pack(self) -> None:
        self._chunks.append(np.array(self._rows, KEY_DTYPE))
        self._rows.clear()


class _FrameWriter:
    """Documents as JSON lines in independent zstd frames."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True)
        self._buffer = bytearray()
        self.frames: list[list[int]] = []
        self.count = 0

    def __enter__(self) -> _FrameWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()

    def add(self, record: dict[str, Any], text: str) -> None:
        if not self._buffer:
            self.frames.append([self.count, self._handle.tell()])
        line = json.dumps([record, text], ensure_ascii=False, separators=(",", ":"))
        self._buffer += line.encode() + b"\n"
        self.count += 1
        if len(self._buffer) >= _FRAME_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            self._handle.write(self._compressor.compress(bytes(self._buffer)))
            self._buffer.clear()


def read_documents(path: Path, frames: list[list[int]], wanted: np.ndarray) -> Iterator[tuple[dict[str, Any], str]]:
    """The (record, text) of chosen documents of a file that `extract` wrote, in order.

    Args:
        path: the documents file.
        frames: [first document, byte offset] of each frame.
        wanted: the documents' numbers, ascending, int64.

    Raises `InputError` where the file is damaged.
    """
    firsts = np.array([first for first, _ in frames], np.int64)
    frame_of = np.searchsorted(firsts, wanted, "right") - 1
    try:
        with open(path, "rb") as handle:
            for frame in np.unique(frame_of):
                first, offset = frames[frame]
                handle.seek(offset)
                end = frames[frame + 1][1] if frame + 1 < len(frames) else None
                data = handle.read(end - offset) if end is not None else handle.read()
                content = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()
                lines = content.split(b"\n")
                for number in wanted[frame_of == frame] - first:
                    record, text = json.loads(lines[number])
                    yield record, text
    except (OSError, zstandard.ZstdError, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it and build again: only its part is redone") from None
