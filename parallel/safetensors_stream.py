"""Reading and writing safetensors one tensor at a time, so that memory never holds a model.

The library's `safe_open` maps a file and reads single tensors, but can only write a file whose tensors are all in
memory. The format makes streaming easy: eight bytes of header length (little-endian), a JSON header that gives each
tensor's dtype, shape and place, then the bytes (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from safetensors import SafetensorError, safe_open

from job.errors import InputError
from job.files import HashingWriter, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsReader:
    """The tensors of a Hugging Face model directory, in one file or in several with an index.

    Opening reads the headers only. Raises `InputError` naming what is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._files: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._starts: dict[str, int] = {}
        listed = self._listed()
        for file in sorted(set(listed.values())):
            self._read_header(file)
        for name, file in listed.items():
            if self._files.get(name) != file:
                raise InputError(
                    f"{self.directory / INDEX_FILE} says that {name} is in {file}, but it is not; copy both again"
                )

    def load(self, name: str, into: torch.Tensor | None = None) -> torch.Tensor:
        """Read one tensor: into memory given (contiguous, of its shape and dtype), or into memory of its own.

        Read, not mapped: a map would be read page by page, at a third of the speed, where its tensor is first used.
        """
        path, info = self.directory / self._files[name], self.tensors[name]
        tensor = torch.empty(info.shape, dtype=info.dtype) if into is None else into
        try:
            with open(path, "rb", buffering=0) as handle:
                header = int.from_bytes(handle.read(8), "little")
                handle.seek(8 + header + self._starts[name])
                wanted = tensor.view(-1).view(torch.uint8).numpy().data
                while len(wanted) and (count := handle.readinto(wanted)):  # the kernel gives at most 2 GB at once
                    wanted = wanted[count:]
        except OSError as error:
            raise InputError(f"cannot read {name} from {path}: {error.strerror}") from None
        if len(wanted):
            raise InputError(f"cannot read {name} from {path}: the file ends within it; copy it again")
        return tensor

    def _listed(self) -> dict[str, str]:
        """Tensor name to file name by the index; empty names for a single file."""
        if (self.directory / SINGLE_FILE).exists():
            self._read_header(SINGLE_FILE)
            return {}
        index = self.directory / INDEX_FILE
        if not index.exists():
            advice = ""
            if any(self.directory.glob("pytorch_model*.bin")):
                advice = " (pytorch_model.bin is a pickle and is not read: save the model again with save_pretrained)"
            raise InputError(f"{self.directory} has neither {SINGLE_FILE} nor {INDEX_FILE}{advice}")
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise InputError(f"{index} has no weight_map from tensor names to file names; copy it again")
        for file in sorted(set(listed.values())):
            if Path(file).name != file:
                raise InputError(f"{index} names the file '{file}' outside its directory")
            if not (self.directory / file).exists():
                count = sum(1 for other in listed.values() if other == file)
                raise InputError(f"{index} names {file} ({count} tensors), which is missing; copy it again")
        return listed

    def _read_header(self, file: str) -> None:
        path = self.directory / file
        try:
            with safe_open(path, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118  (not a dict)
                    tensor = handle.get_slice(name)
                    if tensor.get_dtype() not in DTYPES:
                        raise InputError(
                            f"{path}: {name} is stored as {tensor.get_dtype()}; supported are {', '.join(DTYPES)}"
                        )
                    self._files[name] = file
                    self.tensors[name] = TensorInfo(name, DTYPES[tensor.get_dtype()], tuple(tensor.get_shape()))
            with open(path, "rb") as handle:  # the library has checked the header, but does not tell where tensors lie
                header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
            self._starts |= {
                name: entry["data_offsets"][0] for name, entry in header.items() if "data_offsets" in entry
            }
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is not a whole safetensors file ({error}); copy it again") from None


class SafetensorsWriter:
    """Writes one file whose tensors are known by name, dtype and shape, and arrive one by one in that order."""

    def __init__(self, path: Path, tensors: Sequence[TensorInfo]) -> None:
        self._expected = list(tensors)
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor in tensors:
            start, end = end, end + tensor.bytes
            header[tensor.name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the data starts aligned
        self._handle = open(path, "wb")  # noqa: SIM115  (closed by __exit__)
        self._stream = HashingWriter(self._handle)
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append the next tensor; its name, dtype and shape must be those that were announced."""
        info = self._expected.pop(0)
        if (name, tensor.dtype, tuple(tensor.shape)) != (info.name, info.dtype, info.shape):
            raise ValueError(f"{info} was announced, but {name} {tensor.dtype} {tuple(tensor.shape)} came")
        self._stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._handle:
            if kind is None:
                if self._expected:
                    raise ValueError(f"{len(self._expected)} announced tensors did not come")
                self._stream.flush()
                os.fsync(self._handle.fileno())

    @property
    def checksum(self) -> dict[str, str | int]:
        """SHA-256 and size of what has been written, as manifests hold them."""
        return {"sha256": self._stream.hexdigest(), "bytes": self._stream.bytes_written}
