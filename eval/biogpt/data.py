"""The data sets of BioGPT's tasks, as its authors ship them, plain or gzipped: found, read and checked.

    BC5CDR, KD-DTI, DDI   {train,valid,test}.json, an object of documents by id
    HoC                   {train,valid,test}.tsv, a sentence and its labels, joined by "|"
    PubMedQA              {train,dev,test}_set.json and test_ground_truth.json, or ori_pqal.json

Found in DIR/NAME, DIR/NAME/raw, or DIR where it is itself called so; case, "-" and "_" in names do not matter, and a
split's name may have a suffix (test_open.json.gz).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from eval.biogpt.documents import FORMATS, Document, Format, read_object
from eval.biogpt.relations import squeeze
from eval.qa import pubmedqa
from job.errors import InputError
from job.files import sha256_file

PROMPT_SUFFIX = "we can conclude that"
"""Stands between source and target, where BioGPT has soft prompts; one of the hard prompts that its authors tried."""


class Split(NamedTuple):
    """A file of documents."""

    file: Path
    documents: list[Document]
    without_answer: int
    """documents left out since nothing is stated about them"""


@dataclass
class DataSet:
    """A task's files."""

    name: str
    splits: dict[str, Split]
    checksums: dict[str, str]
    """SHA-256 by file name"""
    notes: list[str]
    """sentences about the data that a reader of the numbers has to know"""

    @property
    def test(self) -> list[Document]:
        """The documents to score."""
        return self.splits["test"].documents


def data_set(name: str, directories: Sequence[Path], needed: Sequence[str] = ("test",)) -> DataSet | None:
    """Read and check a task's files; None where no directory has a folder of that name.

    Raises `InputError` where a file is damaged or lacks something, where a split that is needed is missing, or where
    the test set is (mostly) another split again.
    """
    folders = [folder for directory in directories for folder in _folders(name, directory)]
    if not folders:
        return None
    if len(folders) > 1:
        raise InputError(f"{FORMATS[name].title}: both {folders[0]} and {folders[1]} have its files; give one of them")
    files = _files(name, folders[0])
    splits = {split: Split(file, *FORMATS[name].read(file)) for split, file in files.items()}
    for part in splits.values():
        if not part.documents:
            raise InputError(f"{part.file} has no document with an answer")
    checksums = {part.file.name: sha256_file(part.file) for part in splits.values()}
    notes = [_counted(part) for part in splits.values() if part.without_answer]
    if name == "pubmedqa" and "test" in splits:
        notes += _official_pubmedqa(splits, folders[0], checksums)
    notes += _overlaps(FORMATS[name], splits)
    for split in needed:
        if split not in splits:
            raise InputError(
                f"{folders[0]}: no file of the {split} split ({split}.{FORMATS[name].extension}, plain or gzipped)"
            )
    return DataSet(name, splits, checksums, notes)


def training_rows(
    task: str, directory: Path, split: str = "train", prompt_suffix: str = PROMPT_SUFFIX
) -> list[tuple[str, str]]:
    """Prompt and target of every document of a split, to be joined as they are: the target begins with a space.

    Sources are whole: how much of one fits depends on the tokenizer. Raises `InputError` where the task or its files
    are not there, or as `data_set` does.
    """
    if task not in FORMATS:
        raise InputError(f"{task} is none of BioGPT's tasks; choose from {', '.join(FORMATS)}")
    found = data_set(task, [directory], needed=[split])
    if found is None:
        raise InputError(f"{directory} has no folder {task}")
    return [
        (prompt(document.source, prompt_suffix), " " + document.target) for document in found.splits[split].documents
    ]


def prompt(source: str, suffix: str = PROMPT_SUFFIX) -> str:
    """What a model goes on from."""
    return f"{source} {suffix}".strip()


def _folders(name: str, directory: Path) -> list[Path]:
    def is_called(folder: Path) -> bool:
        return folder.name.lower().replace("-", "_") == name

    directory = directory.resolve()
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory")
    inside = [folder for folder in sorted(directory.iterdir()) if folder.is_dir() and is_called(folder)]
    own = [directory] if is_called(directory) or (directory.name == "raw" and is_called(directory.parent)) else []
    return [folder / "raw" if (folder / "raw").is_dir() else folder for folder in own + inside]


def _files(name: str, folder: Path) -> dict[str, Path]:
    """The file of each split that is there."""
    pattern = re.compile(rf"(train|valid|dev|test)(_[A-Za-z0-9]+)?\.{FORMATS[name].extension}(\.gz)?")
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        match = pattern.fullmatch(file.name)
        split = "valid" if match and match[1] == "dev" else match[1] if match else ""
        if not split and name == "pubmedqa" and re.fullmatch(r"ori_pqal\w*\.json(\.gz)?", file.name):
            split = "test"
        if not split:
            continue
        if split in found:
            raise InputError(f"{folder}: both {found[split].name} and {file.name} are of the {split} split; keep one")
        found[split] = file
    return dict(sorted(found.items()))


def _counted(split: Split) -> str:
    total = split.without_answer + len(split.documents)
    return f"{split.file.name}: {split.without_answer} of {total} documents state no relation and are left out"


def _overlaps(form: Format, splits: Mapping[str, Split]) -> list[str]:
    """Refuse a test set that is another split again; tell of single documents that are in both."""
    keys = {name: [squeeze(document.source) for document in split.documents] for name, split in splits.items()}
    notes = []
    for name, texts in keys.items():
        repeated = len(texts) - len(set(texts))
        if repeated:
            notes.append(f"{splits[name].file.name}: {repeated} documents repeat another one's text")
    for one, other in (("train", "test"), ("valid", "test"), ("train", "valid")):
        if one not in keys or other not in keys:
            continue
        shared, all_other = len(set(keys[one]) & set(keys[other])), len(set(keys[other]))
        first, second = splits[one].file, splits[other].file.name
        if other == "test" and 2 * shared > min(len(set(keys[one])), all_other):
            raise InputError(
                f"{first} and {second} share {shared} of {all_other} texts{form.known_fault}: what is chosen or "
                f"trained on the one is chosen on the other; remove {first.name}, or put other documents in its place"
            )
        if shared:
            notes.append(f"{first.name} and {second} share {shared} of {all_other} texts")
        own_ids = {document.identifier for document in splits[one].documents}
        shared_ids = sum(document.identifier in own_ids for document in splits[other].documents)
        if shared_ids and form.has_ids:
            notes.append(f"{first.name} and {second} share {shared_ids} ids")
    return notes


def _official_pubmedqa(splits: dict[str, Split], folder: Path, checksums: dict[str, str]) -> list[str]:
    """Split ori_pqal.json as its authors do (fold 0 is BioGPT's), check the test set's answers and ids."""
    test = splits["test"]
    by_id = {document.identifier: document for document in test.documents}
    labels = {name: next(iter(document.gold)) for name, document in by_id.items()}
    if len(by_id) == 1000 and len(splits) == 1:
        folds, official = pubmedqa.official_split(labels)
        train = [name for fold in folds[1:] for name in fold]
        for split, names in (("train", train), ("valid", folds[0]), ("test", official)):
            splits[split] = test._replace(documents=[by_id[name] for name in names])
    for file in sorted(folder.glob("test_ground_truth.json*")):
        checksums[file.name] = sha256_file(file)
        for name, decision in read_object(file).items():
            if labels.get(name) != decision:
                raise InputError(
                    f"{test.file}: the answer to {name} is {labels.get(name)!r}, but {file.name} says {decision!r}"
                )
    digest = pubmedqa.digest(document.identifier for document in splits["test"].documents)
    if digest == pubmedqa.OFFICIAL_TEST:
        return []
    if digest == pubmedqa.OFFICIAL_CROSS_VALIDATION:
        return [f"{test.file.name} is the half of PubMedQA's questions that is for training, not the official test"]
    return [f"{test.file.name} is not PubMedQA's official test set of 500 questions"]
