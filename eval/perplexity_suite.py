"""Suite `perplexity`: loss, perplexity and bits per byte on the validation split of token shards, per source."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

from data_shards.validation import validation_sources
from eval.suites import Task
from job import manifest
from job.errors import InputError

if TYPE_CHECKING:
    from data_shards.order import ValidationWindows
    from eval.models import EvalModel
    from eval.results import TaskResult
    from eval.work import Journal

HELP = "loss, perplexity and bits per byte on held-out articles, per source (--data: token shards)"
VERSION = "1"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    parser.add_argument("--sequence-length", type=int, default=2048, metavar="N", help="tokens of a window (2048)")


def tasks(options: argparse.Namespace) -> list[Task]:
    """One task per source; raises `InputError` where the shards have no validation split."""
    corpora = {directory.resolve().name: directory for directory in options.data}
    if len(corpora) < len(options.data):
        raise InputError("--data: two of the directories have the same name; rename one")
    sources = validation_sources(corpora, options.sequence_length)
    if not sources:
        names = ", ".join(map(str, options.data))
        raise InputError(f"{names}: no validation tokens; build with sharding.validation_fraction above 0")
    data = [manifest.reference(directory) for directory in options.data]
    made_by = {"sequence_length": options.sequence_length, "limit": options.limit, "seed": options.seed, "data": data}
    return [
        Task(source, made_by | {"source": source}, partial(_measure, source, windows, options, made_by))
        for source, windows in sources.items()
    ]


def _measure(
    source: str,
    windows: ValidationWindows,
    options: argparse.Namespace,
    made_by: dict[str, object],
    model: EvalModel,
    journal: Journal,
) -> TaskResult:
    from eval.perplexity import measure

    return measure(source, VERSION, windows, model, journal, options.token_budget, options.limit, options.seed, made_by)
