"""What a model was trained on, as texts: documents of token shards, or questions and answers of question shards."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from align import question_shards
from data_shards import shards
from data_shards.inspect import record_of, tokenizer_of
from data_shards.tokens import Tokenizer
from job import manifest
from job.files import read_json


class TrainingTexts(Protocol):
    """The training split of a finished build."""

    directory: Path

    def sizes(self) -> np.ndarray:
        """Bytes that each text takes, about: int64 [texts]."""

    def text(self, number: int) -> str:
        """The text of that number, from 0."""

    def identifier(self, number: int) -> str:
        """What its record calls it."""


def open_texts(directory: Path, tokenizer: Path | None = None) -> TrainingTexts:
    """The training texts of an output of `data_shards build` or `align build`.

    Args:
        directory: the build's output.
        tokenizer: of token shards, where it is not where their manifest says.

    Raises `InputError` where the directory is neither, or where the tokenizer is missing or not theirs.
    """
    file = directory / manifest.NAME
    body = read_json(file) if file.is_file() else None
    if isinstance(body, dict) and body.get("stage") == question_shards.STAGE:
        return Questions(directory)
    return Documents(directory, tokenizer)


class Documents:
    """The training documents of token shards, decoded one by one."""

    def __init__(self, directory: Path, tokenizer: Path | None) -> None:
        self.directory = directory
        self._shards = shards.ShardSet(directory, "train")
        self._tokenizer: Tokenizer = tokenizer_of(self._shards, tokenizer)

    def sizes(self) -> np.ndarray:
        """Bytes of the documents' tokens: int64 [documents]."""
        return self._shards.lengths().astype(np.int64) * self._shards.dtype.itemsize

    def text(self, number: int) -> str:
        """A document's text, decoded from its tokens."""
        return self._tokenizer.decode(self._shards[number])

    def identifier(self, number: int) -> str:
        """The id in a document's record."""
        return str(record_of(self._shards, number)[0]["id"])


class Questions:
    """The training questions of question shards, each with its answer."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._questions = question_shards.QuestionSet(directory, "train")

    @cached_property
    def _mean_size(self) -> int:
        return max(1, sum(info.bytes for info in self._questions.infos) // max(1, len(self._questions)))

    def sizes(self) -> np.ndarray:
        """Mean bytes of a question: int64 [questions]."""
        return np.full(len(self._questions), self._mean_size, np.int64)

    def text(self, number: int) -> str:
        """A question and its answer."""
        question = self._questions[number]
        return f"{question.question}\n{question.answer}"

    def identifier(self, number: int) -> str:
        """The question's id."""
        return str(self._questions[number].id)
