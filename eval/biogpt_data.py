"""The data files of BioGPT's tasks, as its authors ship them (plain or gzipped), read, checked and put into templates.

    BC5CDR, KD-DTI, DDI   {train,valid,test}.json, an object of documents by id
    HoC                   {train,valid,test}.tsv, a sentence and its labels, joined by "|"
    PubMedQA              {train,dev,test}_set.json and test_ground_truth.json, or ori_pqal.json with the latter

Found in DIR/NAME, DIR/NAME/raw, or DIR where it is itself called so; case, "-" and "_" in names do not matter, and a
split's name may have a suffix (test_open.json.gz).

Templates: microsoft/BioGPT, examples/*/rebuild_data.py. Documents without relations are left out there, and here, but
counted here.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from eval import pubmedqa
from eval.relations import BC5CDR, INTERACTION, NameTable, Relation, Template, longest_names, squeeze, target_text
from job.errors import InputError
from job.files import sha256_file

PROMPT_SUFFIX = "we can conclude that"
"""Stands between source and target, where BioGPT has soft prompts; one of the hard prompts that its authors tried."""

HALLMARKS = (
    "activating invasion and metastasis",
    "avoiding immune destruction",
    "cellular energetics",
    "enabling replicative immortality",
    "evading growth suppressors",
    "genomic instability and mutation",
    "inducing angiogenesis",
    "resisting cell death",
    "sustaining proliferative signaling",
    "tumor promoting inflammation",
)
EMPTY = "empty"
"""HoC's label of a sentence without a hallmark"""
DECISIONS = ("yes", "no", "maybe")
HOC_OPENING = "the type of this document is"
PUBMEDQA_OPENING = "the answer to the question given the context is"


@dataclass(frozen=True)
class Document:
    """One document with what a model has to write about it."""

    identifier: str
    source: str
    target: str
    gold: frozenset[Any]
    """relations (of ids in BC5CDR), hallmarks, or the one decision"""
    chemicals: Mapping[str, str] = field(default_factory=dict)
    """BC5CDR: MeSH id by name as it stands in this document"""
    diseases: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> NameTable:
        """BC5CDR: of this document's own names."""
        return NameTable(self.chemicals, self.diseases, exact=False)


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


@dataclass(frozen=True)
class Format:
    """How the files of a task are read."""

    title: str
    """as its authors write it"""
    extension: str
    read: Callable[[Path], tuple[list[Document], int]]
    """documents, and how many had nothing stated about them"""
    source_tokens: int
    """BioGPT's --max-source-positions"""
    new_tokens: int
    """what BioGPT's 1,024 positions leave of source and soft prompt for the answer"""
    template: Template | None = None
    has_ids: bool = True
    """whether its files name the documents"""
    known_fault: str = ""


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


def _read_bc5cdr(file: Path) -> tuple[list[Document], int]:
    documents, without = [], 0
    for identifier, record in _records(file, ("title", "abstract", "relations", "chemical2id", "disease2id")):
        chemicals, diseases = longest_names(record["chemical2id"]), longest_names(record["disease2id"])
        relations, gold = [], set()
        for relation in record["relations"] or []:
            chemical, disease = (_text(relation, key, file, identifier) for key in ("chemical", "disease"))
            if chemical not in chemicals or disease not in diseases:
                raise InputError(
                    f"{file}: document {identifier} relates {chemical} to {disease}, but its chemical2id or "
                    "disease2id has no name of one of them"
                )
            relations.append(Relation(chemicals[chemical], diseases[disease], ""))
            gold.add(Relation(chemical, disease, ""))
        if not relations:
            without += 1
            continue
        source, target = _article(record, file, identifier), target_text(relations, BC5CDR)
        documents.append(
            Document(identifier, source, target, frozenset(gold), record["chemical2id"], record["disease2id"])
        )
    return documents, without


def _read_kd_dti(file: Path) -> tuple[list[Document], int]:
    return _read_interactions(file, ("title", "abstract", "triples"), _article)


def _read_ddi(file: Path) -> tuple[list[Document], int]:
    def source(record: Mapping[str, Any], file: Path, identifier: str) -> str:
        return _text(record, "abstract", file, identifier).strip().replace("\n", " ").lower()

    return _read_interactions(file, ("abstract", "triples"), source)


def _read_interactions(
    file: Path, keys: Sequence[str], make_source: Callable[[Mapping[str, Any], Path, str], str]
) -> tuple[list[Document], int]:
    documents, without = [], 0
    for identifier, record in _records(file, keys):
        source = make_source(record, file, identifier)
        triples = [
            Relation(*(_text(triple, key, file, identifier) for key in ("drug", "target", "interaction")))
            for triple in record["triples"] or []
        ]
        if not triples:
            without += 1
            continue
        # As the authors sort: by where the drug, in its own case, stands in the lower-cased text; -1 where it does not.
        relations = [Relation(*map(str.lower, triple)) for triple in sorted(triples, key=lambda t: source.find(t.head))]
        documents.append(Document(identifier, source, target_text(relations, INTERACTION), frozenset(relations)))
    return documents, without


def _read_hoc(file: Path) -> tuple[list[Document], int]:
    documents = []
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue  # in BioGPT's test.tsv every other line
        sentence, tab, label = line.partition("\t")
        sentence, label = sentence.strip(), label.strip()
        if not tab or not sentence or not label:
            raise InputError(f"{file}, line {number}: a sentence, a tab and its labels are needed")
        labels = [one.strip() for one in label.split("|")]
        for one in labels:
            if one not in HALLMARKS and one != EMPTY:
                raise InputError(f"{file}, line {number}: {one!r} is none of HoC's labels")
        source = sentence if sentence.endswith(".") else sentence + "."
        documents.append(Document(f"line-{number}", source, f"{HOC_OPENING} {label}.", frozenset(labels)))
    return documents, 0


def _read_pubmedqa(file: Path) -> tuple[list[Document], int]:
    documents = []
    for identifier, record in _records(file, ("QUESTION", "CONTEXTS", "final_decision")):
        question, decision = (_text(record, key, file, identifier) for key in ("QUESTION", "final_decision"))
        contexts = record["CONTEXTS"]
        if not isinstance(contexts, list) or not contexts or not all(isinstance(one, str) for one in contexts):
            raise InputError(f"{file}: CONTEXTS of {identifier} is not a list of texts")
        if decision not in DECISIONS:
            raise InputError(f"{file}: final_decision of {identifier} is {decision!r}, not yes, no or maybe")
        context = re.sub(r"\s+", " ", " ".join(context.strip() for context in contexts))
        source = f"question: {question.strip()} context: {context.strip()}"
        documents.append(Document(identifier, source, f"{PUBMEDQA_OPENING} {decision}.", frozenset([decision])))
    return documents, 0


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
        for name, decision in _object(file).items():
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


def _article(record: Mapping[str, Any], file: Path, identifier: str) -> str:
    """Title and abstract as the authors join them, in lower case."""
    title, abstract = _text(record, "title", file, identifier), record["abstract"]
    if not isinstance(abstract, str):  # a few of KD-DTI are empty
        raise InputError(f"{file}: abstract of {identifier} is not a text")
    between = " " if re.search(r"\W$", title) else ". "
    return f"{title}{between}{abstract}".lower().strip()


def _records(file: Path, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for identifier, record in _object(file).items():
        missing = [key for key in keys if not isinstance(record, dict) or key not in record]
        if missing:
            raise InputError(f"{file}: {identifier} has no {', '.join(missing)}; is this another task's file?")
        for key in ("relations", "triples"):
            value = record.get(key)
            if value is not None and not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
                raise InputError(f"{file}: {key} of {identifier} is not a list of objects")
        for key in ("chemical2id", "disease2id"):
            if not isinstance(record.get(key, {}), dict):
                raise InputError(f"{file}: {key} of {identifier} is not an object of ids by name")
        yield identifier, record


def _text(record: Mapping[str, Any], key: str, file: Path, identifier: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{file}: {key} of {identifier} is empty or not a text")
    return value


def _object(file: Path) -> dict[str, Any]:
    """A JSON object whose keys occur once each."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = [key for key, number in Counter(key for key, _ in pairs).items() if number > 1]
        if repeated:
            raise InputError(f"{file}: {repeated[0]!r} occurs more than once in the same object")
        return dict(pairs)

    try:
        value = json.loads(_content(file), object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise InputError(f"{file} is not valid JSON ({error}); restore it from where it came") from None
    if not isinstance(value, dict):
        raise InputError(f"{file} is not a JSON object of documents by id")
    return value


def _lines(file: Path) -> list[str]:
    return _content(file).split("\n")  # sentences may contain U+2028


def _content(file: Path) -> str:
    try:
        content = file.read_bytes()
        return (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None


FORMATS = {
    "bc5cdr": Format("BC5CDR", "json", _read_bc5cdr, 640, 375, BC5CDR),
    "kd_dti": Format("KD-DTI", "json", _read_kd_dti, 640, 375, INTERACTION),
    "ddi": Format("DDI", "json", _read_ddi, 640, 375, INTERACTION),
    "hoc": Format(
        "HoC", "tsv", _read_hoc, 900, 123, has_ids=False, known_fault=" (BioGPT ships HoC with valid.tsv = test.tsv)"
    ),
    "pubmedqa": Format("PubMedQA", "json", _read_pubmedqa, 900, 32),
}
