"""`python -m data_shards verify DIR`: prove every checksum, offset and count of a build, or name what is damaged."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import mmap
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data_shards.shards import (
    CHECKSUMS,
    DOCUMENTS,
    INDEX_DTYPE,
    LENGTHS,
    LOSS_MASK,
    MASKED_INDEX_DTYPE,
    TOKENS,
    Block,
    ShardInfo,
    ShardManifest,
    blocks,
    index_path,
    tar_member,
)
from job import manifest
from job.errors import InputError
from job.progress import ByteProgress

_READ_BYTES = 8 << 20
_MEMBERS = {TOKENS, LENGTHS, DOCUMENTS, LOSS_MASK, CHECKSUMS}


@dataclasses.dataclass(frozen=True)
class Damage:
    """One thing that is not as it was built."""

    file: Path
    what: str
    block: str | None = None
    member: str | None = None
    byte: int | None = None
    """First byte concerned, counted from the start of the file."""

    def __str__(self) -> str:
        """One line: file, block, member, byte, what."""
        place = f"{self.file}"
        if self.block is not None:
            place += f", block {self.block}"
        if self.member is not None:
            place += f", {self.member}"
        if self.byte is not None:
            place += f", byte {self.byte}"
        return f"{place}: {self.what}"


def verify(directory: Path, advance: Callable[[int], None] = lambda _: None) -> Iterator[tuple[Path, list[Damage]]]:
    """Check a finished build, shard after shard.

    Args:
        directory: the build's output.
        advance: told how many bytes were read since its last call.

    Yields each shard's path with what is damaged in it (nothing, usually), and last the directory itself with files
    that should not be there. Raises `InputError` where there is no manifest to check against.
    """
    described = ShardManifest.read(directory)
    expected = {directory / manifest.NAME}
    for split, infos in described.splits.items():
        for info in infos:
            path = directory / split / info.name
            expected |= {path, index_path(path)}
            yield path, list(_shard_damage(path, info, described, advance))
    strays = [path for split in described.splits for path in sorted((directory / split).glob("*.tar"))]
    yield directory, [Damage(path, "is not in the manifest") for path in strays if path not in expected]


def _shard_damage(
    path: Path, info: ShardInfo, described: ShardManifest, advance: Callable[[int], None]
) -> Iterator[Damage]:
    """Everything wrong with one shard and its index."""
    index, index_damage = _read_index(index_path(path), info)
    yield from index_damage
    if not path.is_file():
        yield Damage(path, "is missing")
        return
    size = path.stat().st_size
    if size != info.bytes:
        yield Damage(path, f"has {size} bytes instead of {info.bytes}", byte=min(size, info.bytes))
    if size == 0:
        return
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        digest = hashlib.sha256()
        for start in range(0, size, _READ_BYTES):
            piece = content[start : start + _READ_BYTES]
            digest.update(piece)
            advance(len(piece))
        found = list(_content_damage(path, content, info, described, index))
    yield from found
    if digest.hexdigest() != info.sha256 and size == info.bytes and not found:
        yield Damage(path, "has another checksum than the manifest, though its blocks agree with their own checksums")


def _read_index(file: Path, info: ShardInfo) -> tuple[np.ndarray | None, list[Damage]]:
    """The index of a shard (None where it cannot be read) and what is wrong with the file."""
    damage = []
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None, [Damage(file, "is missing")]
    if _sha256(data) != info.index_sha256:
        damage.append(Damage(file, "has another checksum than the manifest"))
    try:
        index = _array(data)
    except (ValueError, EOFError, OSError) as error:
        return None, [*damage, Damage(file, f"cannot be read ({error})")]
    if index.dtype not in (INDEX_DTYPE, MASKED_INDEX_DTYPE) or index.ndim != 1:
        return None, [*damage, Damage(file, f"is no index: it has dtype {index.dtype}")]
    return index, damage


def _content_damage(
    path: Path, content: mmap.mmap, info: ShardInfo, described: ShardManifest, index: np.ndarray | None
) -> Iterator[Damage]:
    """What is wrong inside the tar, and between it, its index and the manifest."""
    documents = tokens = count = end = 0
    try:
        for block in blocks(path):
            yield from _frame_damage(content, block, count)
            count += 1
            members = list(block.members.values())
            begin, end = members[0].offset, members[-1].offset_data + _padded(members[-1].size)
            stored = None if index is None else index[(index["offset"] >= begin) & (index["offset"] < end)]
            derived, damage = _read_block(content, block, described)
            yield from damage
            if derived is not None and stored is not None:
                yield from _index_damage(block, stored, derived, documents)
            known = derived if derived is not None else stored
            if known is not None:
                documents += len(known)
                tokens += int(known["length"].sum(dtype=np.int64))
    except InputError as error:
        yield Damage(path, f"{error}; what follows could not be checked")
        return
    if any(content[start : start + _READ_BYTES].strip(b"\0") for start in range(end, len(content), _READ_BYTES)):
        yield Damage(path, "has something other than zeros after its last block", byte=end)
    for name, found, wanted in (
        ("blocks", count, info.blocks),
        ("documents", documents, info.documents),
        ("tokens", tokens, info.tokens),
    ):
        if found != wanted:
            yield Damage(path, f"holds {found} {name}, but the manifest says {wanted}")
    if index is not None and len(index) != documents:
        yield Damage(index_path(path), f"describes {len(index)} documents, but the tar holds {documents}")


def _frame_damage(content: mmap.mmap, block: Block, number: int) -> Iterator[Damage]:
    """Tar headers and padding: every byte of them is known beforehand."""
    if block.key != f"{number:06d}":
        yield Damage(block.path, f"stands where block {number:06d} should", block.key)
    for name, member in block.members.items():
        header = content[member.offset : member.offset_data]
        wanted = tar_member(member.name, member.size).tobuf(tarfile.USTAR_FORMAT)
        if header != wanted:
            byte = member.offset + next(place for place in range(len(wanted)) if header[place] != wanted[place])
            yield Damage(block.path, "the tar header is damaged", block.key, name, byte)
        padding = content[member.offset_data + member.size : member.offset_data + _padded(member.size)]
        if padding.strip(b"\0"):
            yield Damage(block.path, "the padding is not zero", block.key, name, member.offset_data + member.size)
        if name not in _MEMBERS:
            yield Damage(block.path, "is no member of a block", block.key, name, member.offset)


def _read_block(content: mmap.mmap, block: Block, described: ShardManifest) -> tuple[np.ndarray | None, list[Damage]]:
    """What the index should say of a block (None where that can no longer be told), and what is wrong with it."""
    found: list[Damage] = []

    def damaged(name: str, what: str) -> None:
        member = block.members.get(name)
        found.append(Damage(block.path, what, block.key, name, member.offset_data if member else None))

    for name in (TOKENS, LENGTHS, DOCUMENTS, CHECKSUMS):
        if name not in block.members:
            damaged(name, "is missing")
    if found:
        return None, found
    data = {name: _bytes(content, member) for name, member in block.members.items()}
    try:
        checksums = json.loads(data[CHECKSUMS])
        changed = [name for name in data if name != CHECKSUMS and checksums[name] != _sha256(data[name])]
    except (ValueError, KeyError, TypeError):
        changed = []
        damaged(CHECKSUMS, "cannot be read")
    for name in changed:
        damaged(name, f"one or more of the {len(data[name])} bytes from here on have changed (checksum differs)")
    try:
        tokens, lengths = _array(data[TOKENS]), _array(data[LENGTHS])
        mask = _array(data[LOSS_MASK]) if LOSS_MASK in data else None
    except (ValueError, EOFError) as error:
        damaged(TOKENS, f"or another array of the block cannot be read ({error})")
        return None, found
    if tokens.dtype != np.dtype(described.dtype) or tokens.ndim != 1 or lengths.dtype != np.int32 or lengths.ndim != 1:
        damaged(TOKENS, f"has dtype {tokens.dtype} and lengths {lengths.dtype}")
        return None, found
    if lengths.min(initial=1) < 1 or lengths.sum(dtype=np.int64) != len(tokens):
        damaged(LENGTHS, f"adds up to {lengths.sum(dtype=np.int64)} tokens, but there are {len(tokens)}")
        return None, found
    if what := _records_damage(data[DOCUMENTS], len(lengths)):
        damaged(DOCUMENTS, what)
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != np.uint8 or mask.max(initial=0) > 1):
        damaged(LOSS_MASK, "is not one 0 or 1 per token")
        return None, found
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    first = block.members[TOKENS].offset_data + len(data[TOKENS]) - tokens.nbytes
    found += _token_damage(block, tokens, starts, ends, first, described)
    index = np.empty(len(lengths), INDEX_DTYPE if mask is None else MASKED_INDEX_DTYPE)
    index["length"] = lengths
    index["offset"] = first + starts * tokens.itemsize
    if mask is not None:
        index["mask_offset"] = block.members[LOSS_MASK].offset_data + len(data[LOSS_MASK]) - mask.nbytes + starts
    return index, found


def _records_damage(data: bytes, documents: int) -> str | None:
    """What is wrong with the lines of `documents.jsonl`, or None."""
    try:
        records = [json.loads(line) for line in data.decode().split("\n")[:-1]]
    except ValueError as error:
        return f"cannot be read ({error})"
    if len(records) != documents:
        return f"has {len(records)} lines for {documents} documents"
    if not all(isinstance(record, dict) and record.get("id") for record in records):
        return "has a document without id"
    return None


def _token_damage(
    block: Block, tokens: np.ndarray, starts: np.ndarray, ends: np.ndarray, first: int, described: ShardManifest
) -> Iterator[Damage]:
    """Ids outside the vocabulary, and documents without their BOS or EOS."""
    tokenizer = described.tokenizer
    checks = [("is not below the vocabulary size", np.flatnonzero(tokens >= tokenizer.vocab_size))]
    if tokenizer.bos_id is not None:
        checks.append(("stands where BOS should", starts[tokens[starts] != tokenizer.bos_id]))
    checks.append(("stands where EOS should", ends[tokens[ends - 1] != tokenizer.eos_id] - 1))
    for what, places in checks:
        if len(places):
            byte = first + int(places[0]) * tokens.itemsize
            more = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
            yield Damage(block.path, f"id {int(tokens[places[0]])} {what}{more}", block.key, TOKENS, byte)


def _index_damage(block: Block, stored: np.ndarray, derived: np.ndarray, first: int) -> Iterator[Damage]:
    """The first document of a block (number `first` of the shard) that the index places elsewhere."""
    file = index_path(block.path)
    if stored.dtype != derived.dtype or len(stored) != len(derived):
        yield Damage(file, f"places {len(stored)} documents where there are {len(derived)}", block.key)
        return
    wrong = np.flatnonzero(stored != derived)
    if len(wrong):
        number = int(wrong[0])
        said, found = (dict(zip(stored.dtype.names or (), row.tolist())) for row in (stored[number], derived[number]))
        yield Damage(file, f"document {first + number} is said to lie at {said}, but lies at {found}", block.key)


def _bytes(content: mmap.mmap, member: tarfile.TarInfo) -> bytes:
    return content[member.offset_data : member.offset_data + member.size]


def _array(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _padded(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def main(arguments: list[str]) -> int:
    """The verb. Exit status 1 where something is damaged."""
    parser = argparse.ArgumentParser(
        prog="python -m data_shards verify",
        description="Prove every checksum, offset and count of a build against its manifest: tar against index against "
        "manifest, ids below the vocabulary size, BOS and EOS in place. Damage is named by file, block and byte; the "
        "exit status is then 1.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the output of `data_shards build`")
    directory = parser.parse_args(arguments).directory
    infos = [info for infos in ShardManifest.read(directory).splits.values() for info in infos]
    damages: list[Damage] = []
    with ByteProgress() as progress:
        progress.start("verify", sum(info.bytes for info in infos))
        for path, found in verify(directory, progress.advance):
            damages += found
            if path != directory and not sys.stderr.isatty():
                print(f"{path.relative_to(directory)}: {'damaged' if found else 'ok'}")
    for damage in damages:
        print(f"damaged: {damage}")
    documents, tokens = sum(info.documents for info in infos), sum(info.tokens for info in infos)
    if damages:
        print(f"{len(damages)} damaged in {len(infos)} shards; restore these files or build again")
        return 1
    print(f"{len(infos)} shards, {documents:,} documents, {tokens:,} tokens: all checksums, offsets and counts agree")
    return 0
