"""Read the index of a torch distributed checkpoint without trusting it.

torch writes a checkpoint's `.metadata` with pickle, and its own reader unpickles whatever the file says, so that a
downloaded checkpoint could run code. Here only the plain records that such an index is made of are rebuilt. The tensor
files themselves are read by torch with `weights_only=True`.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from job.errors import InputError

# Classes without behaviour on construction: sizes, offsets, file names. megatron-core adds the plans of each rank.
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # what Python 3.13 calls it
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    *(
        ("torch.distributed.checkpoint.planner", name)
        for name in ("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
}


class _IndexUnpickler(pickle.Unpickler):
    """Unpickler that resolves the names in `_ALLOWED` and torch's dtypes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint index needs")


def read_index(directory: Path) -> Metadata:
    """The `.metadata` of a torch distributed checkpoint in `directory`.

    Raises `InputError` where it is absent, damaged, or asks for anything but the records of an index.
    """
    path = Path(directory) / ".metadata"
    try:
        with open(path, "rb") as handle:
            index = _IndexUnpickler(handle).load()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: {directory} is not a finished distributed checkpoint") from None
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path} is not the index of a checkpoint ({error}); copy it again") from None
    if not isinstance(index, Metadata):
        raise InputError(f"{path} is not the index of a checkpoint (it holds a {type(index).__name__})")
    return index


class SafeMetadataReader(FileSystemReader):
    """torch's reader, with the index read by `read_index`, once."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._index: Metadata | None = None

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The checkpoint's index; raises `InputError`."""
        if self._index is None:
            self._index = read_index(Path(self.path))
            if getattr(self._index, "storage_meta", None) is None:
                self._index.storage_meta = StorageMeta()
        return self._index
