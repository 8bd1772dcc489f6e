"""`manifest.json`: what made a directory. The chain of manifests is the provenance of every number we print."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.files import read_json, sha256_file, write_json

NAME = "manifest.json"
FORMAT_VERSION = 1
_CHECKSUM = "manifest_checksum"  # of everything else in the manifest, so that a flipped bit in a number is noticed
_PACKAGES = (
    "torch",
    "megatron-core",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "webdataset",
    "numpy",
    "lxml",
)


@functools.cache
def code_version() -> str:
    """The installed version of this project, with git's description of the tree where it runs from a checkout."""
    try:
        version = importlib.metadata.version("biomedgpt")
    except importlib.metadata.PackageNotFoundError:
        version = "unpackaged"
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return version
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return version
    commit = described.stdout.strip()
    return f"{version}+{commit}" if commit else version


def package_versions(names: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Versions of the installed packages that can change a result."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write(
    directory: Path, stage: str, config: dict[str, Any], inputs: list[dict[str, Any]], content: dict[str, Any]
) -> None:
    """Write `manifest.json` into `directory`, atomically and last, so that its presence means a finished stage.

    `inputs` has one entry per input (`path` and a checksum where there is one); `content` is what the stage wants
    to add: outputs with checksums and counts.
    """
    body = {
        "format_version": FORMAT_VERSION,
        "stage": stage,
        "code_version": code_version(),
        "packages": package_versions(),
        "config": config,
        "inputs": inputs,
    }
    body |= content
    write_json(Path(directory) / NAME, body | {_CHECKSUM: _checksum(body)})


def read(directory: Path, stage: str) -> dict[str, Any]:
    """Read the manifest of a directory that `stage` finished.

    Raises `InputError` where there is none, where it is damaged, where another stage made it, or where its format is
    newer than this code.
    """
    path = Path(directory) / NAME
    if not path.exists():
        raise InputError(f"{path} does not exist: {directory} is not the finished output of '{stage}'")
    body = read_json(path)
    if not isinstance(body, dict):
        raise InputError(
            f"{path} is not a manifest: it holds a {type(body).__name__}; restore it from where it was made"
        )
    if _CHECKSUM in body and body.pop(_CHECKSUM) != _checksum(body):
        raise InputError(f"{path} does not match its own checksum: it is damaged or was edited; restore it")
    if body.get("stage") != stage:
        raise InputError(f"{path} was made by stage '{body.get('stage')}', but a directory made by '{stage}' is needed")
    if body.get("format_version", 0) > FORMAT_VERSION:
        raise InputError(f"{path} has format version {body['format_version']}, newer than this code: update biomedgpt")
    return body


def _checksum(body: dict[str, Any]) -> str:
    plain = json.loads(json.dumps(body))  # as it will be read back: text keys
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def reference(directory: Path) -> dict[str, str]:
    """How another manifest names this directory as its input: its path and its manifest's checksum."""
    return {"path": str(directory), "manifest_sha256": sha256_file(Path(directory) / NAME)}


def chain(directory: Path) -> list[dict[str, Any]]:
    """The manifests behind a directory, newest first: its own, those of its inputs, of their inputs, and so on.

    An input is followed where its path still holds the manifest with the recorded checksum. Each entry is the manifest
    without its lists of files, plus `path` and `manifest_sha256`.
    """
    entries: dict[str, dict[str, Any]] = {}
    pending = [Path(directory)]
    while pending:
        path = pending.pop(0)
        checksum = sha256_file(path / NAME)
        if checksum in entries:
            continue
        body = read_json(path / NAME)
        entries[checksum] = {"path": str(path), "manifest_sha256": checksum} | {
            key: value for key, value in body.items() if key not in ("files", "shards", "chain")
        }
        for source in body.get("inputs", ()):
            file = Path(source.get("path", "")) / NAME
            if "manifest_sha256" in source and file.is_file() and sha256_file(file) == source["manifest_sha256"]:
                pending.append(file.parent)
    return list(entries.values())
