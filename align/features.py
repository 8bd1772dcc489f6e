"""Outputs of frozen encoders on disk: each structure is encoded once, and every epoch reads it from a memory map.

A cache directory belongs to one encoder, whose weights its `cache.json` names by checksum, and to one length limit. It
consists of parts, which are only ever added, so that a build goes on after a kill and a cache grows with new data sets:

    part-0123456789abcdef.features.npy   [positions, width], structures one after another, in the type that the encoder
                                         computes in: float32, or the bits of bfloat16 as uint16
    part-0123456789abcdef.index.npy      one `INDEX_DTYPE` record per structure; written last, so that a part counts
                                         only once it is whole
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from align.esm import ProteinEncoder, collate_proteins
from align.gnn import MoleculeEncoder, collate_graphs
from align.molecules import MoleculeError, count_atoms, featurise
from align.proteins import ProteinError, count_tokens, tokenise
from job.errors import InputError
from job.files import HashingWriter, atomic_file, read_json, sha256_file, write_json
from job.progress import ByteProgress
from parallel import ranks

NAME = "cache.json"
FORMAT_VERSION = 1
INDEX_DTYPE = np.dtype([("key", "S32"), ("start", "<i8"), ("length", "<i4"), ("crc32", "<u4")])
"""Per structure, sorted by key: hash of its text (hex), its first row, and its number of rows."""

PART_BYTES = 2**30  # what a kill can cost, and what one file holds
_BATCH_POSITIONS = 8192  # atoms or residues that the encoder computes at a time
_FEATURES, _INDEX = ".features.npy", ".index.npy"

Encoder = MoleculeEncoder | ProteinEncoder


def encoder_checksum(encoder: nn.Module) -> str:
    """Hex SHA-256 over the names, types, shapes and bytes of a module's state, and its `signature` where it has one.

    The signature holds what changes outputs but is no weight, such as the number of attention heads.
    """
    digest = hashlib.sha256(json.dumps(getattr(encoder, "signature", {}), sort_keys=True).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class FeatureCache:
    """The features of structures, by structure.

    Args:
        directory: what `build_cache` filled.
        encoder_sha256: checksum of the encoder in use, to prove that the cache is its work; None takes any.
        limit: the `max_atoms` or `max_residues` in use, likewise.
        parts: names of those to open; None for all in the directory.

    Attributes:
        width: of every feature vector.

    Raises `InputError` where the directory is no cache, is damaged, or is of another encoder or limit.
    """

    def __init__(
        self,
        directory: Path,
        encoder_sha256: str | None = None,
        limit: int | None = None,
        parts: Sequence[str] | None = None,
    ) -> None:
        self.directory = Path(directory)
        header = _read_header(self.directory)
        _compare(self.directory, header, {"encoder_sha256": encoder_sha256, "limit": limit})
        self.width: int = header["width"]
        self.encoder_sha256: str = header["encoder_sha256"]
        self._dtype = np.dtype(header["dtype"])
        self._parts = list(parts) if parts is not None else _parts(self.directory)
        indexes = [_load(self.directory / f"{part}{_INDEX}", None) for part in self._parts]
        if any(index.dtype != INDEX_DTYPE for index in indexes):
            raise InputError(f"{self.directory} holds an index of another format; remove the cache, to have it rebuilt")
        self._rows = [int((index["start"] + index["length"]).max()) for index in indexes]
        joined = np.concatenate([np.zeros(0, dtype=INDEX_DTYPE), *indexes])
        owners = np.repeat(np.arange(len(indexes)), [len(index) for index in indexes])
        order = np.argsort(joined["key"], kind="stable")
        self._index, self._owners = joined[order], owners[order]

    def __len__(self) -> int:
        """Structures."""
        return len(self._index)

    def __contains__(self, structure: str) -> bool:
        return self._find(structure) is not None

    def lookup(self, structure: str) -> np.ndarray:
        """Features [positions, width] of a SMILES or sequence as a data set spells it: a read-only view of the map.

        float32, or uint16 with the bits of bfloat16 (`torch.from_numpy(...).view(torch.bfloat16)`). Raises `InputError`
        where the cache has no such structure, or where its bytes are not those written.
        """
        row = self._find(structure)
        if row is None:
            shown = structure if len(structure) <= 80 else f"{structure[:80]}..."
            raise InputError(f"{self.directory} lacks the features of {shown!r}; build it with all data sets in use")
        start, length = int(self._index["start"][row]), int(self._index["length"][row])
        features = self._features(int(self._owners[row]))[start : start + length]
        if zlib.crc32(features) != self._index["crc32"][row]:  # type: ignore[arg-type]
            part = self._parts[int(self._owners[row])]
            raise InputError(f"{self.directory / part}* is damaged; remove these files, to have them made again")
        return features

    def verify(self) -> None:
        """Read everything; raises `InputError` that names the first part whose bytes are not those written."""
        for part in self._parts:
            path = self.directory / f"{part}{_FEATURES}"
            expected = _read_header(self.directory, f"{part}.json")["sha256"]
            if not path.is_file() or sha256_file(path) != expected:
                raise InputError(f"{path} is damaged; remove {part}.* in the cache, and the next build makes it again")

    def _find(self, structure: str) -> int | None:
        key = np.bytes_(_key(structure))
        row = int(np.searchsorted(self._index["key"], key))
        return row if row < len(self._index) and self._index["key"][row] == key else None

    @functools.cache  # noqa: B019 - a cache lives as long as the run
    def _features(self, number: int) -> np.ndarray:
        path = self.directory / f"{self._parts[number]}{_FEATURES}"
        features = _load(path, "r")
        if features.shape != (self._rows[number], self.width) or features.dtype != self._dtype:
            raise InputError(f"{path} does not fit its index; remove the part's files, to have it made again")
        return features


def build_cache(
    directory: Path,
    encoder: Encoder,
    structures: Iterable[str],
    limit: int,
    part_bytes: int = PART_BYTES,
) -> FeatureCache:
    """Encode what the cache does not have yet, and open it.

    Collective where torch.distributed is initialised: each rank encodes its share, on the device where its encoder is,
    and all ranks need to see the directory. Call it before parameters are sharded. Structures that cannot be read, or
    molecules beyond the limit, are left out: `lookup` refuses them.

    Args:
        directory: of this encoder alone; made where absent.
        encoder: is run in evaluation mode and left as it was.
        structures: SMILES, or sequences, as the data sets spell them; repeats are encoded once.
        limit: `max_atoms`, or `max_residues`.
        part_bytes: features of one file.

    Raises `InputError`, on all ranks, where the directory holds the outputs of another encoder or limit, where another
    process builds there, or where the disk is too small.
    """
    directory = Path(directory)
    kind = "molecule" if isinstance(encoder, MoleculeEncoder) else "protein"
    with contextlib.ExitStack() as resources:
        checksum = _from_first_rank(encoder_checksum(encoder) if ranks.rank() == 0 else None)
        dtype = next(encoder.parameters()).dtype
        header = {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "encoder_sha256": checksum,
            "limit": limit,
            "width": encoder.width,
            "dtype": "uint16" if dtype == torch.bfloat16 else "float32",
        }
        _together(lambda: _prepare(directory, header, resources) if ranks.rank() == 0 else None)
        present = _from_first_rank(FeatureCache(directory)._index["key"] if ranks.rank() == 0 else None)
        missing = _missing(structures, set(present.tolist()))
        share = _together(lambda: _count(missing[ranks.rank() :: ranks.world()], kind, limit))
        row_bytes = header["width"] * np.dtype(header["dtype"]).itemsize
        needed = sum(_from_all(sum(share.values()) * row_bytes))
        _together(lambda: _check_room(directory, needed))
        _together(lambda: _write_share(directory, encoder, share, limit, part_bytes // row_bytes, header))
        parts = _from_first_rank(_parts(directory) if ranks.rank() == 0 else None)  # other ranks may see new names late
        return _together(lambda: FeatureCache(directory, checksum, limit, parts))


def _prepare(directory: Path, header: dict[str, Any], resources: contextlib.ExitStack) -> None:
    """On rank 0: lock the directory, clear what a killed build left, and write or check the header."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = resources.enter_context(open(directory / ".lock", "w"))  # noqa: SIM115 - closed by `resources`
    except OSError as error:
        raise InputError(f"cannot write {directory}: {error.strerror}; choose another cache directory") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise InputError(f"{directory} is being filled by another process; wait for it") from None
    whole = set(_parts(directory))
    for file in [*directory.glob(".*.tmp"), *directory.glob("part-*")]:
        if file.name.split(".")[0] not in whole:
            file.unlink(missing_ok=True)
    if (directory / NAME).exists():
        _compare(directory, _read_header(directory), header)
    else:
        write_json(directory / NAME, header)


def _count(structures: Sequence[str], kind: str, limit: int) -> dict[str, int]:
    """Positions of each structure that can be read and is within the limit."""
    counts = {}
    for structure in structures:
        with contextlib.suppress(MoleculeError, ProteinError):
            count = count_atoms(structure) if kind == "molecule" else count_tokens(structure, limit)
            if kind == "protein" or count <= limit:
                counts[structure] = count
    return counts


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise InputError(
            f"the features need {needed / 1e9:.1f} GB, but {directory} has {free / 1e9:.1f} GB free; choose another "
            "cache directory, or train without a cache"
        )


def _write_share(
    directory: Path,
    encoder: Encoder,
    counts: dict[str, int],
    limit: int,
    part_positions: int,
    header: dict[str, Any],
) -> None:
    """Encode and write this rank's share of what is missing, part by part."""
    row_bytes = header["width"] * np.dtype(header["dtype"]).itemsize
    total = sum(counts.values()) * row_bytes
    with _evaluating(encoder), ByteProgress() if ranks.rank() == 0 and total else contextlib.nullcontext() as progress:
        if progress:
            progress.start(f"encoding {header['kind']}s", total)
        # Long ones first: the largest batch comes at once, and like lengths share a batch.
        for part in _groups(sorted(counts, key=lambda text: -counts[text]), counts, part_positions):
            _write_part(directory, encoder, part, counts, limit, header)
            if progress:
                progress.advance(sum(counts[structure] for structure in part) * row_bytes)


def _write_part(
    directory: Path,
    encoder: Encoder,
    structures: Sequence[str],
    counts: dict[str, int],
    limit: int,
    header: dict[str, Any],
) -> None:
    keys = [_key(structure) for structure in structures]
    name = f"part-{hashlib.sha256(''.join(keys).encode()).hexdigest()[:16]}"
    lengths = np.array([counts[structure] for structure in structures])
    index = np.zeros(len(structures), dtype=INDEX_DTYPE)
    index["key"], index["length"], index["start"] = keys, lengths, np.cumsum(lengths) - lengths
    layout = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(header["dtype"])),
        "fortran_order": False,
        "shape": (int(lengths.sum()), header["width"]),
    }
    with atomic_file(directory / f"{name}{_FEATURES}") as handle:
        writer = HashingWriter(handle)
        np.lib.format.write_array_header_1_0(cast(Any, writer), layout)
        sums = []
        for batch in _groups(structures, counts, _BATCH_POSITIONS):
            features = _encode(encoder, batch, limit)
            if not torch.isfinite(features).all():
                raise InputError(f"the {header['kind']} encoder gives values that are not finite; restore its weights")
            values = _as_array(features)
            writer.write(values.tobytes())
            ends = np.cumsum([counts[structure] for structure in batch])[:-1]
            sums += [zlib.crc32(part.tobytes()) for part in np.split(values, ends)]
    index["crc32"] = sums
    write_json(directory / f"{name}.json", {"format_version": FORMAT_VERSION, "sha256": writer.hexdigest()})
    with atomic_file(directory / f"{name}{_INDEX}") as handle:
        np.save(handle, np.sort(index, order="key"))


@torch.inference_mode()
def _encode(encoder: Encoder, structures: Sequence[str], limit: int) -> Tensor:
    device = next(encoder.parameters()).device
    if isinstance(encoder, MoleculeEncoder):
        return encoder(collate_graphs([featurise(smiles, limit) for smiles in structures]).to(device))
    return encoder(collate_proteins([tokenise(sequence, limit) for sequence in structures]).to(device))


def _as_array(features: Tensor) -> np.ndarray:
    features = features.cpu().contiguous()
    return (features.view(torch.uint16) if features.dtype == torch.bfloat16 else features).numpy()


@contextlib.contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)


def _groups(structures: Sequence[str], counts: dict[str, int], limit: int) -> Iterator[list[str]]:
    """Consecutive structures of at most `limit` positions together, or one that is longer."""
    group: list[str] = []
    size = 0
    for structure in structures:
        if group and size + counts[structure] > limit:
            yield group
            group, size = [], 0
        group.append(structure)
        size += counts[structure]
    if group:
        yield group


def _missing(structures: Iterable[str], present: set[bytes]) -> list[str]:
    """Each structure once that the cache does not have, longest text first, so that the ranks' shares are alike."""
    unique = dict.fromkeys(structures)
    return sorted((text for text in unique if _key(text).encode() not in present), key=lambda text: (-len(text), text))


def _parts(directory: Path) -> list[str]:
    """Names of the whole parts."""
    return sorted(path.name.removesuffix(_INDEX) for path in directory.glob(f"part-*{_INDEX}"))


def _key(structure: str) -> str:
    return hashlib.sha256(structure.encode()).hexdigest()[: INDEX_DTYPE["key"].itemsize]


def _load(path: Path, mode: Any) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error}); remove the part's files, to have it made again") from None


def _read_header(directory: Path, name: str = NAME) -> dict[str, Any]:
    header = read_json(directory / name)
    if not isinstance(header, dict) or header.get("format_version") != FORMAT_VERSION:
        raise InputError(f"{directory / name} is not of a cache that this version reads; remove the cache")
    return header


def _compare(directory: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise `InputError` at the first value of a cache that is not the wanted one; None is any."""
    for key, value in wanted.items():
        if value is not None and found.get(key) != value:
            what = "an encoder with other weights" if key == "encoder_sha256" else f"another {key}"
            raise InputError(
                f"{directory} was made with {what} ({found.get(key)}, not {value}); remove it, or choose another cache "
                "directory"
            )


# What is collective with several ranks, and plain alone.


def _together(function: Any) -> Any:
    return ranks.together(function) if dist.is_initialized() else function()


def _from_all(value: int) -> list[int]:
    values = [value] * ranks.world()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def _from_first_rank(value: Any) -> Any:
    return ranks.from_first_rank(value)[0] if dist.is_initialized() else value
