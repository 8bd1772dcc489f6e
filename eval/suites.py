"""The suites by name, and what a suite is: a module that finds its tasks in a data directory."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from eval.models import EvalModel
    from eval.results import TaskResult
    from eval.work import Journal


@dataclass(frozen=True)
class Task:
    """One thing to measure, its data read and checked."""

    name: str
    """unique, such as `medmcqa-letters-5-shot`"""
    made_by: dict[str, Any]
    """JSON of everything but the model that decides the outcome; its change makes earlier results void"""
    run: Callable[[EvalModel, Journal], TaskResult]
    """collective over ranks; every rank returns the same"""
    combine: Callable[[Mapping[str, TaskResult]], TaskResult] | None = None
    """of a task that asks nothing of its own: its result, made of those of one model's tasks before it, by name,
    whether measured now or kept from an earlier run; `run` gives the same where these are not at hand"""
    scored_by: frozenset[str] = frozenset()
    """keys of `made_by` that decide what answers score, not what they are: answers outlive their change"""


class Suite(Protocol):
    """What a suite's module has. It imports neither torch nor lm-eval at its top, so that `--help` is quick."""

    HELP: str
    """one line: what is measured, and what `--data` has to hold"""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Options of this suite alone."""

    def tasks(self, options: argparse.Namespace) -> list[Task]:
        """Read and check the data under `options.data` before any model is loaded; raises `InputError`."""


SUITES = {
    "perplexity": "eval.perplexity_suite",
    "qa": "eval.qa.suite",
    "structures": "eval.structures.suite",
    "text2molecule": "eval.structures.text_to_molecule_suite",
    "retrieval": "eval.structures.retrieval_suite",
    "biogpt": "eval.biogpt.suite",
}
"""By name, the module."""


def suite(name: str) -> Suite:
    """The module of a suite."""
    module: Any = importlib.import_module(SUITES[name])
    return module
