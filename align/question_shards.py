"""Question shards: webdataset tars that are written once and read row by row through a memory map.

A shard is a plain tar. One sample is a block of about a thousand rows:

    000000.questions.json    a JSON array, one row a line: id, question, answer, molecules, proteins, atoms
    000000.checksums.json    SHA-256 of it

Beside `NAME.tar` lies `NAME.index.npy` with where each row is and its CRC-32, so that any row is read, and its damage
noticed, without decoding tar. The same questions give the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from align.questions import Question
from data_shards.shards import CHECKSUMS, index_path, tar_member
from job import manifest
from job.errors import InputError
from job.files import HashingWriter, atomic_file, sha256_file

STAGE = "align build"
SPLITS = ("train", "validation", "test")
BLOCK_ROWS = 1000
SHARD_BYTES = 256 << 20
QUESTIONS = "questions.json"

INDEX_DTYPE = np.dtype([("offset", "<i8"), ("length", "<i4"), ("crc32", "<u4")])
"""Per row: where its JSON starts in the tar (bytes), how many bytes it has, and their CRC-32."""


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What a manifest says of one shard."""

    name: str
    """File name within the split's directory."""
    questions: int
    bytes: int
    sha256: str
    index_sha256: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardInfo:
        """From a JSON object; raises `InputError` where a key is missing."""
        try:
            return cls(**{field.name: value[field.name] for field in dataclasses.fields(cls)})
        except (KeyError, TypeError) as error:
            raise InputError(f"a shard's entry in the manifest lacks {error}; build the questions again") from None


def write_split(
    directory: Path, rows: Iterable[str], block_rows: int = BLOCK_ROWS, shard_bytes: int = SHARD_BYTES
) -> list[ShardInfo]:
    """Write the shards of one split.

    Args:
        directory: made if absent; gets `questions-000000.tar`, its index, and so on.
        rows: one line of JSON each (`Question.to_json`, maybe with further keys).
        block_rows: rows of one sample.
        shard_bytes: a shard ends with the block that brings it to this size.

    Returns one entry for the manifest per shard: at least one, since a split may be empty.
    Raises `InputError` where the disk is full.
    """
    infos: list[ShardInfo] = []
    blocks = _batches(rows, block_rows)
    block = next(blocks, None)
    while block is not None or not infos:
        path = directory / f"questions-{len(infos):06d}.tar"
        index: list[np.ndarray] = []
        with atomic_file(path) as handle:
            writer = HashingWriter(handle)
            with tarfile.open(fileobj=writer, mode="w", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]
                while block is not None and writer.bytes_written < shard_bytes:
                    index.append(_write_block(tar, f"{len(index):06d}", block))
                    block = next(blocks, None)
            digest, size = writer.hexdigest(), writer.bytes_written
        table = np.concatenate(index) if index else np.empty(0, INDEX_DTYPE)
        with atomic_file(index_path(path)) as handle:
            writer = HashingWriter(handle)
            np.lib.format.write_array(writer, table, allow_pickle=False)  # type: ignore[arg-type]
            index_digest = writer.hexdigest()
        infos.append(ShardInfo(path.name, len(table), size, digest, index_digest))
    return infos


def _batches(rows: Iterable[str], size: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for row in rows:
        batch.append(row.encode())
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write_block(tar: tarfile.TarFile, key: str, rows: list[bytes]) -> np.ndarray:
    """Append one sample; returns its part of the index."""
    data = b"[\n" + b",\n".join(rows) + b"\n]\n"
    lengths = np.array([len(row) for row in rows])
    index = np.empty(len(rows), INDEX_DTYPE)
    index["length"] = lengths
    index["offset"] = tar.offset + tarfile.BLOCKSIZE + len(b"[\n") + np.cumsum(lengths + len(b",\n")) - lengths - 2
    index["crc32"] = [zlib.crc32(row) for row in rows]
    tar.addfile(tar_member(f"{key}.{QUESTIONS}", len(data)), io.BytesIO(data))
    checksums = (json.dumps({QUESTIONS: hashlib.sha256(data).hexdigest()}) + "\n").encode()
    tar.addfile(tar_member(f"{key}.{CHECKSUMS}", len(checksums)), io.BytesIO(checksums))
    return index


class _Shard:
    """One shard, memory-mapped."""

    def __init__(self, path: Path, info: ShardInfo) -> None:
        self.path, self.info = path, info
        for file in (path, index_path(path)):
            if not file.is_file():
                raise InputError(f"{file} is missing; restore it or build the questions again")
        if sha256_file(index_path(path)) != info.index_sha256:
            raise InputError(
                f"{index_path(path)} is not the index that the manifest describes (its checksum differs); restore it"
            )
        if (size := path.stat().st_size) != info.bytes:
            raise InputError(
                f"shard {path} has {size} bytes, but the manifest says {info.bytes}: it was cut short or replaced; "
                "restore it or build the questions again"
            )

    @functools.cached_property
    def index(self) -> np.ndarray:
        """`INDEX_DTYPE` [questions], memory-mapped."""
        return np.load(index_path(self.path), mmap_mode="r", allow_pickle=False)

    @functools.cached_property
    def _content(self) -> np.ndarray:
        return np.memmap(self.path, np.uint8, "r")

    def __getstate__(self) -> dict[str, Any]:
        """Maps are opened again by the process that unpickles."""
        return {"path": self.path, "info": self.info}

    def record(self, row: int) -> dict[str, Any]:
        """The row as it was written; raises `InputError` where its bytes are not those that were written."""
        offset, length, checksum = self.index[row].tolist()
        data = self._content[offset : offset + length].tobytes()
        if zlib.crc32(data) != checksum:
            raise InputError(
                f"shard {self.path} is damaged: row {row}, bytes {offset} to {offset + length}, has another checksum "
                "than its index; restore it or build the questions again"
            )
        return json.loads(data)


class Structures(NamedTuple):
    """What the encoders see of a data set, each once, in order of first appearance."""

    molecules: list[str]
    """SMILES."""
    proteins: list[str]
    """Amino-acid sequences."""


class QuestionSet(Sequence[Question]):
    """One split of a finished build: its questions by number, in build order.

    Args:
        directory: the output of `python -m align build`.
        split: "train", "validation" or "test".

    Attributes:
        manifest: the build's `manifest.json`.

    Raises `InputError` where the directory is no finished build, or a file is not the one that the manifest describes.
    (Rows carry their own checksums: reading a damaged one raises.)
    """

    def __init__(self, directory: str | Path, split: str = "train") -> None:
        self.directory, self.split = Path(directory), split
        self.manifest = manifest.read(self.directory, STAGE)
        splits = self.manifest.get("splits", {})
        if split not in splits:
            raise InputError(f"{directory} has no split '{split}'; it has {', '.join(splits) or 'none'}")
        self.infos = [ShardInfo.from_json(entry) for entry in splits[split]]
        self._shards = [_Shard(self.directory / split / info.name, info) for info in self.infos]
        self._starts = np.concatenate([[0], np.cumsum([info.questions for info in self.infos], dtype=np.int64)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def record(self, number: int) -> dict[str, Any]:
        """A row with all that the build wrote: the fields of `Question`, where it was read, its group."""
        if not 0 <= number < len(self):
            raise IndexError(f"question {number} of {len(self)}")
        shard = int(np.searchsorted(self._starts, number, "right")) - 1
        return self._shards[shard].record(number - int(self._starts[shard]))

    def __getitem__(self, number: Any) -> Any:
        """The question of that number (from 0), read through the memory map."""
        return Question.from_record(self.record(number))

    def fingerprint(self) -> dict[str, Any]:
        """What the questions and their order are, ready for JSON; compare with `data_shards.order.first_difference`."""
        return {
            "split": self.split,
            "shards": [{"name": info.name, "questions": info.questions, "sha256": info.sha256} for info in self.infos],
        }

    def structures(self) -> Structures:
        """All SMILES and sequences of the split, each once. Reads every row."""
        molecules: dict[str, None] = {}
        proteins: dict[str, None] = {}
        for question in self:
            molecules.update(dict.fromkeys(question.molecules))
            proteins.update(dict.fromkeys(question.proteins))
        return Structures(list(molecules), list(proteins))

    def verify(self) -> None:
        """Read every shard; raises `InputError` that names the first whose checksum is not the manifest's."""
        for shard in self._shards:
            if sha256_file(shard.path) != shard.info.sha256:
                for row in range(shard.info.questions):
                    shard.record(row)  # names the damaged row, where it is a row
                raise InputError(f"shard {shard.path} has another checksum than the manifest; restore it")


def find(questions: QuestionSet, identifier: str) -> int:
    """The number of the question with this id; raises `InputError` where the split has none."""
    for number in range(len(questions)):
        if questions.record(number)["id"] == identifier:
            return number
    raise InputError(
        f"the split '{questions.split}' of {questions.directory} has no question with the id '{identifier}'"
    )
