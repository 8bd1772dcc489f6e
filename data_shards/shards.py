"""Token shards: webdataset tars that are written once, checked by checksum, and read by memory map.

A shard is a plain tar. One sample is a block of consecutive documents, about a million tokens:

    000000.tokens.npy        uint16 or uint32, the documents' ids one after another, BOS and EOS included
    000000.lengths.npy       int32, one per document
    000000.documents.jsonl   one record per document: id, licence, source file and position, ...
    000000.loss_mask.npy     only in instruction data: uint8, one per token, 1 where the loss counts
    000000.checksums.json    SHA-256 of each of these, so that damage can be named and not only noticed

Beside `NAME.tar` lies `NAME.index.npy` with the byte offset of each document's tokens and their number, so that
training reads any document, or any part of one, without ever decoding tar. The same documents give the same bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from job import manifest
from job.errors import InputError
from job.files import HashingWriter, atomic_file, sha256_file

STAGE = "data_shards build"
BLOCK_TOKENS = 1_000_000
TOKENS, LENGTHS, DOCUMENTS, LOSS_MASK = "tokens.npy", "lengths.npy", "documents.jsonl", "loss_mask.npy"
CHECKSUMS = "checksums.json"

INDEX_DTYPE = np.dtype([("offset", "<i8"), ("length", "<i4")])
"""Per document: where its tokens start in the tar (bytes) and how many there are."""
MASKED_INDEX_DTYPE = np.dtype([("offset", "<i8"), ("length", "<i4"), ("mask_offset", "<i8")])
"""The same in instruction data, with where its loss mask starts (bytes; one byte per token)."""


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What a manifest says of one shard."""

    name: str
    """File name within the split's directory."""
    documents: int
    tokens: int
    blocks: int
    bytes: int
    sha256: str
    index_sha256: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardInfo:
        """From a JSON object; raises `InputError` where a key is missing."""
        try:
            return cls(**{field.name: value[field.name] for field in dataclasses.fields(cls)})
        except (KeyError, TypeError) as error:
            raise InputError(f"a shard's entry in the manifest lacks {error}; build the shards again") from None


@dataclasses.dataclass(frozen=True)
class TokenizerInfo:
    """What a manifest says of the tokenizer that made the ids."""

    path: str
    sha256: str
    vocab_size: int
    bos_id: int | None
    eos_id: int

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TokenizerInfo:
        """From a JSON object; raises `InputError` where a key is missing."""
        try:
            return cls(**{field.name: value[field.name] for field in dataclasses.fields(cls)})
        except (KeyError, TypeError) as error:
            raise InputError(f"the manifest's tokenizer entry lacks {error}; build the shards again") from None


@dataclasses.dataclass(frozen=True)
class ShardManifest:
    """The part of a build's `manifest.json` that readers need. `to_json` goes into `manifest.write(content=...)`."""

    tokenizer: TokenizerInfo
    dtype: str
    """"uint16" or "uint32"."""
    splits: dict[str, list[ShardInfo]]
    """"train" and "validation": the shards of the directory of that name, in order."""

    def to_json(self) -> dict[str, Any]:
        """As the manifest keys `tokenizer`, `dtype` and `splits`."""
        return {
            "tokenizer": self.tokenizer.to_json(),
            "dtype": self.dtype,
            "splits": {split: [shard.to_json() for shard in shards] for split, shards in self.splits.items()},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ShardManifest:
        """From a manifest; other keys are left alone. Raises `InputError` where a key is missing."""
        try:
            tokenizer, dtype, splits = value["tokenizer"], value["dtype"], value["splits"]
        except KeyError as error:
            raise InputError(f"the manifest lacks {error}; build the shards again") from None
        if dtype not in ("uint16", "uint32"):
            raise InputError(f"the manifest has dtype '{dtype}'; token shards are uint16 or uint32")
        shards = {split: [ShardInfo.from_json(entry) for entry in entries] for split, entries in splits.items()}
        return cls(TokenizerInfo.from_json(tokenizer), dtype, shards)

    @classmethod
    def read(cls, directory: Path) -> ShardManifest:
        """The manifest of a finished build; raises `InputError` where the directory is none."""
        return cls.from_json(manifest.read(directory, STAGE))


def index_path(shard: Path) -> Path:
    """The index that belongs to a shard: `train-00000.tar` -> `train-00000.index.npy`."""
    return shard.with_suffix(".index.npy")


def tar_member(name: str, size: int) -> tarfile.TarInfo:
    """A member's header; times, owners and modes are constant: the same content gives the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


def source_of(shard: str) -> str:
    """The source that a shard's name carries: `pubmed-000003.tar` -> `pubmed`."""
    return shard.rpartition("-")[0]


class ShardWriter:
    """Writes one shard, document by document; the tar and its index appear under their names only when whole.

        with ShardWriter(path, np.uint16) as shard:
            for ids, record in documents:
                shard.add(ids, record)
        info = shard.info

    Args:
        path: the tar to write, `....tar`; its directory is made.
        dtype: of the ids, uint16 or uint32.
        block_tokens: a block ends with the document that brings it to this many tokens. A document is never cut.

    Raises `InputError` where the disk is full or the directory cannot be written.
    """

    def __init__(self, path: Path, dtype: np.dtype | type[np.integer], block_tokens: int = BLOCK_TOKENS) -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.block_tokens = block_tokens
        self._files = contextlib.ExitStack()
        self._index: list[np.ndarray] = []
        self._documents = self._tokens = self._blocks = 0
        self._info: ShardInfo | None = None
        self._masked = False
        self._clear_block()

    def __enter__(self) -> ShardWriter:
        self._writer = HashingWriter(self._files.enter_context(atomic_file(self.path)))
        self._tar = tarfile.open(fileobj=self._writer, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[call-overload]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is None and self._info is None:
            self.close()
        return self._files.__exit__(kind, error, trace)

    @property
    def info(self) -> ShardInfo:
        """What to put into the manifest; only after `close` or the end of the `with` block."""
        if self._info is None:
            raise RuntimeError("the shard is not closed yet")
        return self._info

    def add(self, tokens: np.ndarray, record: dict[str, Any], loss_mask: np.ndarray | None = None) -> None:
        """Append a document.

        Args:
            tokens: 1-D ids of the shard's dtype, BOS and EOS included.
            record: JSON-ready provenance; must have an "id".
            loss_mask: uint8 or bool, one per token; for all documents of a shard or for none.
        """
        if tokens.ndim != 1 or tokens.dtype != self.dtype:
            raise TypeError(f"tokens must be a 1-D array of {self.dtype}, not {tokens.ndim}-D of {tokens.dtype}")
        if self._documents + len(self._block) and (loss_mask is not None) != self._masked:
            raise ValueError("either all documents of a shard have a loss mask or none")
        self._masked = loss_mask is not None
        if loss_mask is not None:
            if loss_mask.shape != tokens.shape:
                raise ValueError(f"loss mask of shape {loss_mask.shape} for tokens of shape {tokens.shape}")
            self._block_masks.append(loss_mask.astype(np.uint8))
        self._block.append(tokens)
        self._block_records.append(json.dumps(record, ensure_ascii=False, separators=(",", ":")))
        self._block_length += len(tokens)
        if self._block_length >= self.block_tokens:
            self.end_block()

    def end_block(self) -> None:
        """Start a new block with the next document, for instance where the source changes."""
        if not self._block:
            return
        key = f"{self._blocks:06d}"
        tokens = np.concatenate(self._block)
        lengths = np.array([len(document) for document in self._block], "<i4")
        index = np.empty(len(lengths), MASKED_INDEX_DTYPE if self._masked else INDEX_DTYPE)
        before = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]])
        index["length"] = lengths
        index["offset"] = self._write_array(f"{key}.{TOKENS}", tokens) + before * self.dtype.itemsize
        self._write_array(f"{key}.{LENGTHS}", lengths)
        self._write_member(f"{key}.{DOCUMENTS}", ("\n".join(self._block_records) + "\n").encode())
        if self._masked:
            index["mask_offset"] = self._write_array(f"{key}.{LOSS_MASK}", np.concatenate(self._block_masks)) + before
        self._write_member(f"{key}.{CHECKSUMS}", (json.dumps(self._checksums) + "\n").encode())
        self._index.append(index)
        self._documents += len(lengths)
        self._tokens += len(tokens)
        self._blocks += 1
        self._clear_block()

    def close(self) -> ShardInfo:
        """Write what is pending and give the files their names; returns the manifest entry."""
        self.end_block()
        self._tar.close()
        digest, size = self._writer.hexdigest(), self._writer.bytes_written
        self._files.close()
        index = np.concatenate(self._index) if self._index else np.empty(0, INDEX_DTYPE)
        with atomic_file(index_path(self.path)) as handle:
            writer = HashingWriter(handle)
            np.lib.format.write_array(writer, index, allow_pickle=False)  # type: ignore[arg-type]
            index_digest = writer.hexdigest()
        self._info = ShardInfo(self.path.name, self._documents, self._tokens, self._blocks, size, digest, index_digest)
        return self._info

    def _clear_block(self) -> None:
        self._block: list[np.ndarray] = []
        self._block_records: list[str] = []
        self._block_masks: list[np.ndarray] = []
        self._block_length = 0
        self._checksums: dict[str, str] = {}

    def _write_member(self, name: str, data: bytes) -> int:
        """Append a file to the tar; returns the byte offset of its content."""
        start = self._tar.offset + tarfile.BLOCKSIZE
        self._tar.addfile(tar_member(name, len(data)), io.BytesIO(data))
        self._checksums[name.partition(".")[2]] = hashlib.sha256(data).hexdigest()
        return start

    def _write_array(self, name: str, values: np.ndarray) -> int:
        """Append a .npy file; returns the byte offset of its first value."""
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, values, allow_pickle=False)
        data = buffer.getvalue()
        return self._write_member(name, data) + len(data) - values.nbytes


class Shard:
    """One shard, memory-mapped: any document's ids without decoding tar.

    Args:
        path: the tar.
        info: its entry in the manifest.
        dtype: of the ids.

    Raises `InputError` where a file is missing or is not the one the manifest describes. The index is checked by
    checksum; the tar by its size and first header (its checksum is `verify`'s work: it takes a whole read).
    """

    def __init__(self, path: Path, info: ShardInfo, dtype: np.dtype) -> None:
        self.path, self.info, self.dtype = Path(path), info, np.dtype(dtype)
        self._check_index()
        self._check_tar()

    def _check_index(self) -> None:
        path = index_path(self.path)
        if not path.is_file():
            raise InputError(f"{path} is missing; build the shards again")
        if sha256_file(path) != self.info.index_sha256:
            raise InputError(f"{path} is not the index that the manifest describes (its checksum differs); restore it")
        if self.index.dtype not in (INDEX_DTYPE, MASKED_INDEX_DTYPE) or self.index.shape != (self.info.documents,):
            raise InputError(f"{path} does not describe {self.info.documents} documents; restore or rebuild it")

    def _check_tar(self) -> None:
        if not self.path.is_file():
            raise InputError(f"shard {self.path} is missing; restore it or build the shards again")
        size = self.path.stat().st_size
        if size != self.info.bytes:
            raise InputError(
                f"shard {self.path} has {size} bytes, but the manifest says {self.info.bytes}: it was cut short or "
                "replaced; restore it or build the shards again"
            )
        if self.info.blocks:
            with open(self.path, "rb") as handle:
                head = handle.read(tarfile.BLOCKSIZE)
            try:
                tarfile.TarInfo.frombuf(head, "utf-8", "strict")
            except tarfile.HeaderError as error:
                raise InputError(f"shard {self.path} is damaged at byte 0 ({error}); restore it") from None

    @functools.cached_property
    def index(self) -> np.ndarray:
        """Offset and length of every document: memory-mapped, `INDEX_DTYPE` or `MASKED_INDEX_DTYPE` [documents]."""
        return np.load(index_path(self.path), mmap_mode="r", allow_pickle=False)

    @functools.cached_property
    def values(self) -> np.ndarray:
        """The whole file as a memory-mapped 1-D array of ids; document i starts at `index["offset"][i] / itemsize`.

        Every offset is a multiple of it, since tar aligns members to 512 bytes and .npy headers to 64.
        """
        count = self.info.bytes // self.dtype.itemsize
        # A plain array view: indexing np.memmap itself costs several times as much.
        return np.asarray(np.memmap(self.path, self.dtype, "r", shape=(count,)))

    @property
    def masked(self) -> bool:
        """Whether its documents have loss masks."""
        return "mask_offset" in (self.index.dtype.names or ())

    @property
    def raw(self) -> np.ndarray:
        """The whole file as uint8, the same map as `values`; a document's mask starts at `index["mask_offset"]`."""
        return self.values.view(np.uint8)

    def __getstate__(self) -> dict[str, Any]:
        """Maps are opened again by the process that unpickles."""
        return {key: value for key, value in self.__dict__.items() if key not in ("values", "index")}

    def __len__(self) -> int:
        return self.info.documents

    def __getitem__(self, document: int) -> np.ndarray:
        """The ids of a document of this shard: a read-only view, shape [length]."""
        offset, length = self.index["offset"][document], self.index["length"][document]
        start = offset // self.dtype.itemsize
        return self.values[start : start + length]

    def loss_mask(self, document: int) -> np.ndarray | None:
        """The document's loss mask, uint8 of shape [length], or None where the shard has none."""
        if not self.masked:
            return None
        offset, length = int(self.index["mask_offset"][document]), int(self.index["length"][document])
        return self.raw[offset : offset + length]


class ShardSet:
    """One split of a finished build: its documents in build order, by number.

    Args:
        directory: the build's output.
        split: "train" or "validation".
        source: only the shards of this source of the build; None for all.

    Attributes:
        tokens: number of ids in the split.
        starts: int64 [shards + 1], the number of the first document of each shard.

    Raises `InputError` where the directory is no finished build or a shard does not match the manifest.
    """

    def __init__(self, directory: Path, split: str = "train", source: str | None = None) -> None:
        self.directory, self.split = Path(directory), split
        self.manifest = ShardManifest.read(self.directory)
        if split not in self.manifest.splits:
            raise InputError(f"{directory} has no split '{split}'; it has {', '.join(self.manifest.splits)}")
        self.dtype = np.dtype(self.manifest.dtype)
        self.infos = [info for info in self.manifest.splits[split] if source is None or source_of(info.name) == source]
        self.shards = [Shard(self.directory / split / info.name, info, self.dtype) for info in self.infos]
        self.starts = np.concatenate([[0], np.cumsum([len(shard) for shard in self.shards], dtype=np.int64)])
        self.tokens = sum(info.tokens for info in self.infos)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, document: int) -> tuple[Shard, int]:
        """The shard of a document and its number there; raises `IndexError` beyond the last."""
        if not 0 <= document < len(self):
            raise IndexError(f"document {document} of {len(self)}")
        shard = int(np.searchsorted(self.starts, document, "right")) - 1
        return self.shards[shard], document - int(self.starts[shard])

    def __getitem__(self, document: int) -> np.ndarray:
        """The ids of a document: a read-only view, shape [length]."""
        shard, number = self.locate(document)
        return shard[number]

    def lengths(self) -> np.ndarray:
        """Tokens of every document, int32 [documents] (4 bytes per document in memory)."""
        parts = [np.ascontiguousarray(shard.index["length"]) for shard in self.shards]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every document's number and record, in order, read from the tars."""
        number = 0
        for shard in self.shards:
            for block in blocks(shard.path):
                for line in block.read(DOCUMENTS).decode().split("\n")[:-1]:
                    yield number, json.loads(line)
                    number += 1


@dataclasses.dataclass
class Block:
    """One sample of a shard: where its members lie."""

    path: Path
    key: str
    members: dict[str, tarfile.TarInfo]

    def read(self, member: str) -> bytes:
        """The content of a member (`TOKENS`, `LENGTHS`, ...)."""
        with open(self.path, "rb") as handle:
            handle.seek(self.members[member].offset_data)
            return handle.read(self.members[member].size)

    def array(self, member: str) -> np.ndarray:
        """The content of a .npy member."""
        return np.load(io.BytesIO(self.read(member)), allow_pickle=False)


def blocks(path: Path) -> Iterator[Block]:
    """The blocks of a shard in order, found by walking the tar's headers (their content is not read).

    Raises `InputError` with the byte where a header is damaged or the file ends too early. (The standard library's
    reader takes a damaged header for the end of the archive.)
    """
    block: Block | None = None
    size, offset = path.stat().st_size, 0
    with open(path, "rb") as handle:
        while (header := handle.read(tarfile.BLOCKSIZE)).strip(b"\0"):
            try:
                member = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            except (tarfile.HeaderError, UnicodeDecodeError) as error:
                raise InputError(f"shard {path} is damaged at byte {offset}: no tar header there ({error})") from None
            member.offset, member.offset_data = offset, offset + tarfile.BLOCKSIZE
            offset = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if offset > size:
                raise InputError(f"shard {path} ends at byte {size}, inside its member {member.name}")
            key, _, name = member.name.partition(".")
            if block is not None and key != block.key:
                yield block
                block = None
            block = block or Block(path, key, {})
            block.members[name] = member
            handle.seek(offset)
    if block is not None:
        yield block
