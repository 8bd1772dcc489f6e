"""The published file formats of multiple-choice question sets, each read into the same rows.

Every row is checked: a file with one wrong row is refused with a sentence that names the row, since a number over the
rest would be a number over something else. Of files that are only learnt from, wrong rows are left out and counted.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.qa.pubmedqa import LABELS
from job.errors import InputError

LETTERS = "ABCDE"


@dataclass(frozen=True)
class Question:
    """One question with the answers to choose from."""

    id: str
    """unique in its set: the file's own where it has one, else the file's name and the row's number from 1"""
    context: str
    """what is to be read before answering; empty in sets without"""
    question: str
    options: tuple[str, ...]
    gold: int
    """number of the right option, from 0"""
    meta: dict[str, str] = field(default_factory=dict)
    """what the file says of it beside, such as the subject"""


def read_medmcqa(path: Path, rejected: list[str] | None = None) -> tuple[list[Question], str]:
    """MedMCQA: one JSON object per line, though the file is called .json; and how its `cop` was counted.

    `cop`, the right option, counts from 1 in the original release and from 0 in the copy on the hub. The values tell:
    0 occurs in one and 4 in the other. Raises `InputError`; with `rejected`, wrong rows are described there instead.
    """
    rows = list(_json_lines(path, ("id", "question", "cop", "opa", "opb", "opc", "opd")))
    values = {row["cop"] for _, row in rows if isinstance(row["cop"], int)}
    first = 0 if 0 in values else 1
    if first == 0 and 4 in values:
        raise InputError(f"{path} has rows with cop 0 and rows with cop 4; it counts the four options from 0 or from 1")
    if first == 1 and 4 not in values:
        note = f"{path.name} has neither cop 0 nor cop 4; cop was taken to count from 1 as in the original release"
    else:
        note = f"cop counts from {first} in {path.name}" + ("" if first else ", as in the copy on the hub")
    questions = []
    for where, row in rows:
        with _reject(rejected):
            gold = row["cop"]
            if not isinstance(gold, int) or isinstance(gold, bool) or gold == -1:
                raise InputError(
                    f"{where} has no answer (cop is {gold!r}); the labels of MedMCQA's test file are hidden, its dev "
                    "file is what is scored"
                )
            if not first <= gold < first + 4:
                raise InputError(f"{where} names option {gold}, which does not exist; cop is {first} to {first + 3}")
            texts = tuple(_text(row, f"op{letter}", where) for letter in "abcd")
            meta = {key: str(row.get(key) or "") for key in ("subject_name", "topic_name", "choice_type")}
            name, question = _text(row, "id", where), _text(row, "question", where)
            questions.append(Question(name, "", question, texts, gold - first, meta))
    return _checked(path, questions), note


def read_medqa(path: Path, rejected: list[str] | None = None) -> list[Question]:
    """MedQA (USMLE), with four or with five options: JSON lines with `question`, `options` by letter, `answer_idx`.

    Raises `InputError`; with `rejected`, wrong rows are described there instead.
    """
    questions: list[Question] = []
    for number, (where, row) in enumerate(_json_lines(path, ("question", "options", "answer_idx")), start=1):
        with _reject(rejected):
            options = row["options"]
            if not isinstance(options, dict) or tuple(sorted(options)) not in (tuple(LETTERS[:4]), tuple(LETTERS)):
                raise InputError(f"{where} has not the options A to D or A to E")
            letters = sorted(options)
            if questions and len(letters) != len(questions[0].options):
                raise InputError(f"{where} has {len(letters)} options, rows before it {len(questions[0].options)}")
            gold = _letter(row["answer_idx"], len(letters), where)
            texts = tuple(_text(options, letter, where) for letter in letters)
            if "answer" in row and str(row["answer"]).strip() != texts[gold]:
                raise InputError(
                    f"{where} contradicts itself: its answer_idx {letters[gold]} is not its answer {row['answer']!r}"
                )
            meta = {"meta_info": str(row.get("meta_info") or "")}
            question = _text(row, "question", where)
            questions.append(Question(f"{path.stem}-{number}", "", question, texts, gold, meta))
    return _checked(path, questions)


def read_mmlu(path: Path) -> list[Question]:
    """MMLU: CSV without a header, question, four options and the letter of the right one. Raises `InputError`."""
    questions = []
    with _opened(path, newline="") as handle:
        try:
            for number, row in enumerate(csv.reader(handle, strict=True), start=1):
                where = f"{path}, row {number},"
                if len(row) != 6:
                    raise InputError(
                        f"{where} has {len(row)} columns; MMLU's files have six: question, A, B, C, D, letter"
                    )
                texts = [_text(dict(enumerate(row)), column, where) for column in range(5)]
                gold = _letter(row[5], 4, where)
                questions.append(Question(f"{path.stem}-{number}", "", texts[0], tuple(texts[1:]), gold))
        except csv.Error as error:
            raise InputError(f"{path} is not a CSV file: {error}") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    return _checked(path, questions)


def read_pubmedqa(path: Path) -> list[Question]:
    """PubMedQA: one JSON object of rows by PubMed id, with `QUESTION`, `CONTEXTS` and `final_decision`.

    The question is asked of its abstract without the conclusion, the published "reasoning-required" setting; the long
    answer is not shown. Raises `InputError`.
    """
    rows = _json_object(path)
    questions = []
    for name, row in rows.items():
        where = f"{path}, id {name},"
        _need_keys(row, ("QUESTION", "CONTEXTS", "final_decision"), where)
        contexts = row["CONTEXTS"]
        if not isinstance(contexts, list) or not contexts or not all(isinstance(text, str) for text in contexts):
            raise InputError(f"{where} has no CONTEXTS, a list of paragraphs")
        decision = row["final_decision"]
        if decision not in LABELS:
            raise InputError(f"{where} has the final_decision {decision!r}; it is one of yes, no and maybe")
        meta = {"year": str(row.get("YEAR") or "")}
        context = "\n".join(text.strip() for text in contexts)
        questions.append(Question(name, context, _text(row, "QUESTION", where), LABELS, LABELS.index(decision), meta))
    return _checked(path, questions)


def read_pubmedqa_truth(path: Path) -> dict[str, str]:
    """PubMedQA's test_ground_truth.json: yes, no or maybe by PubMed id. Raises `InputError`."""
    truth = _json_object(path)
    for name, label in truth.items():
        if label not in LABELS:
            raise InputError(f"{path}, id {name}, has the label {label!r}; it is one of yes, no and maybe")
    return truth


@contextlib.contextmanager
def _reject(rejected: list[str] | None) -> Iterator[None]:
    """Let a wrong row's error pass, or keep its words where it may be left out."""
    try:
        yield
    except InputError as error:
        if rejected is None:
            raise
        rejected.append(str(error))


def first_json_line(path: Path) -> Any:
    """What the first line holds, or None where that is not JSON: enough to tell formats apart."""
    try:
        with path.open(encoding="utf-8") as handle:
            return json.loads(handle.readline())
    except (OSError, ValueError):
        return None


def _opened(path: Path, newline: str | None = None) -> Any:
    try:
        return path.open(encoding="utf-8", newline=newline)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _json_lines(path: Path, keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's object, with words that say where it is; blank lines at the end are nothing."""
    with _opened(path, newline="\n") as handle:  # newline: only that ends a line, no other separator of Unicode's
        try:
            blank = 0
            for number, line in enumerate(handle, start=1):
                if not line.strip():
                    blank = blank or number
                    continue
                if blank:
                    raise InputError(f"{path}, line {blank}, is blank, and rows follow; each line is one object")
                where = f"{path}, line {number},"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"{where} is not JSON ({error.msg}); each line is one object") from None
                _need_keys(row, keys, where)
                yield where, row
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _json_object(path: Path) -> dict[str, Any]:
    with _opened(path) as handle:
        try:
            value = json.load(handle, object_pairs_hook=_no_key_twice(path))
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is not valid JSON ({error}); restore it from where it was published") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not one JSON object with the rows by PubMed id")
    return value


def _no_key_twice(path: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """For json.load, which would silently keep the last of two rows with one id."""

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            raise InputError(f"{path} has the id {next(name for name in names if names.count(name) > 1)} twice")
        return value

    return check


def _need_keys(row: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object")
    missing = [key for key in keys if key not in row]
    if missing:
        raise InputError(f"{where} has no {', '.join(missing)}; it has {', '.join(map(str, row)) or 'nothing'}")


def _text(row: dict[Any, Any], key: Any, where: str) -> str:
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        name = f"column {key + 1}" if isinstance(key, int) else f"{key}"
        raise InputError(f"{where} has no text in {name}")
    return value.strip()


def _letter(value: Any, options: int, where: str) -> int:
    letter = str(value or "").strip()
    if not letter:
        raise InputError(f"{where} has no answer")
    if len(letter) != 1 or letter not in LETTERS[:options]:
        raise InputError(f"{where} names option {letter!r}, which does not exist; it has A to {LETTERS[options - 1]}")
    return LETTERS.index(letter)


def _checked(path: Path, questions: list[Question]) -> list[Question]:
    if not questions:
        raise InputError(f"{path} has no rows")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise InputError(f"{path} has the id {question.id} twice")
        seen.add(question.id)
    return questions
