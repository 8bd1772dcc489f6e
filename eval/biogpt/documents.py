"""The documents of BioGPT's tasks, read from the files of its authors and put into its templates.

Templates: microsoft/BioGPT, examples/*/rebuild_data.py; what is made here is what those scripts write. Documents
without relations are left out there, and here, but counted here.
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
from typing import Any

from eval.biogpt.relations import BC5CDR, INTERACTION, NameTable, Relation, Template, longest_names, target_text
from eval.qa.pubmedqa import LABELS
from job.errors import InputError

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
        if decision not in LABELS:
            raise InputError(f"{file}: final_decision of {identifier} is {decision!r}, not yes, no or maybe")
        context = re.sub(r"\s+", " ", " ".join(context.strip() for context in contexts))
        source = f"question: {question.strip()} context: {context.strip()}"
        documents.append(Document(identifier, source, f"{PUBMEDQA_OPENING} {decision}.", frozenset([decision])))
    return documents, 0


def _article(record: Mapping[str, Any], file: Path, identifier: str) -> str:
    """Title and abstract as the authors join them, in lower case."""
    title, abstract = _text(record, "title", file, identifier), record["abstract"]
    if not isinstance(abstract, str):  # a few of KD-DTI are empty
        raise InputError(f"{file}: abstract of {identifier} is not a text")
    between = " " if re.search(r"\W$", title) else ". "
    return f"{title}{between}{abstract}".lower().strip()


def _records(file: Path, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for identifier, record in read_object(file).items():
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


def read_object(file: Path) -> dict[str, Any]:
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
