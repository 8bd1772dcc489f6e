"""Ask a model BioGPT's tasks and score what it writes.

Every answer is read twice: by our parser, which gives gold answers back exactly, and as the authors' scripts read it
(metrics that end in `_authors`), which is what published numbers were made with.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.biogpt.data import DataSet, prompt
from eval.biogpt.documents import (
    EMPTY,
    FORMATS,
    HALLMARKS,
    HOC_OPENING,
    PUBMEDQA_OPENING,
    Document,
)
from eval.biogpt.relation_metrics import counts, hard_match, hard_match_metrics, micro_metrics
from eval.biogpt.relations import NameTable, Relation, parse, parse_as_authors, squeeze, strip_lead
from eval.generate import generate
from eval.qa.pubmedqa import LABELS
from eval.results import UNPARSED_LIMIT, Metric, TaskResult
from eval.trust.statistics import macro_f1, macro_f1_interval, mean_metric
from job.errors import InputError

if TYPE_CHECKING:
    from eval.models import EvalModel
    from eval.work import Journal

STOPS = ("\n",)
BETWEEN_SHOTS = "\n\n"
_FEWEST_SOURCE_WORDS = 8


@dataclass(frozen=True)
class Settings:
    """How a task is asked."""

    shots: int
    """examples from the train split before each document"""
    seed: int
    limit: int
    """first documents of the test split; 0: all"""
    max_new_tokens: int
    prompt_suffix: str
    token_budget: int


@dataclass
class Scores:
    """What the answers to a task are worth."""

    metrics: dict[str, Metric]
    items: list[dict[str, Any]]
    """`score` and what was read from each answer, in the order of the documents"""
    unparsed: list[bool]
    """of each answer, whether nothing in it has the task's form"""
    baselines: dict[str, dict[str, Metric]]


def measure(
    data: DataSet, version: str, settings: Settings, made_by: dict[str, Any], model: EvalModel, journal: Journal
) -> TaskResult:
    """Answer and score a task's test documents; collective over ranks."""
    documents = data.test[: settings.limit or None]
    prompts, cut = build_prompts(data, documents, settings, model)
    answers = generate(
        model,
        prompts,
        journal,
        max_new_tokens=settings.max_new_tokens,
        stops=STOPS,
        token_budget=settings.token_budget,
        what=FORMATS[data.name].title,
    )
    scores = score(data, documents, answers, settings.seed)
    items = [
        {
            "id": document.identifier,
            "text": document.source,
            **item,
            "answer": answers[document.identifier],
            "target": document.target,
        }
        for document, item in zip(documents, scores.items, strict=True)
    ]
    unparsed = mean_metric(
        np.array(scores.unparsed, np.float64), seed=settings.seed, higher_is_better=False, share=True
    )
    failed = None
    if unparsed.value > UNPARSED_LIMIT:
        failed = (
            f"{unparsed.value:.1%} of the answers do not have the task's form (more than {UNPARSED_LIMIT:.0%}), so "
            "that the other numbers measure that"
        )
    notes = [*data.notes, *_notes(data, documents, settings, cut)]
    metrics = scores.metrics | {"unparsed": unparsed}
    return TaskResult(data.name, version, metrics, items, made_by, scores.baselines, notes, failed)


def _notes(data: DataSet, documents: Sequence[Document], settings: Settings, cut: Sequence[str]) -> list[str]:
    form = FORMATS[data.name]
    notes = [
        f'prompts are text ("{settings.prompt_suffix}") where BioGPT has soft prompts'
        if settings.prompt_suffix
        else "nothing stands between document and answer, where BioGPT has soft prompts"
    ]
    if cut:
        notes.append(
            f"{len(cut)} of {len(documents)} documents were cut to {form.source_tokens} tokens, as BioGPT does, or to "
            "what the model's context leaves"
        )
    if data.name == "bc5cdr":
        notes.append(
            "ids are looked up in each document's own gold names; the _authors metrics look them up in the names of "
            "the whole test file, which are gold as well"
        )
    if data.name in ("kd_dti", "ddi"):
        notes.append(
            "hard_match_f1 is the mean of the documents' F1, which the authors' script prints as `tp micro f1`; "
            "hard_match_f1_of_means is its `tp macro f1`; micro_f1 counts triples over all documents"
        )
    if data.name == "hoc":
        empty = sum(document.gold == {EMPTY} for document in documents)
        notes.append(
            f"{empty} of {len(documents)} sentences are `{EMPTY}`, a class of its own in f1, as the authors count; "
            "f1_without_empty leaves it out"
        )
    return notes


def build_prompts(
    data: DataSet, documents: Sequence[Document], settings: Settings, model: EvalModel
) -> tuple[dict[str, str], list[str]]:
    """The prompt of each document by id, and the ids of the documents that had to be cut.

    A source is cut, at its end and between words, to the tokens that BioGPT allows and to what the model's context
    leaves beside examples and answer; "..." then stands at its end. Raises `InputError` where next to nothing is left.
    """
    examples = _examples(data, settings)
    room = model.max_length - settings.max_new_tokens
    source_tokens = FORMATS[data.name].source_tokens

    def tokens(text: str) -> int:
        return len(model.tokenizer(text, verbose=False)["input_ids"])

    def whole(source: str) -> str:
        return examples + prompt(source, settings.prompt_suffix)

    def fits(source: str) -> bool:
        return tokens(source) <= source_tokens and tokens(whole(source)) <= room

    prompts, cut = {}, []
    for document in documents:
        source = document.source
        if not fits(source):
            cut.append(document.identifier)
            source = _longest_that_fits(source, fits)
            if len(source.split()) < min(_FEWEST_SOURCE_WORDS, len(document.source.split())):
                raise InputError(
                    f"{model.directory} is made for {model.max_length:,} tokens: {settings.shots} examples and "
                    f"{settings.max_new_tokens:,} new tokens leave no room for {data.name}'s documents; lower --shots "
                    "or --max-new-tokens"
                )
        prompts[document.identifier] = whole(source)
    return prompts, cut


def _examples(data: DataSet, settings: Settings) -> str:
    """Documents of the train split with their answers, the same before every test document."""
    if not settings.shots:
        return ""
    train = data.splits["train"].documents
    if settings.shots > len(train):
        raise InputError(f"--shots {settings.shots}: {data.splits['train'].file} has {len(train)} documents")
    chosen = random.Random(settings.seed).sample(train, settings.shots)
    return "".join(
        f"{prompt(document.source, settings.prompt_suffix)} {document.target}{BETWEEN_SHOTS}" for document in chosen
    )


def _longest_that_fits(source: str, fits: Callable[[str], bool]) -> str:
    words = source.split(" ")
    low, high = 0, len(words) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if fits(" ".join(words[:middle]) + " ..."):
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low]) + " ..." if low else ""


def score(data: DataSet, documents: Sequence[Document], answers: Mapping[str, str], seed: int) -> Scores:
    """Read and score the answers (by document id) to some of the task's test documents."""
    texts = [answers[document.identifier] for document in documents]
    if data.name == "bc5cdr":
        return _score_bc5cdr(data, documents, texts, seed)
    if data.name == "hoc":
        return _score_hoc(documents, texts, seed)
    if data.name == "pubmedqa":
        return _score_pubmedqa(documents, texts, seed)
    return _score_interactions(data, documents, texts, seed)


def _score_bc5cdr(data: DataSet, documents: Sequence[Document], texts: Sequence[str], seed: int) -> Scores:
    template = FORMATS[data.name].template
    assert template is not None
    gold = [document.gold for document in documents]
    parsed = [parse(text, template, document.source) for text, document in zip(texts, documents)]
    predicted = [document.names.identify(found.relations) for found, document in zip(parsed, documents)]
    table = counts(predicted, gold)

    chemicals: dict[str, str] = {}
    diseases: dict[str, str] = {}
    for document in data.test:  # what the authors' test.entities.json holds; a later document's id wins
        chemicals |= document.chemicals
        diseases |= document.diseases
    everyone = NameTable(chemicals, diseases, exact=True)
    by_authors = [everyone.identify(parse_as_authors(text, template)) for text in texts]

    metrics = micro_metrics(table, seed) | _authors(micro_metrics(counts(by_authors, gold), seed))
    all_pairs = [_all_pairs(document) for document in documents]
    return Scores(
        metrics,
        [_relation_item(found.relations, row) for found, row in zip(parsed, table)],
        [not found.relations for found in parsed],
        {"every chemical of the document with every disease": micro_metrics(counts(all_pairs, gold), seed)},
    )


def _all_pairs(document: Document) -> set[Relation]:
    chemicals, diseases = (set(names.values()) - {"-1"} for names in (document.chemicals, document.diseases))
    return {Relation(chemical, disease, "") for chemical in chemicals for disease in diseases}


def _score_interactions(data: DataSet, documents: Sequence[Document], texts: Sequence[str], seed: int) -> Scores:
    template = FORMATS[data.name].template
    assert template is not None
    gold = [document.gold for document in documents]
    parsed = [parse(text, template, document.source) for text, document in zip(texts, documents)]
    by_authors = [parse_as_authors(text, template) for text in texts]
    matches = [hard_match(found.relations, wanted) for found, wanted in zip(parsed, gold)]
    their_matches = [hard_match(found, wanted) for found, wanted in zip(by_authors, gold)]
    table = counts([_squeezed(found.relations) for found in parsed], [_squeezed(wanted) for wanted in gold])
    metrics = {
        **{f"hard_match_{name}": metric for name, metric in hard_match_metrics(matches, seed).items()},
        **{f"hard_match_{name}_authors": metric for name, metric in hard_match_metrics(their_matches, seed).items()},
        **{f"micro_{name}": metric for name, metric in micro_metrics(table, seed).items()},
    }
    items = [
        _relation_item(found.relations, row) | {"score": match.f1} for found, row, match in zip(parsed, table, matches)
    ]
    return Scores(metrics, items, [not found.relations for found in parsed], {})


def _squeezed(relations: Sequence[Relation] | frozenset[Relation]) -> set[Relation]:
    return {Relation(*map(squeeze, relation)) for relation in relations}


def _relation_item(relations: Sequence[Relation], row: np.ndarray) -> dict[str, Any]:
    right, wrong, missing = map(int, row)
    return {
        "score": _f1(row),
        "right": right,
        "wrong": wrong,
        "missing": missing,
        "predicted": [list(relation) for relation in relations],
    }


def _f1(row: np.ndarray) -> float:
    right, wrong, missing = map(int, row)
    return 2 * right / max(1, 2 * right + wrong + missing)


def _authors(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    return {f"{name}_authors": metric for name, metric in metrics.items()}


def _score_hoc(documents: Sequence[Document], texts: Sequence[str], seed: int) -> Scores:
    known = {*HALLMARKS, EMPTY}
    gold = [document.gold for document in documents]
    predicted = [_labels(text, known) for text in texts]
    by_authors = [_labels_as_authors(text, known) for text in texts]
    table = counts(predicted, gold)

    def without_empty(labels: Sequence[set[str] | frozenset[str]]) -> list[set[str]]:
        return [set(one) - {EMPTY} for one in labels]

    def metrics(labels: Sequence[set[str]]) -> dict[str, Metric]:
        hallmarks = micro_metrics(counts(without_empty(labels), without_empty(gold)), seed)
        everything = micro_metrics(counts(labels, gold), seed)
        return everything | {f"{name}_without_empty": metric for name, metric in hallmarks.items()}

    items = [
        {"score": _f1(row), "right": int(row[0]), "wrong": int(row[1]), "missing": int(row[2])}
        | {"predicted": sorted(labels)}
        for row, labels in zip(table, predicted)
    ]
    return Scores(
        metrics(predicted) | {"f1_authors": micro_metrics(counts(by_authors, gold), seed)["f1"]},
        items,
        [not labels for labels in predicted],
        {f"always `{EMPTY}`": metrics([{EMPTY}] * len(documents))},
    )


def _labels(text: str, known: set[str]) -> set[str]:
    found = re.search(rf"{HOC_OPENING}\s+([^.]*)", strip_lead(text), re.IGNORECASE)
    return {" ".join(one.lower().split()) for one in found[1].split("|")} & known if found else set()


def _labels_as_authors(text: str, known: set[str]) -> set[str]:
    """Unknown labels, and answers of another form ("failed"), are dropped there without a word."""
    return {one.strip() for one in _rest_as_authors(text, HOC_OPENING).split("|")} & known


def _rest_as_authors(text: str, opening: str) -> str:
    found = re.search(rf"{opening}(.*)", strip_lead(text.strip().removesuffix(".")))
    return found[1].strip() if found else "failed"


def _score_pubmedqa(documents: Sequence[Document], texts: Sequence[str], seed: int) -> Scores:
    pattern = re.compile(rf"{PUBMEDQA_OPENING}\s+({'|'.join(LABELS)})\b", re.IGNORECASE)
    gold = [next(iter(document.gold)) for document in documents]
    found = [pattern.search(text) for text in texts]
    predicted = [one[1].lower() if one else "" for one in found]
    by_authors = [_rest_as_authors(text, PUBMEDQA_OPENING) for text in texts]

    def metrics(answers: Sequence[str]) -> dict[str, Metric]:
        confusion = np.zeros((len(LABELS), len(LABELS) + 1), np.int64)
        for answer, wanted in zip(answers, gold):
            column = LABELS.index(answer) if answer in LABELS else len(LABELS)
            confusion[LABELS.index(wanted), column] += 1
        right = np.array([answer == wanted for answer, wanted in zip(answers, gold)], np.float64)
        return {
            "accuracy": mean_metric(right, seed=seed, share=True),
            "macro_f1": Metric(macro_f1(confusion), *macro_f1_interval(confusion, seed)),
        }

    items = [
        {"score": float(answer == wanted), "predicted": answer, "gold": wanted}
        for answer, wanted in zip(predicted, gold)
    ]
    return Scores(
        metrics(predicted) | {"accuracy_authors": metrics(by_authors)["accuracy"]},
        items,
        [not answer for answer in predicted],
        {"always `yes`": metrics(["yes"] * len(documents))},
    )
