"""One set of questions put to a model through lm-eval, and the numbers that this gives.

lm-eval builds the prompts and asks (the tasks are the YAML files in `eval/tasks`, the model is `SharedPrefixLM`); what
it hands back per item is turned into scores, intervals and baselines here. None of its caches is used: their keys leave
out the prompt, the data or the model.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.qa import prompts
from eval.qa.answer_parser import parse
from eval.qa.files import LETTERS, Question
from eval.qa.questions import QuestionSet
from eval.results import UNPARSED_LIMIT, Metric, TaskResult
from eval.trust.statistics import macro_f1, macro_f1_interval, mean_metric

if TYPE_CHECKING:
    from eval.models import EvalModel
    from eval.qa.choices import SharedPrefixLM
    from eval.work import Journal

VERSION = "1.1"
"""of prompts, scoring and metrics; the same number stands in the YAML files"""
_NORMALISED = "-normalised"
TASKS = Path(__file__).parent.parent / "tasks"


@dataclass(frozen=True)
class Answer:
    """What the model gave for one question with one choice of examples."""

    option: int | None
    """None: nothing that could be parsed"""
    normalised: int | None
    """by log-likelihood per character; None where answers are letters or text"""
    record: dict[str, Any]
    """for the item: log-likelihoods or output, and the prompt's hash"""


class QuestionTask:
    """A set asked in one way: scoring, number of shots, and seeds that draw the examples."""

    def __init__(
        self,
        questions: QuestionSet,
        scoring: str,
        shots: int,
        seeds: Sequence[int],
        options: Namespace,
        held_out: int = 0,
    ) -> None:
        """Set up what is asked.

        Args:
            questions: the set.
            scoring: letters, options, options-normalised or generate; yes, no and maybe have no letters, so that the
                first two are `words` and the third is `words-normalised`.
            shots: examples before each question.
            seeds: of draws of the examples, each of which is a run; none: the first ones are shown.
            options: `data`, `limit`, `seed` and `token_budget` of the command.
            held_out: as the set was read with.
        """
        self.questions = questions
        self.scoring = scoring
        if prompts.is_decision(questions.questions[0]) and scoring != "generate":
            self.scoring = "words-normalised" if scoring.endswith(_NORMALISED) else "words"
        self.shots = shots
        self.seeds: tuple[int | None, ...] = tuple(seeds) or (None,)
        self.options = options
        self.held_out = held_out
        self._results: dict[str, TaskResult] = {}

    @property
    def set_name(self) -> str:
        """The set's."""
        return self.questions.name

    @property
    def name(self) -> str:
        """Of set, scoring and shots."""
        drawn = f"-{len(self.seeds)}-seeds" if self.seeds[0] is not None else ""
        return f"{self.set_name}-{self.scoring}-{self.shots}-shot{drawn}"

    @property
    def prompt_style(self) -> str:
        """One of `prompts.SCORINGS`: normalised scores are of the same prompts."""
        return self.scoring.partition("-")[0]

    @property
    def lm_eval_task(self) -> str:
        """Name of the YAML file's task."""
        base = "pubmedqa" if self.set_name.startswith("pubmedqa") else self.set_name
        return f"biomedgpt_{base}_{self.prompt_style}"

    @functools.cached_property
    def made_by(self) -> dict[str, Any]:
        """All that decides the answers but the model."""
        style = self.prompt_style
        seeds = [seed for seed in self.seeds if seed is not None]
        return {
            "version": VERSION,
            "lm_eval_task": self.lm_eval_task,
            "data_sha256": self.questions.files,
            "rows": len(self.questions.questions),
            "held_out": self.held_out,
            "scoring": self.scoring,
            "shots": self.shots,
            "example_seeds": seeds,
            "prompt_sha256": [
                prompts.digest(
                    [self._examples(seed), *(prompts.prompt(question, style) for question in self.questions.questions)]
                )
                for seed in self.seeds
            ],
            "limit": self.options.limit,
            "seed": self.options.seed,
        } | ({"max_new_tokens": prompts.MAX_NEW_TOKENS, "stops": list(prompts.STOPS)} if style == "generate" else {})

    def _examples(self, seed: int | None) -> str:
        return prompts.examples(self.questions.shown(seed)[: self.shots], self.prompt_style)

    def run(self, model: EvalModel, journal: Journal) -> TaskResult:
        """Ask the model; collective over ranks. What was asked of this model before is not asked again."""
        key = f"{model.checksum} {model.language_model.dtype}"
        if key not in self._results:
            self._results[key] = self._run(model, journal)
        return self._results[key]

    def _run(self, model: EvalModel, journal: Journal) -> TaskResult:
        from eval.qa import stock_tokenizer
        from eval.qa.choices import SharedPrefixLM

        lm = SharedPrefixLM(model, journal, self.options.token_budget)
        answers = [self._ask(lm, seed) for seed in self.seeds]
        asked = self.questions.questions[: self.options.limit or None]
        scores = Scores(
            np.array([question.gold for question in asked]),
            np.array([[_number(self._chosen(answer)) for answer in run] for run in answers]),
            max(len(question.options) for question in asked),
            [_item(question) for question in asked],
        )
        for run, seed in zip(answers, self.seeds, strict=True):
            for item, question, answer in zip(scores.items, asked, run, strict=True):
                given = {"chosen": _label(question, self._chosen(answer)), **answer.record}
                if seed is None:
                    item |= given
                else:
                    item.setdefault("runs", []).append({"seed": seed, **given})
        metrics = scores.metrics(self.options.seed, unparsed=self.scoring == "generate")
        if answers[0][0].normalised is not None:
            raw = self.scoring.endswith(_NORMALISED)  # the other way to choose stands beside the one asked for
            chosen = np.array([[answer.option if raw else answer.normalised for answer in run] for run in answers])
            other = mean_metric((chosen == scores.gold).mean(axis=0), seed=self.options.seed, share=True)
            metrics["accuracy_raw" if raw else "accuracy_normalised"] = other
        notes = [*self.questions.notes_on(self.options.limit), *lm.notes]
        if differs := stock_tokenizer.note(model):
            notes.append(differs)
        if lm.truncated:
            room = f"the model's {model.max_length:,} tokens"
            notes.append(f"{lm.truncated:,} prompts are longer than {room} and lost their beginning, as in lm-eval")
        return TaskResult(
            self.name,
            VERSION,
            metrics,
            scores.items,
            self.made_by,
            self._baselines(asked),
            notes,
            _failure(metrics),
        )

    def _chosen(self, answer: Answer) -> int | None:
        return answer.normalised if self.scoring.endswith(_NORMALISED) else answer.option

    def _ask(self, lm: SharedPrefixLM, seed: int | None) -> list[Answer]:
        """What lm-eval's own run of the task gives, item by item."""
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager

        from eval.tasks.functions import chosen

        name = self.lm_eval_task
        metadata = {"data": [str(one) for one in self.options.data], "held_out": self.held_out, "example_seed": seed}
        with _quiet_lm_eval():
            manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)  # type: ignore[arg-type]
            loaded = manager.load([name])
            loaded["tasks"][name].set_config("num_fewshot", self.shots)
            results = evaluate(lm, loaded, limit=self.options.limit or None, bootstrap_iters=0, log_samples=True)
        begin = self._examples(seed)
        answers = []
        for question, sample in zip(self.questions.questions, results["samples"][name]):
            prompt = sample["arguments"][0][0]
            if prompt != begin + prompts.prompt(question, self.prompt_style):
                raise RuntimeError(f"lm-eval asked {question.id} in other words than were hashed")
            record: dict[str, Any] = {"prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest()}
            if self.prompt_style == "generate":
                output = sample["filtered_resps"][0]
                answers.append(Answer(parse(output, question.options), None, record | {"output": output}))
                continue
            nats = [float(value) for value, _ in sample["filtered_resps"]]
            lengths = [len(option) for option in question.options]
            normalised = None if self.prompt_style == "letters" else chosen(nats, lengths)
            answers.append(Answer(chosen(nats), normalised, record | {"log_likelihoods": nats}))
        return answers

    def _baselines(self, asked: Sequence[Question]) -> dict[str, dict[str, Metric]]:
        """What can be had without reading: always the answer that is right most often; the longest option."""
        gold = np.array([question.gold for question in asked])
        classes = max(len(question.options) for question in asked)
        answers = {"majority answer": np.full(len(gold), np.bincount(gold, minlength=classes).argmax())}
        if not prompts.is_decision(asked[0]):
            longest = [int(np.argmax([len(option) for option in question.options])) for question in asked]
            answers["longest option"] = np.array(longest)
        return {
            name: Scores(gold, given[None], classes, []).metrics(self.options.seed) for name, given in answers.items()
        }


class MedicalMMLU:
    """All subjects together: every item counts the same."""

    set_name = "mmlu_medical"

    def __init__(self, subjects: Sequence[QuestionTask]) -> None:
        self._subjects = subjects

    @property
    def name(self) -> str:
        """As that of its subjects."""
        return self._subjects[0].name.replace(self._subjects[0].set_name, self.set_name)

    @property
    def made_by(self) -> dict[str, Any]:
        """That of each subject."""
        return {"version": VERSION, "subjects": {task.set_name: task.made_by for task in self._subjects}}

    def run(self, model: EvalModel, journal: Journal) -> TaskResult:
        """Put the subjects' answers together; those that this process did not ask for already are asked now."""
        return self.combine({task.name: task.run(model, journal) for task in self._subjects})

    def combine(self, measured: Mapping[str, TaskResult]) -> TaskResult:
        """Put the subjects' answers together.

        Args:
            measured: the subjects' results by task name; further tasks' are not looked at.
        """
        results = {task.set_name: measured[task.name] for task in self._subjects}
        items = [
            item | {"subject": name.removeprefix("mmlu_").replace("_", " ")}
            for name, result in results.items()
            for item in result.items
        ]
        seed = self._subjects[0].options.seed
        metrics = {"accuracy": mean_metric(np.array([item["score"] for item in items]), seed=seed, share=True)}
        metrics["accuracy_subjects"] = Metric(
            float(np.mean([result.metrics["accuracy"].value for result in results.values()]))
        )
        if all("unparsed" in result.metrics for result in results.values()):
            unparsed = [item.get("unparsed", 0.0) for item in items]
            metrics["unparsed"] = mean_metric(np.array(unparsed), seed=seed, higher_is_better=False, share=True)
        rows = {name: len(result.items) for name, result in results.items()}
        notes = [f"{sum(rows.values()):,} items of {len(rows)} of the nine subjects"] if len(rows) < 9 else []
        notes += [f"{name}: {note}" for name, result in results.items() for note in result.notes]
        return TaskResult(self.name, VERSION, metrics, items, self.made_by, {}, notes, _failure(metrics))


@dataclass
class Scores:
    """Given and right answers of one task."""

    gold: np.ndarray
    """int [items]"""
    given: np.ndarray
    """int [runs, items]; -1: unparsed"""
    classes: int
    items: list[dict[str, Any]] = field(default_factory=list)
    """gets each item's `score`, and `unparsed`"""

    def metrics(self, seed: int, unparsed: bool = False) -> dict[str, Metric]:
        """Accuracy, macro-F1 and, of generated answers, the share that was not parsed; means over runs.

        An unparsed answer is wrong. The interval is over items, each with its mean over runs; `accuracy_spread` is the
        standard deviation over runs.
        """
        right = self.given == self.gold
        scores = right.mean(axis=0)
        missing = (self.given < 0).mean(axis=0)
        for item, score, share in zip(self.items, scores, missing):
            item["score"] = float(score)
            if unparsed:
                item["unparsed"] = float(share)
        found = {"accuracy": mean_metric(scores, seed=seed, share=True)}
        confusions = [self._confusion(run) for run in self.given]
        if len(confusions) == 1:
            found["macro_f1"] = Metric(macro_f1(confusions[0]), *macro_f1_interval(confusions[0], seed))
        else:
            found["macro_f1"] = Metric(float(np.mean([macro_f1(one) for one in confusions])))
            found["accuracy_spread"] = Metric(float(np.std(right.mean(axis=1), ddof=1)), higher_is_better=False)
        if unparsed:
            found["unparsed"] = mean_metric(missing, seed=seed, higher_is_better=False, share=True)
        return found

    def _confusion(self, run: np.ndarray) -> np.ndarray:
        """Items by right and given answer; the last column has the unparsed ones."""
        counts = np.zeros((self.classes, self.classes + 1), np.int64)
        np.add.at(counts, (self.gold, np.where(run < 0, self.classes, run)), 1)
        return counts


def _number(option: int | None) -> int:
    return -1 if option is None else option


def _label(question: Question, option: int | None) -> str | None:
    """An answer as items show it: yes, no, maybe, or a letter."""
    if option is None:
        return None
    return question.options[option] if prompts.is_decision(question) else LETTERS[option]


def _item(question: Question) -> dict[str, Any]:
    options = () if prompts.is_decision(question) else question.options
    text = "\n".join(part for part in (question.context, question.question, *options) if part)
    subject = question.meta.get("subject_name")
    item = {"id": question.id, "text": text, "gold": _label(question, question.gold)}
    return item | ({"subject": subject} if subject else {})


def _failure(metrics: dict[str, Metric]) -> str | None:
    share = metrics["unparsed"].value if "unparsed" in metrics else 0.0
    if share <= UNPARSED_LIMIT:
        return None
    return (
        f"{share:.1%} of the answers could not be parsed (more than {UNPARSED_LIMIT:.0%}), so the score measures their "
        "format; give (more) examples with --shots, or score log-likelihoods"
    )


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Without lm-eval's progress bars and warnings: bars are shown by what works through the items."""
    import lm_eval.api.task as module

    logger = logging.getLogger("lm_eval")
    level, bar = logger.level, module.tqdm
    logger.setLevel(logging.ERROR)
    module.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        logger.setLevel(level)
        module.tqdm = bar
