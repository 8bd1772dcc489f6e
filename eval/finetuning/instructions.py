"""The rows that a task is learnt from, worded exactly as evaluation words it, and how the rest is scored."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.biogpt import data as biogpt_data
from eval.finetuning.instruction_shards import Row
from eval.qa import prompts
from eval.qa.files import LETTERS, Question, read_medmcqa, read_medqa, read_mmlu, read_pubmedqa
from eval.qa.questions import OFFICIAL_ROWS, QuestionSet, read_set
from job.errors import InputError
from job.files import sha256_file, write_text

BIOGPT = "biogpt-"
TASKS = (*OFFICIAL_ROWS, *(BIOGPT + name for name in biogpt_data.FORMATS))
"""What can be learnt: the question sets, and BioGPT's tasks."""


@dataclass
class Instructions:
    """What is learnt, and how what was learnt is scored."""

    rows: list[Row]
    inputs: list[dict[str, str]]
    """the files that the rows come from: path and SHA-256"""
    scoring: list[str]
    """words of `python -m eval MODEL ...` but `--out`"""
    notes: list[str]
    """what a reader of the score has to know of the rows"""


def read(
    task: str,
    directories: Sequence[Path],
    scoring: str,
    train_file: Path | None,
    hold_out: float,
    seed: int,
    divided: Path,
) -> Instructions:
    """Read and check a task's training rows.

    Args:
        task: one of `TASKS`.
        directories: where its published files lie.
        scoring: of question sets, as in suite `qa`.
        train_file: training rows of a question set, in the set's own format; None: the published training file.
        hold_out: share of a question set's scored rows that are learnt from instead (0: none), drawn by `seed`.
        seed: of that draw.
        divided: directory that gets the two parts, as files of the set's format, when rows are held out.

    Raises `InputError` where files are missing or wrong, or there is nothing to learn from.
    """
    if task.startswith(BIOGPT):
        if train_file or hold_out:
            raise InputError(f"{task} is learnt from its published train split; leave out --train-file and --hold-out")
        return _biogpt(task.removeprefix(BIOGPT), directories)
    if train_file and hold_out:
        raise InputError("give --train-file or --hold-out, not both")
    chosen = read_set(task, directories)
    notes: list[str] = []
    if hold_out:
        chosen = _divide(task, chosen, hold_out, seed, divided)
        directories = [divided]
        notes.append(
            f"{len(chosen.examples):,} rows of the scored file, drawn by seed {seed}, were set aside to learn from; "
            f"scores are of the other {len(chosen.questions):,} alone: not comparable with published numbers"
        )
    if train_file:
        learnt = _read_file(task, train_file)
        inputs = [{"path": str(train_file), "sha256": sha256_file(train_file)}]
        notes.append(f"learnt from {train_file.name}, given by --train-file")
    else:
        learnt = list(chosen.examples)
        inputs = [{"path": name, "sha256": checksum} for name, checksum in chosen.files.items()]
    if not learnt:
        raise InputError(
            f"{task}: {', '.join(map(str, directories))} has no training rows; put the published training file there, "
            "name one by --train-file, or learn from a part of the scored rows by --hold-out 0.5"
        )
    learnt, note = _without_scored(learnt, chosen.questions)
    rows = [_row(question, scoring) for question in learnt]
    words = ["--suite", "qa", "--tasks", task, "--scoring", scoring, "--data", *map(str, directories)]
    return Instructions(rows, inputs, words, [*notes, *([note] if note else [])])


def _row(question: Question, scoring: str) -> Row:
    """As `eval.qa.measure` asks: PubMedQA's answers are words, whatever the scoring but `generate`."""
    style = scoring.partition("-")[0]
    if style != "generate" and prompts.is_decision(question):
        style = "words"
    answer = prompts.BEFORE_ANSWER + prompts.answers(question, style)[question.gold]
    return Row(question.id, prompts.prompt(question, style), answer)


def _without_scored(learnt: Sequence[Question], scored: Sequence[Question]) -> tuple[list[Question], str]:
    """Leave out rows that ask what is asked in the test, options in any order; and a note of how many."""

    def key(question: Question) -> str:
        words = [question.context, question.question, *sorted(question.options)]
        return hashlib.sha256("\n".join(" ".join(text.lower().split()) for text in words).encode()).hexdigest()

    asked = {key(question) for question in scored}
    kept = [question for question in learnt if key(question) not in asked]
    if not kept:
        raise InputError("every training row is also among the rows that are scored; give other files")
    left_out = len(learnt) - len(kept)
    return kept, f"{left_out:,} training rows that are also scored were left out" if left_out else ""


def _read_file(task: str, path: Path) -> list[Question]:
    if not path.is_file():
        raise InputError(f"--train-file {path} does not exist")
    if task == "medmcqa":
        return read_medmcqa(path)[0]
    if task == "pubmedqa":
        return read_pubmedqa(path)
    return read_medqa(path) if task.startswith("medqa") else read_mmlu(path)


def _divide(task: str, whole: QuestionSet, share: float, seed: int, directory: Path) -> QuestionSet:
    """Write a random part of the scored rows as training file, the rest as the file that is scored; read them back."""
    count = round(share * len(whole.questions))
    if not 0 < count < len(whole.questions):
        raise InputError(
            f"--hold-out {share:g} of {len(whole.questions)} rows leaves none to learn from or none to score"
        )
    chosen = set(random.Random(seed).sample(range(len(whole.questions)), count))
    learnt = [question for number, question in enumerate(whole.questions) if number in chosen]
    scored = [question for number, question in enumerate(whole.questions) if number not in chosen]
    folder = directory / ("medqa" if task.startswith("medqa") else task)
    if task == "pubmedqa":
        write_text(folder / "ori_pqal.json", _pubmedqa_text([*learnt, *scored]))
        truth = {question.id: question.options[question.gold] for question in scored}
        write_text(folder / "test_ground_truth.json", json.dumps(truth, indent=1) + "\n")
    elif task.startswith("mmlu_"):
        subject = task.removeprefix("mmlu_")
        write_text(folder / f"{subject}_dev.csv", _mmlu_text(learnt))
        write_text(folder / f"{subject}_test.csv", _mmlu_text(scored))
    else:
        text = _medmcqa_text if task == "medmcqa" else _medqa_text
        write_text(folder / "train.jsonl", text(learnt))
        write_text(folder / ("dev.jsonl" if task == "medmcqa" else "test.jsonl"), text(scored))
    found = read_set(task, [directory])
    if len(found.questions) != len(scored) or len(found.examples) != len(learnt):
        raise RuntimeError(f"{directory} does not hold the rows that were written")
    return found


def _medmcqa_text(questions: Sequence[Question]) -> str:
    lines = []
    for question in questions:
        options = {f"op{letter}": text for letter, text in zip("abcd", question.options, strict=True)}
        row = {"id": question.id, "question": question.question, "cop": question.gold + 1, **options, **question.meta}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def _medqa_text(questions: Sequence[Question]) -> str:
    lines = []
    for question in questions:
        row = {
            "question": question.question,
            "answer": question.options[question.gold],
            "options": dict(zip(LETTERS, question.options)),
            "answer_idx": LETTERS[question.gold],
            **question.meta,
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)


def _mmlu_text(questions: Sequence[Question]) -> str:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([question.question, *question.options, LETTERS[question.gold]] for question in questions)
    return text.getvalue()


def _pubmedqa_text(questions: Sequence[Question]) -> str:
    rows = {
        question.id: {
            "QUESTION": question.question,
            "CONTEXTS": question.context.split("\n"),
            "YEAR": question.meta["year"],
            "final_decision": question.options[question.gold],
        }
        for question in questions
    }
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def _biogpt(name: str, directories: Sequence[Path]) -> Instructions:
    found = [directory for directory in directories if biogpt_data.data_set(name, [directory], needed=[]) is not None]
    if not found:
        raise InputError(f"{', '.join(map(str, directories))} has no folder {name} with the files of BioGPT's task")
    data = biogpt_data.data_set(name, found, needed=("train", "test"))
    assert data is not None
    learnt = biogpt_data.training_rows(name, found[0])
    rows = [Row(f"{name}-{number}", *texts) for number, texts in enumerate(learnt, start=1)]
    file = data.splits["train"].file
    words = ["--suite", "biogpt", "--tasks", name, "--data", *map(str, directories)]
    return Instructions(rows, [{"path": str(file), "sha256": data.checksums[file.name]}], words, list(data.notes))
