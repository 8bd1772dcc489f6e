"""`python -m align controls MODEL_DIR DATA_DIR`: does the model use the structures it is given?

Each held-out answer is scored three times by the same model: with its own structure, with another question's, and with
another one's of like size. A model that reads structures finds the answer likelier with its own. The comparison is
paired, so it notices use of the structure long before any score of generated text does: one constant caption reaches
ROUGE-L 39 on ChEBI-20.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track

from align.answer import add_loading_options, load
from align.question_shards import QuestionSet
from align.questions import Question
from job.errors import InputError
from job.verbs import check_at_least

if TYPE_CHECKING:
    from align.model import AlignedModel


@dataclass(frozen=True)
class PairedTest:
    """Losses of the same answers with their own and with other structures."""

    name: str
    """which other structures"""
    rows: int
    own: float
    """nats per answer token with the own structures"""
    other: float
    """likewise with the others"""
    wins: float
    """share of the rows whose answer is likelier with its own structure; 0.5 is chance"""
    t: float
    """paired t of the difference in nats per token over rows; rows are taken as independent"""


def main(arguments: Sequence[str]) -> None:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="python -m align controls",
        description="Test whether a model uses the structures it is given: score each held-out answer with its own "
        "structure, with another question's, and with another one's of like size.",
        epilog="example: python -m align controls models/biomedgpt-10b questions/chebi20 --limit 1000\n\n"
        "A share of wins near 0.5 and a t near 0 mean that the structure is ignored.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="made by `align export`")
    parser.add_argument("data", type=Path, metavar="DATA_DIR", nargs="+", help="made by `align build`")
    parser.add_argument("--split", default="test", help="train, validation or test (default)")
    parser.add_argument("--limit", type=int, default=1000, help="questions per data set, chosen by --seed (0: all)")
    parser.add_argument("--token-budget", type=int, default=8192, help="padded tokens of a batch (default 8192)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and of the pairing")
    add_loading_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object per data set")
    options = parser.parse_args(arguments)

    check_at_least(options, limit=0, token_budget=1)
    sets = [(directory, QuestionSet(directory, options.split)) for directory in options.data]
    model = load(options)
    for directory, questions in sets:
        numbers = list(range(len(questions)))
        if options.limit and len(numbers) > options.limit:
            numbers = sorted(random.Random(options.seed).sample(numbers, options.limit))
        tests = structure_tests(model, [questions[number] for number in numbers], options.token_budget, options.seed)
        if options.json:
            print(json.dumps({"data": str(directory), "split": options.split, "tests": [asdict(t) for t in tests]}))
        else:
            print(f"{directory}, split {options.split}\n{table(tests)}")


def table(tests: Iterable[PairedTest]) -> str:
    """A Markdown table."""
    lines = ["| structure of | rows | loss, own | loss, other | own is likelier | t |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {test.name} | {test.rows:,} | {test.own:.4f} | {test.other:.4f} | {test.wins:.1%} | {test.t:.1f} |"
        for test in tests
    ]
    return "\n".join(lines)


def structure_tests(
    model: AlignedModel, questions: Sequence[Question], token_budget: int, seed: int
) -> list[PairedTest]:
    """Score answers with their own structures, those of another question, and those of another of like size.

    Questions without structures, and those the model cannot read, are left out. Raises `InputError` where fewer than
    two are left.
    """
    asked = [question for question in questions if _is_readable(model, question)]
    if len(asked) < 2:
        raise InputError("fewer than two questions with structures that this model can read: nothing to compare")
    own, tokens = answer_losses(model, asked, token_budget)
    tests = []
    for name, partners in (
        ("another question", another(asked, seed)),
        ("another one of like size", like_sized(asked, seed)),
    ):
        pairs = {row: with_structures_of(asked[row], asked[partners[row]]) for row in np.flatnonzero(partners >= 0)}
        pairs = {row: swapped for row, swapped in pairs.items() if _is_readable(model, swapped)}
        rows = np.array(list(pairs), np.int64)
        other, other_tokens = answer_losses(model, list(pairs.values()), token_budget)
        # Beside a larger structure less of an answer may fit: such sums are not of the same words.
        same = other_tokens == tokens[rows]
        if not same.any():
            raise InputError(f"no answer fits whole beside the structure of {name}: nothing to compare")
        tests.append(_paired(name, own[rows][same], other[same], tokens[rows][same]))
    return tests


def answer_losses(
    model: AlignedModel, questions: Sequence[Question], token_budget: int
) -> tuple[np.ndarray, np.ndarray]:
    """Per question: the loss summed over its answer tokens (nats, float64) and their number (int64)."""
    import torch

    from align.batches import pack

    sums, tokens = np.zeros(len(questions)), np.zeros(len(questions), np.int64)
    lengths = [model.encoding.length(question) for question in questions]
    device = next(model.language_model.parameters()).device
    was_training = model.training
    model.eval()
    console = Console(stderr=True)
    with torch.no_grad():
        for rows in track(
            pack(lengths, token_budget, 1)[0], "scoring", console=console, disable=not console.is_terminal
        ):
            batch = model.encoding.collate([model.encoding.example(questions[row]) for row in rows]).to(device)
            losses, counts = model.row_losses(batch)
            sums[rows], tokens[rows] = losses.double().cpu().numpy(), counts.cpu().numpy()
    model.train(was_training)
    return sums, tokens


def with_structures_of(question: Question, other: Question) -> Question:
    """The question and its answer, about the structures of another."""
    return replace(question, molecules=other.molecules, proteins=other.proteins, atoms=other.atoms)


def another(questions: Sequence[Question], seed: int) -> np.ndarray:
    """For each question the number of another one to swap structures with, int64; -1 where there is none.

    The partner has as many molecules and proteins, but other ones, and is not answered alike.
    """
    order = list(range(len(questions)))
    random.Random(seed).shuffle(order)
    return _next_in(order, questions)


def like_sized(questions: Sequence[Question], seed: int) -> np.ndarray:
    """The same among questions whose structures are nearest in size (atoms, residues)."""
    ties = random.Random(seed)
    order = sorted(range(len(questions)), key=lambda row: (size(questions[row]), ties.random()))
    partners = np.full(len(questions), -1, np.int64)
    # Forwards for every other one and backwards for the rest: partners are then as often smaller as larger.
    forwards, backwards = _next_in(order, questions), _next_in(order[::-1], questions)
    for place, row in enumerate(order):
        partners[row] = forwards[row] if place % 2 == 0 else backwards[row]
    return partners


def size(question: Question) -> int:
    """Atoms and residues of all its structures."""
    return sum(question.atoms) + sum(map(len, question.proteins))


def _next_in(order: Sequence[int], questions: Sequence[Question]) -> np.ndarray:
    """For each row the next one of a circular order that it can be compared with."""
    partners = np.full(len(questions), -1, np.int64)
    for place, row in enumerate(order):
        for step in range(1, len(order)):
            candidate = order[(place + step) % len(order)]
            if _comparable(questions[row], questions[candidate]):
                partners[row] = candidate
                break
    return partners


def _comparable(one: Question, other: Question) -> bool:
    alike = len(one.molecules) == len(other.molecules) and len(one.proteins) == len(other.proteins)
    same = one.molecules == other.molecules and one.proteins == other.proteins
    return alike and not same and one.answer != other.answer


def _is_readable(model: AlignedModel, question: Question) -> bool:
    if not (question.molecules or question.proteins):
        return False
    try:
        model.encoding.length(question)
    except InputError:
        return False
    return True


def _paired(name: str, own: np.ndarray, other: np.ndarray, tokens: np.ndarray) -> PairedTest:
    difference = (other - own) / tokens
    deviation = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    t = float(difference.mean()) / (deviation / math.sqrt(len(difference))) if deviation else 0.0
    total = max(1, int(tokens.sum()))
    wins = float((own < other).mean()) if len(own) else 0.0
    return PairedTest(name, len(own), float(own.sum()) / total, float(other.sum()) / total, wins, t)
