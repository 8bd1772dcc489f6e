"""`python -m eval contamination OUT --shards DIR`: which evaluated items occur in what a model was trained on?

An item overlaps where it shares one run of 13 words with a training text (Brown et al. 2020, "Language Models are
Few-Shot Learners", appendix C, whose length it is). How much of an item is found is reported, too: one shared run may
be a stock phrase; four fifths of them are a copy.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.ngrams import NgramIndex
from eval.reports.contamination import MOSTLY, print_table
from eval.reports.evaluation import Evaluation, read
from eval.reports.report import write
from eval.results import SHARES
from eval.trust.statistics import mean_metric
from eval.trust.training_search import Found, search
from eval.trust.training_texts import TrainingTexts, open_texts
from job import manifest
from job.errors import InputError
from job.files import sha256_file, write_json

FORMAT_VERSION = 1
_LOOKED_FOR = ("text", "description", "reference")
"""keys of an item: its own text; of a molecule to be written its description; where all items are asked the same, the
answer that is wanted"""

EPILOG = """example: python -m eval contamination scores --shards data/biomedical data/replay

DIR is the output of `data_shards build` (its training documents are searched) or of `align build` (questions with their
answers). Writes OUT/contamination.json, with every overlapping item and where it was found, and OUT's report anew.
"""


def main(arguments: Sequence[str]) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="python -m eval contamination",
        description="Look for the evaluated items in training data, and score with and without those found.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the --out directory of `python -m eval`")
    parser.add_argument("--shards", type=Path, nargs="+", required=True, metavar="DIR", help="training data")
    parser.add_argument("--ngram", type=int, default=13, metavar="N", help="words of a shared run (default 13)")
    parser.add_argument("--tokenizer", type=Path, help="of the shards, if not where their manifest says")
    parser.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: as many as CPUs)"
    )
    options = parser.parse_args(arguments)
    if options.ngram < 1 or options.workers < 1:
        raise InputError("--ngram and --workers must be at least 1")

    evaluation = read(options.out)
    body = measure(evaluation, options.shards, options.ngram, options.tokenizer, options.workers)
    write_json(options.out / "contamination.json", body)
    write(options.out)
    print_table(body)
    print(f"items and where they were found: {options.out / 'contamination.json'}")
    return 0


def measure(
    evaluation: Evaluation, directories: Sequence[Path], n: int, tokenizer: Path | None = None, workers: int = 1
) -> dict[str, Any]:
    """What goes into contamination.json; raises `InputError` where no item has a text to look for."""
    training = [open_texts(directory, tokenizer) for directory in directories]
    tasks = {task: _texts(evaluation, task) for task in evaluation.tasks}
    texts = list(dict.fromkeys(text for some in tasks.values() for text in some.values()))
    if not texts:
        raise InputError(f"{evaluation.directory}: no item has a text to look for (suite {evaluation.suite})")
    index = NgramIndex(texts, n)
    found = search(index, texts, directories, tokenizer, workers)
    places = {text: place for place, text in enumerate(texts)}
    return {
        "format_version": FORMAT_VERSION,
        "results_sha256": sha256_file(evaluation.directory / "results.json"),
        "ngram": n,
        "code_version": manifest.code_version(),
        "shards": [manifest.reference(directory) for directory in directories],
        "texts": [len(some.sizes()) for some in training],
        "tasks": {
            task: _task(evaluation, task, some, places, index, found, training) for task, some in tasks.items() if some
        },
        "not_looked_for": [task for task, some in tasks.items() if not some],
    }


def _texts(evaluation: Evaluation, task: str) -> dict[str, str]:
    """By item what is looked for, whichever models gave the items."""
    found: dict[str, str] = {}
    for model in evaluation.of_task(task):
        for item in evaluation.items(model, task):
            text = next((item[key] for key in _LOOKED_FOR if item.get(key)), None)
            if text:
                found[item["id"]] = str(text)
    return found


# What was found


def _task(
    evaluation: Evaluation,
    task: str,
    texts: dict[str, str],
    places: dict[str, int],
    index: NgramIndex,
    found: Found,
    training: list[TrainingTexts],
) -> dict[str, Any]:
    """Shares, scores and overlapping items of one task."""
    overlapping: list[dict[str, Any]] = []
    short = 0
    for item, text in texts.items():
        ngrams = index.of_text[places[text]]
        short += len(ngrams) == 0
        hits = ngrams[found.directories[ngrams] >= 0]
        if len(hits):
            some = training[int(found.directories[hits[0]])]
            where = {"shards": str(some.directory), "document": some.identifier(int(found.texts[hits[0]]))}
            overlapping.append({"id": item, "share": round(len(hits) / len(ngrams), 4)} | where)
    contaminated = {entry["id"] for entry in overlapping}
    return {
        "items": len(texts),
        "too_short": short,
        "overlapping": len(overlapping),
        "mostly_overlapping": sum(entry["share"] >= MOSTLY for entry in overlapping),
        "scores": {model: _scores(evaluation, model, task, contaminated) for model in evaluation.of_task(task)},
        "overlapping_items": overlapping,
    }


def _scores(evaluation: Evaluation, model: str, task: str, contaminated: set[str]) -> dict[str, Any]:
    """Mean scores of all items, of those that do not overlap, and of those that do."""
    scored = [
        (item["id"] in contaminated, item["score"])
        for item in evaluation.items(model, task)
        if item.get("score") is not None
    ]
    groups = {
        "all": [score for _, score in scored],
        "without": [score for overlaps, score in scored if not overlaps],
        "overlapping": [score for overlaps, score in scored if overlaps],
    }
    share = evaluation.first_metric(task) in SHARES
    return {
        name: asdict(mean_metric(np.array(scores), share=share)) if scores else None for name, scores in groups.items()
    }


# Showing
