"""Suite `text2molecule`: molecules (SMILES) that a causal language model writes for their descriptions."""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.question_shards import QuestionSet
from align.questions import Question
from eval.results import Metric, TaskResult
from eval.structures.data import check_names, choose, drawn_note, read_set
from eval.suites import Task
from job.errors import InputError
from job.files import sha256_file
from job.verbs import check_at_least

if TYPE_CHECKING:
    from data_shards.articles import Reject
    from eval.models import EvalModel
    from eval.work import Journal

HELP = (
    "molecules written for descriptions (--data: directories made by `python -m align build`, or files of ChEBI-20 "
    "with the columns CID, SMILES, description)"
)
VERSION = "1"

INSTRUCTION = "Write the SMILES of the molecule that is described."
TEMPLATE = "Description: {description}\nSMILES:"
_STOP = "\n"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    parser.add_argument(
        "--training", type=Path, nargs="+", default=[], metavar="FILE", help="where --data are files: those of training"
    )
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="training examples in the prompt (default 0)")
    parser.add_argument(
        "--template",
        default=TEMPLATE,
        help="the prompt, in which {description} stands for the text; the SMILES is expected behind it (default: "
        f"{TEMPLATE!r}, after an instruction)",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest SMILES (default 256)")


def tasks(options: argparse.Namespace) -> list[Task]:
    """One task per data set; raises `InputError` where one cannot be read."""
    check_at_least(options, max_new_tokens=1, shots=0)
    template = options.template.replace("\\n", "\n")
    if template.count("{description}") != 1:
        raise InputError("--template must hold {description} exactly once: where the text goes")
    sets = [_read(path, options) for path in options.data]
    check_names([data.name for data in sets])
    return [_task(data, template, options) for data in sets]


@dataclass(frozen=True)
class _Data:
    """Descriptions with their molecules."""

    name: str
    test: list[Question]
    training_from: Path | list[Path]
    """an `align build`, or files"""
    made_by: dict[str, Any]

    @cached_property
    def training(self) -> list[Question]:
        """Read when they are first needed."""
        if isinstance(self.training_from, list):
            return [question for path in self.training_from for question in _rows(path)]
        return [question for question in QuestionSet(self.training_from, "train") if _is_described(question)]


def _is_described(question: Question) -> bool:
    return len(question.molecules) == 1 and not question.proteins


def _read(path: Path, options: argparse.Namespace) -> _Data:
    if path.is_dir():
        data = read_set(path, options.limit, options.seed)
        if not all(map(_is_described, data.questions)) or len({question.question for question in data.questions}) > 1:
            raise InputError(
                f"{path} does not hold descriptions of molecules alone: every question must be the same one, about one "
                "molecule (pubchemqa, chebi20)"
            )
        return _Data(data.name, data.questions, path, data.made_by)
    rows = _rows(path)
    for training in options.training:
        if not training.is_file():
            raise InputError(f"--training {training} does not exist")
    numbers = choose(len(rows), options.limit, options.seed)
    made_by = {
        "file_sha256": sha256_file(path),
        "training_sha256": [sha256_file(training) for training in options.training],
        "questions": len(numbers),
        "of": len(rows),
    }
    if len(numbers) < len(rows):
        made_by["drawn_by_seed"] = options.seed
    found = _Data(path.name.split(".")[0], [rows[number] for number in numbers], list(options.training), made_by)
    if shared := len(set(map(_content, rows)) & set(map(_content, found.training))):
        raise InputError(f"{shared:,} rows of {path} also lie in --training: give files that share no row")
    return found


def _content(question: Question) -> tuple[str, str]:
    return question.answer, question.molecules[0]


def _rows(path: Path) -> list[Question]:
    """All rows of a file of ChEBI-20; raises `InputError` for a malformed one, since a test set is whole or nothing."""
    from align.readers import chebi20

    def refuse(reject: Reject) -> None:
        raise InputError(f"{path} {reject.source_position}: {reject.detail or reject.reason}")

    questions: list[Question] = []
    seen: set[str] = set()
    for question, position in chebi20.read(path, refuse):
        if not question.answer or not question.molecules[0]:
            raise InputError(f"{path} {position}: no description or no SMILES")
        if question.id in seen:
            raise InputError(f"{path} {position}: its CID occurs before; remove one of the rows")
        seen.add(question.id)
        questions.append(question)
    if not questions:
        raise InputError(f"{path} has a header but no rows")
    return questions


def _task(data: _Data, template: str, options: argparse.Namespace) -> Task:
    from eval.metrics.molecule_metrics import MoleculeScorer

    work = _TextToMolecule(
        f"text-to-molecule-{data.name}",
        data,
        template,
        options.shots,
        options.max_new_tokens,
        options.token_budget,
        options.seed,
        MoleculeScorer([question.molecules[0] for question in data.test]),
    )
    return Task(work.name, work.made_by, work.run)


def first_word(text: str) -> str:
    """The SMILES in what a model wrote up to the first line break: its first word.

    A SMILES has no blanks, and what a language model adds behind one ("CCO is the SMILES of ...") is no part of it.
    """
    words = text.split()
    return words[0] if words else ""


@dataclass
class _TextToMolecule:
    """A data set's task; baselines are computed once for all models."""

    name: str
    data: _Data
    template: str
    shots: int
    max_new_tokens: int
    token_budget: int
    seed: int
    scorer: Any
    """`MoleculeScorer` of the right molecules"""

    def __post_init__(self) -> None:
        # A zero-shot prompt needs no training rows, which may be many: they are read for shots and baselines only.
        shown = random.Random(self.seed).sample(self.data.training, self.shots) if self._has_shots() else []
        examples = [f"{self._fill(question)} {question.molecules[0]}" for question in shown]
        instruction = [INSTRUCTION] if self.template == TEMPLATE else []
        self.beginning = "".join(f"{part}\n\n" for part in [*instruction, *examples])
        self.made_by = {
            "version": VERSION,
            "data": self.data.made_by,
            "prompt": f"{self.beginning}{self.template}",
            "shots": [question.id for question in shown],
            "max_new_tokens": self.max_new_tokens,
            "decoding": "greedy, up to the end token or a line break; the first word counts",
            "seed": self.seed,
        }

    def _has_shots(self) -> bool:
        if self.shots and len(self.data.training) < self.shots:
            raise InputError(
                f"--shots {self.shots}: {self.data.name} has {len(self.data.training):,} training rows; for files, "
                "give them with --training"
            )
        return self.shots > 0

    def _fill(self, question: Question) -> str:
        return self.template.replace("{description}", question.answer)

    def run(self, model: EvalModel, journal: Journal) -> TaskResult:
        """Write a molecule for each description and compare."""
        from eval.generate import generate, too_long
        from eval.structures.molecule_results import NOTE, molecule_metrics

        questions = self.data.test
        prompts = {question.id: f"{self.beginning}{self._fill(question)}" for question in questions}
        cut = too_long(model, prompts, self.max_new_tokens)
        written = generate(
            model,
            prompts,
            journal,
            max_new_tokens=self.max_new_tokens,
            stops=[_STOP],
            token_budget=self.token_budget,
            what=self.name,
        )
        smiles = [first_word(written[question.id]) for question in questions]
        metrics, of_each = molecule_metrics(smiles, self.scorer, self.seed)
        items = [
            {
                "id": question.id,
                "description": question.answer,
                "reference": question.molecules[0],
                "written": written[question.id],
                "answer": smiles[place],
                "score": float(of_each["exact"][place]),
                "scores": {name: None if (value := values[place]) != value else float(value)
                           for name, values in of_each.items()},
            }
            for place, question in enumerate(questions)
        ]  # fmt: skip
        notes = [*drawn_note(self.data.made_by), NOTE]
        if cut:
            notes.append(f"{len(cut):,} prompts are longer than this model's context allows and lose their beginning.")
        if self.data.training:
            notes.append(
                "Baseline 'nearest training text' hands in the molecule of the training description that shares most "
                "words (cosine of TF-IDF weights of words and pairs of words)."
            )
        else:
            notes.append("No baseline: there are no training rows to copy molecules from.")
        return TaskResult(self.name, VERSION, metrics, items, self.made_by, self.baselines, notes)

    @cached_property
    def baselines(self) -> dict[str, dict[str, Metric]]:
        """Of the molecule with the most similar training description."""
        from eval.structures.molecule_results import molecule_metrics
        from eval.structures.neighbours import nearest_texts

        training = self.data.training
        if not training:
            return {}
        places = nearest_texts([one.answer for one in training], [one.answer for one in self.data.test])
        copied = [training[place].molecules[0] for place in places]
        return {"nearest training text": molecule_metrics(copied, self.scorer, self.seed)[0]}
