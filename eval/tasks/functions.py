"""What the YAML files beside this one call: rows from the published files, prompts, and scores per item.

The files lie wherever the environment variable BIOMEDGPT_QA_DATA says (several directories: separated by ":"), or
lm-eval's `--metadata '{"data": "DIR"}'`. Further metadata: `held_out` (rows at the end of the scored file that become
examples where the set has no other file) and `example_seed` (examples are drawn with it, not the first ones).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.qa import prompts
from eval.qa.answer_parser import parse
from eval.qa.files import LETTERS, Question
from eval.qa.questions import read_set
from eval.trust.statistics import macro_f1
from job.errors import InputError

if TYPE_CHECKING:
    from datasets import DatasetDict

DATA_VARIABLE = "BIOMEDGPT_QA_DATA"


def load(
    question_set: str,
    data: str | Sequence[str] | None = None,
    held_out: int = 0,
    example_seed: int | None = None,
    **other: Any,
) -> DatasetDict:
    """The rows of a set as lm-eval takes them: split `test`, and `examples` of which the first are shown.

    Args:
        question_set: one of `eval.qa.questions.OFFICIAL_ROWS`.
        data: directories; without, the environment variable tells them.
        held_out: see `eval.qa.questions.read_set`.
        example_seed: of the order of the examples; None keeps the file's.
        other: what lm-eval hands to every data set, such as the model's arguments.

    Raises `InputError`.
    """
    from datasets import Dataset, DatasetDict

    where = data or os.environ.get(DATA_VARIABLE)
    if not where:
        raise InputError(f"set {DATA_VARIABLE} to the directory of the question files, or give --metadata data")
    directories = [Path(one) for one in (where.split(os.pathsep) if isinstance(where, str) else where)]
    found = read_set(question_set, directories, int(held_out))
    shown = found.shown(None if example_seed is None else int(example_seed))
    return DatasetDict(
        {
            "test": Dataset.from_list([to_row(question) for question in found.questions]),
            "examples": Dataset.from_list([to_row(question) for question in shown]),
        }
    )


def to_row(question: Question) -> dict[str, Any]:
    """A question as lm-eval's `doc`."""
    return {
        "id": question.id,
        "context": question.context,
        "question": question.question,
        "options": list(question.options),
        "gold": question.gold,
    }


def to_question(row: dict[str, Any]) -> Question:
    """The opposite of `to_row`."""
    return Question(row["id"], row["context"], row["question"], tuple(row["options"]), row["gold"])


def letters_prompt(row: dict[str, Any]) -> str:
    """The question with its options by letter."""
    return prompts.prompt(to_question(row), "letters")


def options_prompt(row: dict[str, Any]) -> str:
    """The question without its options."""
    return prompts.prompt(to_question(row), "options")


def generate_prompt(row: dict[str, Any]) -> str:
    """The question as it is asked where the answer is to be written."""
    return prompts.prompt(to_question(row), "generate")


def letters(row: dict[str, Any]) -> list[str]:
    """A, B, C ..., one per option."""
    return list(LETTERS[: len(row["options"])])


def generate_target(row: dict[str, Any]) -> str:
    """The right answer as examples show it."""
    return prompts.answers(to_question(row), "generate")[row["gold"]]


def chosen(log_likelihoods: Sequence[float], lengths: Sequence[int] | None = None) -> int:
    """The likeliest of several answers, per character where their lengths are given; the first of equals."""
    values = np.asarray(log_likelihoods, np.float64)
    return int(np.argmax(values if lengths is None else values / np.asarray(lengths, np.float64)))


def letters_results(row: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Scores of one item of which the letters' (or words') log-likelihoods are given."""
    answer = chosen([nats for nats, _ in results])
    return {"acc": float(answer == row["gold"]), "macro_f1": (row["gold"], answer, len(row["options"]))}


def options_results(row: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Likewise of the options' texts, also per character of the text, as lm-eval's `acc_norm`."""
    nats = [value for value, _ in results]
    normalised = chosen(nats, [len(option) for option in row["options"]])
    return letters_results(row, results) | {"acc_norm": float(normalised == row["gold"])}


def generate_results(row: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Scores of one item of which the generated text is given; unparsed answers count as wrong."""
    answer, count = parse(results[0], row["options"]), len(row["options"])
    return {
        "acc": float(answer == row["gold"]),
        "unparsed": float(answer is None),
        "macro_f1": (row["gold"], count if answer is None else answer, count),
    }


def mean_f1(answers: Sequence[tuple[int, int, int]]) -> float:
    """Macro-F1 over right answer, given one and number of options of each item, for lm-eval's table."""
    classes = max(count for _, _, count in answers)
    confusion = np.zeros((classes, classes + 1), np.int64)
    for gold, answer, count in answers:
        confusion[gold, answer if answer < count else classes] += 1
    return macro_f1(confusion)
