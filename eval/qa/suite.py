"""Suite `qa`: multiple-choice and yes/no/maybe questions, asked in several ways, with and without examples."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from eval.qa.measure import MedicalMMLU, QuestionTask
from eval.qa.questions import HELD_OUT, MMLU_ROWS, MOST_SHOWN, OFFICIAL_ROWS, QuestionSet, found_sets, read_set
from eval.suites import Task
from job.errors import InputError

HELP = "MedMCQA, PubMedQA, MedQA and medical MMLU (--data: directories with the published files, as they are)"
SCORINGS = ("letters", "options", "options-normalised", "generate")
_MMLU = [f"mmlu_{subject}" for subject in MMLU_ROWS]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of this suite alone."""
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="NAME",
        choices=[*OFFICIAL_ROWS, "mmlu"],
        help=f"which sets (default: all whose files are found): {', '.join(OFFICIAL_ROWS)}; mmlu is all its subjects",
    )
    parser.add_argument(
        "--scoring",
        nargs="+",
        default=["letters"],
        choices=SCORINGS,
        help="letters: the options are listed, the likeliest letter is the answer (default); options: they are not, "
        "the likeliest option is; options-normalised: the likeliest per character; generate: the answer is written, "
        "then parsed. PubMedQA is answered by yes, no or maybe instead of letters",
    )
    parser.add_argument(
        "--shots", type=int, nargs="+", default=[0], metavar="N", help="examples before each question (default 0)"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[],
        metavar="S",
        help="draw the examples with these seeds, and give mean and spread (default: the file's first ones, once)",
    )


def tasks(options: argparse.Namespace) -> list[Task]:
    """A task per set, scoring and number of shots; raises `InputError` where a set cannot be read or is too small."""
    for shots in options.shots:
        if not 0 <= shots <= MOST_SHOWN:
            raise InputError(f"--shots must be from 0 to {MOST_SHOWN}, not {shots}")
    if options.seeds and min(options.seeds) < 0:
        raise InputError(f"--seeds must be at least 0, not {min(options.seeds)}")
    if len(set(options.seeds)) < len(options.seeds):
        raise InputError("--seeds has a seed twice")
    sets = _sets(options)
    found: dict[str, Task] = {}  # by name: yes, no and maybe are asked once, be it for letters or for options
    for scoring in options.scoring:
        for shots in options.shots:
            seeds = options.seeds if shots else []
            asked = [QuestionTask(one, scoring, shots, seeds, options, held_out) for one, held_out in sets]
            found |= {task.name: Task(task.name, task.made_by, task.run) for task in asked}
            subjects = [task for task in asked if task.set_name.startswith("mmlu_")]
            if len(subjects) > 1:
                together = MedicalMMLU(subjects)
                found[together.name] = Task(together.name, together.made_by, together.run, together.combine)
    return list(found.values())


def _sets(options: argparse.Namespace) -> list[tuple[QuestionSet, int]]:
    """The sets asked for, or all there are, each with the rows held out of it for examples."""
    names: Sequence[str]
    if options.tasks:
        names = list(dict.fromkeys(n for name in options.tasks for n in (_MMLU if name == "mmlu" else [name])))
    else:
        names = found_sets(options.data)
        if not names:
            places = ", ".join(map(str, options.data))
            raise InputError(f"{places}: none of the files of {', '.join(OFFICIAL_ROWS)} is there")
        if missing := [name for name in OFFICIAL_ROWS if name not in names]:
            print(f"no files, so not scored: {', '.join(missing)}", file=sys.stderr)
    sets = []
    for name in names:
        whole = read_set(name, options.data)
        # The same rows are scored with and without examples, so that the two can be compared.
        held_out = HELD_OUT if any(options.shots) and not whole.examples else 0
        chosen = read_set(name, options.data, held_out) if held_out else whole
        if max(options.shots) > len(chosen.examples):
            raise InputError(
                f"--shots {max(options.shots)}: {name} has {len(chosen.examples)} rows that may be shown; put its "
                "training file beside the file that is scored"
            )
        sets.append((chosen, held_out))
    return sets
