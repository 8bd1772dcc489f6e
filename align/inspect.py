"""`python -m align inspect DIR`: what a build of questions holds, and in which order training asks."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.question_order import QuestionOrder
from align.question_shards import SPLITS, QuestionSet, find
from job.errors import InputError


@dataclass(frozen=True)
class _Source:
    name: str
    directory: Path
    weight: float | None = None


def main(arguments: list[str]) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="python -m align inspect",
        description="Show what a build of questions holds: an overview, single questions, or the order of training.",
        epilog="examples: inspect DIR;  inspect DIR --id uniprot:P12345:family;  inspect DIR --split test --index 0;  "
        "inspect DIR --order 0 --count 5;  inspect DIR --verify",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the output of `align build`")
    parser.add_argument("--split", default="train", choices=SPLITS, help="(default: train)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--id", metavar="ID", help="the question with this id")
    what.add_argument("--index", type=int, metavar="N", help="question number N of the split, from 0")
    what.add_argument("--order", type=int, metavar="N", help="question N of training on this build alone")
    what.add_argument("--verify", action="store_true", help="read every shard and compare it with its checksum")
    parser.add_argument("--count", type=int, default=1, help="so many questions from there on (default: 1)")
    parser.add_argument("--seed", type=int, default=1234, help="data seed of --order (default: 1234)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    options = parser.parse_args(arguments)

    questions = QuestionSet(options.directory, options.split)
    if options.verify:
        for split in SPLITS:
            QuestionSet(options.directory, split).verify()
        print(f"{options.directory}: every shard is as it was written")
        return 0
    if options.order is not None:
        if options.order < 0:
            raise InputError(f"--order {options.order} is before the first question, 0")
        order = QuestionOrder([_Source("this", options.directory)], options.seed)
        numbers = [order.place(n)[1] for n in range(options.order, options.order + options.count)]
        questions = QuestionSet(options.directory, "train")
    elif options.id is not None:
        numbers = [find(questions, options.id)]
    elif options.index is not None:
        if not 0 <= options.index < len(questions):
            raise InputError(f"--index {options.index}: the split '{options.split}' has {len(questions)} questions")
        numbers = list(range(options.index, min(options.index + options.count, len(questions))))
    else:
        _overview(questions)
        return 0
    for number in numbers:
        record = questions.record(number)
        print(json.dumps(record, ensure_ascii=False)) if options.json else _show(number, record)
    return 0


def _overview(questions: QuestionSet) -> None:
    summary: dict[str, Any] = questions.manifest.get("summary", {})
    config: dict[str, Any] = questions.manifest.get("config", {})
    print(f"{questions.directory}: {config.get('kind', 'questions')}, {json.dumps(config.get('split', {}))}")
    for split in SPLITS:
        count = len(QuestionSet(questions.directory, split))
        print(f"{split}: {count:,} questions about {summary.get('structures', {}).get(split, 0):,} structures")
    for reason, count in summary.get("rejected", {}).items():
        print(f"rejected, {reason}: {count:,}")


def _show(number: int, record: dict[str, Any]) -> None:
    print(f"question {number:,}: {record['id']}   ({record.get('file', '')}, {record.get('position', '')})")
    for smiles, atoms in zip(record.get("molecules", ()), record.get("atoms", ())):
        print(f"  molecule, {atoms} atoms: {smiles}")
    for sequence in record.get("proteins", ()):
        print(f"  protein, {len(sequence):,} residues: {sequence[:60]}{'...' if len(sequence) > 60 else ''}")
    print(f"  {record['question']}\n  -> {record['answer']}")
