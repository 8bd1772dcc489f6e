"""Question sets as they were published: which files hold them, what is scored, and what may be shown as examples."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.qa import pubmedqa
from eval.qa.files import (
    Question,
    first_json_line,
    read_medmcqa,
    read_medqa,
    read_mmlu,
    read_pubmedqa,
    read_pubmedqa_truth,
)
from job.errors import InputError
from job.files import sha256_file

# The nine medical subjects of Meditron (Chen et al., 2023, section 5.1), with the rows of their official test files.
# (It counts 1,862 in all, nine fewer than these: a CSV without a header, read as one with, loses a row per file.)
MMLU_ROWS = {
    "anatomy": 135,
    "clinical_knowledge": 265,
    "college_biology": 144,
    "college_medicine": 173,
    "high_school_biology": 310,
    "medical_genetics": 100,
    "nutrition": 306,
    "professional_medicine": 272,
    "virology": 166,
}
OFFICIAL_ROWS = {
    "medmcqa": 4183,  # its dev file: the labels of its test file are hidden
    "pubmedqa": 500,
    "medqa_4_options": 1273,
    "medqa_5_options": 1273,
    **{f"mmlu_{subject}": rows for subject, rows in MMLU_ROWS.items()},
}
"""The sets by name, with the rows of the published file that is scored."""

HELD_OUT = 20
"""rows taken from the end of a test file, for examples, where no other file of the set is at hand"""

MOST_SHOWN = 64
"""examples before a question"""

_SCORED = {"medmcqa": ("dev", "")}
_EXAMPLES = {"medmcqa": ("train",), "medqa": ("train", "dev"), "mmlu": ("dev", "val")}
_SPLIT_WORDS = {"train": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev", "test": "test"}
_TOLERATED = 0.01
"""share of a training file's rows that may be wrong: published ones have a few without text"""
_OTHER_LANGUAGES = {"taiwan", "mainland"}  # of MedQA, beside US
_NAMED = {"pubmedqa": "pub_?med_?qa|pqal|pqaa|pqau", "medmcqa": "med_?mcqa", "medqa": "med_?qa"}
"""by publication, how names of directories and files begin that are its own; in lower case"""
_WHERE = {
    "medmcqa": "dev.json in a directory named medmcqa",
    "pubmedqa": "ori_pqal.json (and test_ground_truth.json), or test_set.json in a directory named pubmedqa",
    "medqa": "test.jsonl in a directory named like medqa",
    "mmlu": "<subject>_test.csv",
}


@dataclass(frozen=True)
class QuestionSet:
    """The rows that are scored, and those that may be learnt from."""

    name: str
    """as asked for; `pubmedqa` becomes `pubmedqa_as_given` where the scored ids are not the official test's"""
    questions: tuple[Question, ...]
    """what is scored, in the file's order"""
    examples: tuple[Question, ...]
    """rows with answers of which none is scored: the training rows, or held-out ones"""
    files: dict[str, str]
    """SHA-256 by name of the files read"""
    notes: list[str] = field(default_factory=list)
    """what a reader of a number over these rows has to know"""
    scope: str = ""
    """of `notes` the one that tells what all of the scored rows are"""

    def notes_on(self, limit: int) -> list[str]:
        """What a reader has to know of a number over the first `limit` rows; 0: over all."""
        if not 0 < limit < len(self.questions):
            return self.notes
        return [
            *(note for note in self.notes if note != self.scope),
            f"only the first {limit:,} of {len(self.questions):,} rows are scored (--limit), so the number is not "
            "comparable with published ones",
        ]

    def shown(self, seed: int | None = None) -> tuple[Question, ...]:
        """Up to `MOST_SHOWN` examples, the file's first or drawn ones; the first N of them stand before a question."""
        count = min(MOST_SHOWN, len(self.examples))
        return self.examples[:count] if seed is None else tuple(random.Random(seed).sample(self.examples, count))


def found_sets(directories: Sequence[Path]) -> list[str]:
    """Names of the sets whose scored rows lie somewhere under the directories."""
    files = _find(directories)
    return [name for name in OFFICIAL_ROWS if _scored_file(name, files) is not None]


def read_set(name: str, directories: Sequence[Path], held_out: int = 0) -> QuestionSet:
    """Read a set from wherever its files lie under the directories, and check every row.

    Args:
        name: a key of `OFFICIAL_ROWS`.
        directories: searched with all that is below them.
        held_out: this many rows from the end of the scored ones become examples, where the set has no other rows.

    Raises `InputError` where a file is missing, ambiguous or has a wrong row.
    """
    if name not in OFFICIAL_ROWS:
        raise InputError(f"there is no question set {name}; there are {', '.join(OFFICIAL_ROWS)}")
    files = _find(directories)
    if _scored_file(name, files) is None:
        places = ", ".join(str(directory) for directory in directories)
        raise InputError(f"no file of {name} lies under {places}; it is found as {_WHERE[_family(name)]}")
    read = _read_pubmedqa if name == "pubmedqa" else _read_split
    found = read(name, files)
    if held_out and not found.examples:
        if held_out >= len(found.questions):
            raise InputError(
                f"{name} has {len(found.questions)} rows and no others for examples; {held_out} cannot be held out"
            )
        found = QuestionSet(
            found.name,
            found.questions[:-held_out],
            found.questions[-held_out:],
            found.files,
            [
                *found.notes,
                f"the last {held_out} rows serve as examples and are not scored: no training file was given",
            ],
        )
    questions = len(found.questions)
    final_name, scope = found.name, ""
    if name == "pubmedqa":
        final_name, scope = _pubmedqa_identity([question.id for question in found.questions])
    elif questions != OFFICIAL_ROWS[name]:
        scope = f"{questions:,} rows are scored; the published file has {OFFICIAL_ROWS[name]:,}"
    notes = [*found.notes, *([scope] if scope else [])]
    return QuestionSet(final_name, found.questions, found.examples, found.files, notes, scope)


Files = dict[tuple[str, str], list[Path]]
"""by name of the set and split: train, dev, val, test or, where a file's name tells no split, empty; of PubMedQA also
`truth` and `test set`"""


def _find(directories: Sequence[Path]) -> Files:
    files: Files = {}
    for directory in directories:
        if not directory.is_dir():
            raise InputError(f"{directory} is not a directory")
        for path in _walk(directory):
            kind = _kind(
                path, [part.lower() for part in (directory.resolve().name, *path.relative_to(directory).parts)]
            )
            if kind and not any(path.samefile(known) for known in files.get(kind, [])):
                files.setdefault(kind, []).append(path)
    return files


def _walk(directory: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith((".json", ".jsonl", ".csv")):
                yield Path(folder) / name


def _kind(path: Path, parts: list[str]) -> tuple[str, str] | None:
    """Which set and split a file is of, by its name, its directories' names and, for MedQA, its first row."""
    name, folders = parts[-1], parts[:-1]
    if match := re.fullmatch(rf"({'|'.join(MMLU_ROWS)})_(test|dev|val)\.csv", name):
        return f"mmlu_{match[1]}", match[2]
    if name == "test_ground_truth.json":
        return "pubmedqa", "truth"
    if re.fullmatch(r"ori_pqal\w*\.json", name):
        return "pubmedqa", "test"
    family = next((found for part in reversed(parts) if (found := _family_of(part))), None)
    if name == "test_set.json" and (family == "pubmedqa" or path.with_name("test_ground_truth.json").is_file()):
        return "pubmedqa", "test set"
    if not name.endswith((".json", ".jsonl")):
        return None
    words = [_SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", path.stem.lower()) if word in _SPLIT_WORDS]
    split = words[-1] if words else ""
    if family not in ("medmcqa", "medqa"):
        return None
    row = first_json_line(path)
    keys = row.keys() if isinstance(row, dict) else ()
    if not split and "question" not in keys:  # neither its name nor its first line makes it a file of questions
        return None
    if family == "medmcqa":
        return "medmcqa", split
    if _OTHER_LANGUAGES & set(folders) or "metamap_extracted_phrases" in folders:
        return None
    options = row["options"] if "options" in keys else None
    return f"medqa_{5 if isinstance(options, dict) and len(options) == 5 else 4}_options", split


def _family_of(part: str) -> str | None:
    """The publication that a directory's or a file's name tells, where one of its words begins with the name.

    `medqa_us_4options` and `MedQA-USMLE` are MedQA; `pubmedqa`, which has the same letters, is not.
    """
    for family, names in _NAMED.items():
        if re.search(rf"(?<![a-z])(?:{names})", part):
            return family
    return None


def _family(name: str) -> str:
    return name.partition("_")[0]


def _scored_file(name: str, files: Files) -> Path | None:
    for split in _SCORED.get(name, ("test", "", "test set")):
        if found := files.get((name, split)):
            return found[0]
    return None


def _only(name: str, split: str, files: Files) -> Path:
    found = files[name, split]
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} both hold the {split or 'test'} rows of {name}; give one of them")
    return found[0]


def _read_split(name: str, files: Files) -> QuestionSet:
    scored_split = next(split for split in _SCORED.get(name, ("test", "")) if (name, split) in files)
    example_split = next((split for split in _EXAMPLES[_family(name)] if (name, split) in files), None)
    path = _only(name, scored_split, files)
    scored, notes = _read_file(name, path)
    checksums = {path.name: sha256_file(path)}
    examples: list[Question] = []
    if example_split is not None:
        path = _only(name, example_split, files)
        rejected: list[str] = []
        examples, more = _read_file(name, path, rejected)
        if len(rejected) > _TOLERATED * len(examples):
            raise InputError(rejected[0])
        if rejected:
            more.append(f"{len(rejected)} rows of {path.name} were not used as examples: {rejected[0]}")
        notes += more
        checksums[path.name] = sha256_file(path)
    if twice := {question.id for question in scored} & {question.id for question in examples}:
        raise InputError(
            f"{name} has the id {min(twice)} both among the rows that are scored and among those for training"
        )
    return QuestionSet(name, tuple(scored), tuple(examples), checksums, notes)


def _read_file(name: str, path: Path, rejected: list[str] | None = None) -> tuple[list[Question], list[str]]:
    if name == "medmcqa":
        questions, note = read_medmcqa(path, rejected)
        return questions, [note]
    return (read_medqa(path, rejected) if name.startswith("medqa") else read_mmlu(path)), []


def _read_pubmedqa(name: str, files: Files) -> QuestionSet:
    rows: dict[str, Question] = {}
    checksums: dict[str, str] = {}
    # The published file with all rows, or files that were made of it; else its test rows alone.
    for path in files.get((name, "test")) or files[name, "test set"]:
        checksums[path.name] = sha256_file(path)
        for question in read_pubmedqa(path):
            if question.id in rows:
                raise InputError(f"{path} has the id {question.id}, which another file has too; give one of them")
            rows[question.id] = question
    labels = {name: pubmedqa.LABELS[question.gold] for name, question in rows.items()}
    test = list(rows)
    if (name, "truth") in files:
        path = _only(name, "truth", files)
        checksums[path.name] = sha256_file(path)
        truth = read_pubmedqa_truth(path)
        if missing := truth.keys() - rows.keys():
            raise InputError(f"{path} has {len(missing)} ids without a question, such as {min(missing)}")
        if wrong := [name for name, label in truth.items() if labels[name] != label]:
            raise InputError(f"{path} says {truth[wrong[0]]} for id {wrong[0]}, whose row says {labels[wrong[0]]}")
        test = [name for name in rows if name in truth]
    else:
        _, rebuilt = pubmedqa.official_split(labels)
        if pubmedqa.digest(rebuilt) == pubmedqa.OFFICIAL_TEST:
            test = [name for name in rows if name in set(rebuilt)]
    scored = set(test)
    return QuestionSet(
        name,
        tuple(rows[name] for name in test),
        tuple(question for name, question in rows.items() if name not in scored),
        checksums,
    )


def _pubmedqa_identity(ids: Sequence[str]) -> tuple[str, str]:
    """The name that the scored rows deserve, and what to say of them."""
    digest = pubmedqa.digest(ids)
    if digest == pubmedqa.OFFICIAL_TEST:
        return "pubmedqa", "the 500 rows are the official test, by id"
    half = ", the official cross-validation half by id" if digest == pubmedqa.OFFICIAL_CROSS_VALIDATION else ""
    return (
        "pubmedqa_as_given",
        f"{len(ids):,} rows were scored as given{half}; they are not the official test of 500, so the number is not "
        "comparable with published ones",
    )
