"""Suite `biogpt`: the tasks that BioGPT was fine-tuned on, asked and answered in its templates."""

from __future__ import annotations

import argparse
import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from eval.biogpt.data import PROMPT_SUFFIX, DataSet, data_set, prompt
from eval.biogpt.documents import FORMATS
from eval.suites import Task
from job.errors import InputError

if TYPE_CHECKING:
    from eval.models import EvalModel
    from eval.results import TaskResult
    from eval.work import Journal

HELP = (
    "BioGPT's tasks in its templates: relations (BC5CDR, KD-DTI, DDI), HoC, PubMedQA (--data: the folders of its "
    "files, named bc5cdr, kd_dti, ddi, hoc, pubmedqa)"
)
VERSION = "1"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=tuple(FORMATS),
        metavar="TASK",
        help=f"of {', '.join(FORMATS)} (default: all there)",
    )
    parser.add_argument(
        "--shots",
        type=int,
        default=0,
        metavar="N",
        help="examples from the train split, for models that are not fine-tuned (default 0)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=0,
        metavar="N",
        help="longest answer (default: what BioGPT's 1,024 positions leave: 375; HoC 123; PubMedQA 32)",
    )
    parser.add_argument(
        "--prompt-suffix",
        default=PROMPT_SUFFIX,
        metavar="TEXT",
        help=f'between document and answer, as in fine-tuning (default "{PROMPT_SUFFIX}")',
    )


def tasks(options: argparse.Namespace) -> list[Task]:
    """One task per data set that is there; raises `InputError` where files are damaged or missing."""
    for key in ("shots", "max_new_tokens"):
        if getattr(options, key) < 0:
            raise InputError(f"--{key.replace('_', '-')} must not be negative")
    needed = ("test", "train") if options.shots else ("test",)
    found = []
    for name in dict.fromkeys(options.tasks or FORMATS):
        data = data_set(name, options.data, needed)
        if data is not None:
            found.append(_task(data, options))
        elif options.tasks:
            raise InputError(f"--tasks {name}: no folder of that name in {', '.join(map(str, options.data))}")
    if not found:
        raise InputError(f"{', '.join(map(str, options.data))}: no folder named {', '.join(FORMATS)}")
    return found


def _task(data: DataSet, options: argparse.Namespace) -> Task:
    max_new_tokens = options.max_new_tokens or FORMATS[data.name].new_tokens
    texts = [[prompt(document.source, options.prompt_suffix), document.target] for document in data.test]
    made_by = {
        "version": VERSION,
        "data": data.checksums,
        "prompts_and_targets_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "prompt_suffix": options.prompt_suffix,
        "shots": options.shots,
        "source_tokens": FORMATS[data.name].source_tokens,
        "max_new_tokens": max_new_tokens,
        "decoding": "greedy",
        "limit": options.limit,
        "seed": options.seed,
    }
    return Task(data.name, made_by, partial(_measure, data, options, max_new_tokens, made_by))


def _measure(
    data: DataSet,
    options: argparse.Namespace,
    max_new_tokens: int,
    made_by: dict[str, Any],
    model: EvalModel,
    journal: Journal,
) -> TaskResult:
    from eval.biogpt.measure import Settings, measure

    settings = Settings(
        options.shots, options.seed, options.limit, max_new_tokens, options.prompt_suffix, options.token_budget
    )
    return measure(data, VERSION, settings, made_by, model, journal)
