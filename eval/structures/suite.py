"""Suite `structures`: an aligned model's answers about molecules and proteins (PubChemQA, ChEBI-20, UniProtQA, ...)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from align.questions import PROTEIN_QUESTIONS, Question
from eval.results import Metric, TaskResult
from eval.structures.data import StructureSet, drawn_note, read_sets
from eval.suites import Task
from job.errors import InputError

if TYPE_CHECKING:
    from eval.models import EvalModel
    from eval.structures.text_results import TextScorer
    from eval.work import Journal

HELP = "an aligned model's answers about molecules and proteins (--data: directories made by `python -m align build`)"
VERSION = "1"

Scored = tuple[dict[str, Metric], dict[str, np.ndarray]]
"""Metrics over all items, and of each item."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    from eval.structures import text_results

    text_results.add_options(parser)
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")


def tasks(options: argparse.Namespace) -> list[Task]:
    """One task per data set; raises `InputError` where one cannot be read."""
    from eval.structures.text_results import read_scorer

    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be at least 1, not {options.max_new_tokens}")
    sets = read_sets(options.data, options.limit, options.seed)
    scorer = read_scorer(options.vocabulary, options.wordnet)
    return [_task(data, scorer, options) for data in sets]


def _task(data: StructureSet, scorer: TextScorer, options: argparse.Namespace) -> Task:
    made_by = {
        "version": VERSION,
        "data": data.made_by,
        "kind": data.kind,
        "scoring": scorer.to_json(),
        "max_new_tokens": options.max_new_tokens,
        "decoding": "greedy, up to the end token or the prompt's separator",
        "seed": options.seed,
    }
    work = _Structures(data, scorer, made_by, options.max_new_tokens, options.token_budget, options.seed)
    return Task(data.name, made_by, work.run, scored_by=frozenset({"scoring", "seed"}))


@dataclass
class _Structures:
    """A data set's task; baselines are computed once for all models."""

    data: StructureSet
    scorer: TextScorer
    made_by: dict[str, Any]
    max_new_tokens: int
    token_budget: int
    seed: int

    def run(self, model: EvalModel, journal: Journal) -> TaskResult:
        """Answer all questions and score the answers, overall and per kind of question."""
        from eval.structures.answers import answer

        questions = self.data.questions
        answers = answer(model, questions, journal, self.max_new_tokens, self.token_budget)
        texts = [found.text for found in answers]
        metrics, of_each = self._score(texts)
        first = next(iter(of_each))
        items = [
            {
                "id": question.id,
                "question": question.question,
                "reference": question.answer,
                "answer": texts[place],
                "score": float(of_each[first][place]),
                "scores": {name: float(values[place]) for name, values in of_each.items()},
            }
            | ({"refused": answers[place].refused} if answers[place].refused else {})
            for place, question in enumerate(questions)
        ]
        notes = [*drawn_note(self.data.made_by)]
        if refused := sum(1 for found in answers if found.refused):
            reason = next(found.refused for found in answers if found.refused)
            notes.append(
                f"{refused:,} of {len(answers):,} questions cannot be put to this model and count as empty answers; "
                f"the first: {reason}."
            )
        if not any(texts):
            notes.append("All answers are empty.")
        return TaskResult(
            self.data.name,
            VERSION,
            metrics,
            items,
            self.made_by,
            self.baselines,
            [*notes, *self._baseline_notes(), *(self.scorer.notes if self._has_texts else [])],
        )

    @cached_property
    def baselines(self) -> dict[str, dict[str, Metric]]:
        """Of the nearest training structure's answer, and of one constant answer per question."""
        from eval.structures.constant_answers import constant_answers
        from eval.structures.neighbours import copied_answers

        training, asked = self.data.training, self.data.questions
        if not training:
            return {}
        return {
            "nearest training structure": self._score(copied_answers(training, asked))[0],
            "one constant answer": self._score(constant_answers(training, asked, self.seed))[0],
        }

    def _baseline_notes(self) -> list[str]:
        if not self.data.training:
            return ["No baselines: the data set has no training split to copy answers from."]
        return [
            "Baseline 'nearest training structure' hands in the training answer to the same question about the most "
            "similar structure (Morgan Tanimoto; cosine of weighted three-residue counts), 'one constant answer' the "
            "same text whatever the structure: a model that does not exceed them may not read structures at all."
        ]

    @property
    def _has_texts(self) -> bool:
        return self.data.kind != "chemblqa"

    def _score(self, answers: Sequence[str]) -> Scored:
        """Metrics of answers to all questions, then of each kind of protein question: `function: rouge_l`."""
        metrics, of_each = self._score_some(answers, range(len(answers)))
        places = _places_by_kind(self.data.questions)
        if len(places) > 1:
            for kind, some in places.items():
                found, _ = self._score_some(answers, some)
                metrics |= {f"{kind}: {name}": metric for name, metric in found.items()}
        return metrics, of_each

    def _score_some(self, answers: Sequence[str], places: Sequence[int]) -> Scored:
        from eval.structures.text_results import answer_metrics

        given = [answers[place] for place in places]
        right = [self.data.questions[place].answer for place in places]
        scorers: list[Callable[..., Scored]] = []
        if self._has_texts:
            scorers.append(partial(self.scorer.score, seed=self.seed))
        if self.data.kind in ("chemblqa", "questions"):
            scorers.append(partial(answer_metrics, seed=self.seed))
        metrics: dict[str, Metric] = {}
        of_each: dict[str, np.ndarray] = {}
        for scorer in scorers:
            found, each = scorer(given, right)
            metrics |= found
            of_each |= {name: each[name] for name in found if name in each}
        return metrics, of_each


def _places_by_kind(questions: Sequence[Question]) -> dict[str, list[int]]:
    """Numbers of the questions of each of UniProtQA's four kinds, in its order; others are of no kind."""
    names = {text: name for name, text in PROTEIN_QUESTIONS.items()}
    places: dict[str, list[int]] = {name: [] for name in PROTEIN_QUESTIONS}
    for place, question in enumerate(questions):
        if question.question in names:
            places[names[question.question]].append(place)
    return {name: some for name, some in places.items() if some}
