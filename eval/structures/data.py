"""Questions about structures as suites take them: the test split of an `align build`, and its training split."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from align.question_shards import QuestionSet
from align.questions import Question
from job import manifest
from job.errors import InputError
from job.files import sha256_file


@dataclass(frozen=True)
class StructureSet:
    """The test questions of one data set."""

    directory: Path
    kind: str
    """of source, as `align build` names it: pubchemqa, uniprotqa, chebi20, chemblqa, questions"""
    questions: list[Question]
    made_by: dict[str, Any]
    """which questions these are"""

    @property
    def name(self) -> str:
        """Its directory's."""
        return self.directory.resolve().name

    @cached_property
    def training(self) -> list[Question]:
        """The training questions, read when they are first needed."""
        return list(QuestionSet(self.directory, "train"))


def read_set(directory: Path, limit: int, seed: int) -> StructureSet:
    """The test questions of a finished `align build`: all of them, or `limit` of them drawn by `seed`, in its order.

    Raises `InputError` where the directory is no such build, its test split is empty, an answer is empty, or two
    questions have the same id.
    """
    built = QuestionSet(directory, "test")
    questions: list[Question] = list(built)
    if not questions:
        raise InputError(f"{directory} has no test questions; build it with --test files or --test-fraction above 0")
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise InputError(f"{directory}: two test questions have the id {question.id!r}; build the questions again")
        if not question.answer.strip():
            raise InputError(f"{directory}: test question {question.id!r} has no answer; build the questions again")
        seen.add(question.id)
    numbers = choose(len(questions), limit, seed)
    made_by: dict[str, Any] = {
        "manifest_sha256": sha256_file(Path(directory) / manifest.NAME),
        "split": "test",
        "questions": len(numbers),
        "of": len(questions),
    }
    if len(numbers) < len(questions):
        made_by["drawn_by_seed"] = seed
    kind = built.manifest.get("config", {}).get("kind", "questions")
    return StructureSet(Path(directory), kind, [questions[number] for number in numbers], made_by)


def read_sets(directories: Sequence[Path], limit: int, seed: int) -> list[StructureSet]:
    """`read_set` of each; raises `InputError` where two have the same name."""
    sets = [read_set(directory, limit, seed) for directory in directories]
    check_names([one.name for one in sets])
    return sets


def check_names(names: Sequence[str]) -> None:
    """Raise `InputError` where two data sets have the same name, which tables could not tell apart."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"--data: two data sets are called {twice}; rename the directory or file of one")


def choose(count: int, limit: int, seed: int) -> list[int]:
    """Numbers of the items to take, in order: all, or `limit` of them drawn by `seed`."""
    if not limit or count <= limit:
        return list(range(count))
    return sorted(random.Random(seed).sample(range(count), limit))


def drawn_note(made_by: dict[str, Any]) -> list[str]:
    """A sentence, where not all items are asked."""
    if made_by["questions"] == made_by["of"]:
        return []
    return [f"{made_by['questions']:,} of {made_by['of']:,} test items, drawn by seed {made_by['drawn_by_seed']}."]
