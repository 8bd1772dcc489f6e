"""Suite `retrieval`: which text belongs to which structure, both ways, over the whole test set (MolFM's task)."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from align.questions import PROTEIN_QUESTIONS, Question
from eval.results import Metric, TaskResult
from eval.structures import retrieval
from eval.structures.data import StructureSet, choose, drawn_note, read_sets
from eval.suites import Task
from eval.trust.statistics import mean_metric
from job.errors import InputError

if TYPE_CHECKING:
    from eval.models import EvalModel
    from eval.work import Journal

HELP = (
    "which text belongs to which molecule or protein, both ways: MRR, recall at 1, 5 and 10 of an aligned model "
    "(--data: directories made by `python -m align build`)"
)
VERSION = "1"

MODES = ("paragraph", "sentence")
METHODS = {
    "likelihood": "ln p(text | structure) of the aligned model, summed over the text's tokens. The texts of a "
    "structure are ranked by ln p(text | structure) - ln p(text), where p(text) is the mean of p(text | structure) "
    "over all structures of the test set (a text's likelihood alone would rank short and common texts first for every "
    "structure: 'unnormalised' shows it)",
    "embeddings": "cosine of the mean embedding that the adapter makes of a structure and the mean input embedding of "
    "the text's tokens, both centred over the test set",
    "hidden-states": "cosine of the language model's last hidden states, means over the structure's places in its "
    "prompt and over the text's tokens alone, both centred over the test set",
}
"""By name, what is ranked by."""

_DECIMALS = {"likelihood": 3, "embeddings": 6, "hidden-states": 6}
"""Scores are rounded to these before they are ranked: what differs by less differs by rounding, and ties."""

Pair = tuple[np.ndarray, np.ndarray]
"""Scores of texts as queries [texts, structures], and of structures as queries [structures, texts]."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, default=list(MODES), help="whole texts, or one sentence of each (both)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(METHODS),
        help="what is ranked by (all). likelihood scores every pair: its time grows with the square of the test set; "
        "--limit bounds it",
    )
    parser.add_argument(
        "--question",
        metavar="TEXT",
        help="where a data set asks several: the one whose answers are the texts, or one of "
        + ", ".join(PROTEIN_QUESTIONS),
    )


def tasks(options: argparse.Namespace) -> list[Task]:
    """A task per data set, mode and method; raises `InputError` where a data set is not for retrieval."""
    asked = PROTEIN_QUESTIONS.get(options.question, options.question)
    found = []
    for data in read_sets(options.data, 0, options.seed):
        chosen = _choose(data, asked, options.limit, options.seed)
        for mode in dict.fromkeys(options.modes):
            pool = _Pool(data, chosen, mode, options.seed)
            for method in dict.fromkeys(options.methods):
                found.append(_Retrieval(pool, method, options.token_budget).task())
    return found


def _choose(data: StructureSet, asked: str | None, limit: int, seed: int) -> list[Question]:
    """Questions of one text about one structure each, of one kind."""
    texts = {question.question for question in data.questions}
    if asked is None and len(texts) > 1:
        raise InputError(
            f"{data.directory} asks {len(texts)} questions, such as {sorted(texts)[0]!r}; say with --question whose "
            "answers are the texts"
        )
    chosen = [question for question in data.questions if asked in (None, question.question)]
    chosen = [question for question in chosen if len(question.molecules) + len(question.proteins) == 1]
    if len({bool(question.proteins) for question in chosen}) > 1:
        raise InputError(f"{data.directory} holds both molecules and proteins; retrieval needs one kind")
    chosen = [chosen[number] for number in choose(len(chosen), limit, seed)]
    if len(chosen) < 2:
        raise InputError(f"{data.directory} has fewer than two test questions to retrieve among")
    return chosen


@dataclass(frozen=True)
class _Pool:
    """The rows among which is searched, in one mode; what needs no model is computed once."""

    data: StructureSet
    chosen: list[Question]
    mode: str
    seed: int
    known_baselines: dict[tuple[int, ...], dict[str, dict[str, Metric]]] = field(default_factory=dict)
    """by the rows that a model can read"""

    @cached_property
    def rows(self) -> list[Question]:
        """One per structure, its answer the text of this mode."""
        if self.mode == "paragraph":
            return self.chosen
        return [
            replace(question, answer=retrieval.one_sentence(question.answer, number))
            for number, question in enumerate(self.chosen)
        ]

    @property
    def kind(self) -> str:
        """Of the structures."""
        return "protein" if self.chosen[0].proteins else "molecule"

    @property
    def made_by(self) -> dict[str, Any]:
        """Which rows these are."""
        of = sum(1 for one in self.data.questions if one.question == self.chosen[0].question)
        drawn = {"drawn_by_seed": self.seed} if len(self.chosen) < of else {}
        made_by = {
            "manifest_sha256": self.data.made_by["manifest_sha256"],
            "split": "test",
            "question": self.chosen[0].question,
            "questions": len(self.chosen),
            "of": of,
            "mode": self.mode,
        }
        return made_by | drawn

    def equally_right(self, places: Sequence[int]) -> np.ndarray:
        """See `retrieval.equally_right`."""
        from rdkit.Chem import MolToSmiles

        from align.molecules import parse

        rows = [self.rows[place] for place in places]
        structures = [MolToSmiles(parse(row.molecules[0])) if row.molecules else row.proteins[0] for row in rows]
        return retrieval.equally_right(structures, [row.answer for row in rows])

    def baselines(self, places: Sequence[int]) -> dict[str, dict[str, Metric]]:
        """Chance, and what copying from training pairs gives; the same for every method, and most models."""
        key = tuple(places)
        if key not in self.known_baselines:
            rows = [self.rows[place] for place in places]
            self.known_baselines[key] = self._baselines(rows, self.equally_right(places))
        return self.known_baselines[key]

    def _baselines(self, rows: list[Question], ignored: np.ndarray) -> dict[str, dict[str, Metric]]:
        ways = (f"text_to_{self.kind}", f"{self.kind}_to_text")
        chance = {
            name: Metric(float(values.mean()), higher_is_better=name != "rank")
            for name, values in retrieval.by_chance(len(rows), ignored).of_each().items()
        }
        baselines = {
            "chance": {"mrr": chance["mrr"]}
            | {f"{way}: {name}": metric for way in ways for name, metric in chance.items()}
        }
        if self.kind == "molecule":
            from eval.structures.neighbours import pair_scores

            training = [
                question
                for question in self.data.training
                if question.question == rows[0].question and len(question.molecules) == 1 and not question.proteins
            ]
            if training:
                rankings = {
                    way: retrieval.rank(np.round(scores, 6), ignored)
                    for way, scores in zip(ways, pair_scores(training, rows))
                }
                baselines["nearest training pair"] = _metrics(rankings, self.seed)[0]
        return baselines


@dataclass(frozen=True)
class _Retrieval:
    """One task."""

    pool: _Pool
    method: str
    token_budget: int

    def task(self) -> Task:
        """As the run takes it."""
        return Task(f"retrieval-{self.pool.data.name}-{self.pool.mode}-{self.method}", self.made_by, self.run)

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides the numbers besides the model."""
        return {
            "version": VERSION,
            "data": self.pool.made_by,
            "ranked_by": METHODS[self.method],
            "seed": self.pool.seed,
        }

    def run(self, model: EvalModel, journal: Journal) -> TaskResult:
        """Score all pairs, rank both ways."""
        from eval.structures.answers import aligned_model
        from eval.structures.retrieval_scores import readable

        aligned = aligned_model(model)
        places, reason = readable(aligned, self.pool.rows)
        if len(places) < 2:
            raise InputError(f"{model.directory}: none or one of the questions can be put to this model: {reason}")
        rows = [self.pool.rows[place] for place in places]
        ignored = self.pool.equally_right(places)
        pair, more, notes = self._scores(aligned, rows, journal)
        rankings = self._rankings(pair, more, ignored)
        metrics, of_each = _metrics(rankings, self.pool.seed)
        items = [
            {"id": row.id, "text": row.answer, "score": float(of_each["mrr"][place])}
            | {name: float(values[place]) for name, values in of_each.items() if name.endswith(": rank")}
            for place, row in enumerate(rows)
        ]
        if len(places) < len(self.pool.rows):
            notes.append(
                f"{len(self.pool.rows) - len(places):,} of {len(self.pool.rows):,} structures cannot be put to this "
                f"model and are left out; the first: {reason}."
            )
        name = self.task().name
        everything = [*self._notes(len(rows), int(ignored.sum())), *notes]
        return TaskResult(name, VERSION, metrics, items, self.made_by, self.pool.baselines(places), everything)

    def _scores(
        self, model: Any, rows: list[Question], journal: Journal
    ) -> tuple[Pair, dict[str, np.ndarray], list[str]]:
        """Scores both ways; others to rank by beside them; notes."""
        from eval.structures import retrieval_scores

        if self.method == "likelihood":
            texts, cut = retrieval_scores.answer_ids(model, rows)
            nats = retrieval_scores.log_likelihoods(model, rows, texts, journal, self.token_budget)
            notes = [f"{len(rows) ** 2:,} pairs were scored."]
            if cut:
                notes.append(f"{cut:,} texts are longer than the model has room for and are cut, alike for everything.")
            kind = self.pool.kind
            unnormalised = {f"{kind}_to_text, unnormalised": nats}
            return (nats.T, nats - retrieval_scores.log_mean(nats)), unnormalised, notes
        vectors = retrieval_scores.embeddings(model, rows, self.token_budget, self.method == "hidden-states")
        similarity = retrieval_scores.cosines(*vectors)
        note = "No training of ours makes these vectors of structures and texts agree: near chance is what to expect."
        return (similarity.T, similarity), {}, [note]

    def _rankings(
        self, pair: Pair, more: Mapping[str, np.ndarray], ignored: np.ndarray
    ) -> dict[str, retrieval.Ranking]:
        kind = self.pool.kind
        scores = {f"text_to_{kind}": pair[0], f"{kind}_to_text": pair[1], **more}
        decimals = _DECIMALS[self.method]
        return {name: retrieval.rank(np.round(values, decimals), ignored) for name, values in scores.items()}

    def _notes(self, rows: int, ignored: int) -> list[str]:
        notes = [f"Ranked by {METHODS[self.method]}."]
        if drawn := drawn_note(self.pool.made_by):
            notes.append(f"{drawn[0]} Fewer candidates are easier: compare only with numbers over as many.")
        if ignored:
            notes.append(
                f"{ignored:,} of {rows * (rows - 1):,} pairs of different rows share the structure or the text; they "
                "are as right as a row's own and are left out of its ranking."
            )
        return notes


def _metrics(rankings: Mapping[str, retrieval.Ranking], seed: int) -> tuple[dict[str, Metric], dict[str, np.ndarray]]:
    """The mean reciprocal rank of both ways together, then everything of each way; and of each row."""
    both = list(rankings.values())[:2]
    of_each = {"mrr": (both[0].reciprocal_rank + both[1].reciprocal_rank) / 2}
    for way, ranking in rankings.items():
        of_each |= {f"{way}: {name}": values for name, values in ranking.of_each().items()}
    metrics = {
        name: mean_metric(
            values, seed=seed, higher_is_better=not name.endswith(": rank"), share=name[-1].isdigit()
        )  # recall_1, recall_5, recall_10: found or not
        for name, values in of_each.items()
    }
    return metrics, of_each
