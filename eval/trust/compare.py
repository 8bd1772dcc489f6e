"""`python -m eval compare A B`: is the difference between two models on the same test items more than chance?"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from eval.reports.evaluation import Evaluation, number, read
from eval.results import TaskResult
from eval.trust import statistics
from job.errors import InputError

_LEVEL = 0.05
_MAY_DIFFER = {"path", "directory", "limit", "items", "windows", "tokens", "bytes", "token_budget", "dtype", "device"}
"""keys of `made_by` that leave an item's score what it is: where data lay, and how many items there were"""

EPILOG = """OUT is the --out directory of `python -m eval`; with several models in it, OUT:MODEL names one.

  python -m eval compare scores:llama-2-7b-chat-hf scores:biomedgpt-lm-7b
  python -m eval compare scores/base scores/trained --json

Differences are B - A over the items that both have: a 95 % interval by the paired bootstrap, and a p-value by McNemar's
exact test where items are right or wrong, else by flipping signs at random, each corrected for the number of tasks
(Holm). "noise" means that this test set does not tell the two apart, not that they are equal.
"""


@dataclass(frozen=True)
class Side:
    """One of the two models."""

    evaluation: Evaluation
    model: str

    @property
    def results(self) -> dict[str, TaskResult]:
        """By task."""
        return self.evaluation.results[self.model]


@dataclass(frozen=True)
class Comparison:
    """Two models on the items of one task that both have."""

    task: str
    metric: str
    """what is compared: the task's first metric where it is the mean of the items' scores"""
    higher_is_better: bool
    items: int
    only_a: int
    """items that only one of the two has; they are left out"""
    only_b: int
    a: float
    b: float
    difference: float
    """b - a"""
    low: float
    high: float
    test: str
    p: float
    p_holm: float
    """corrected for the number of tasks compared"""

    @property
    def verdict(self) -> str:
        """`better` or `worse` (B against A), or `noise`."""
        if self.p_holm >= _LEVEL:
            return "noise"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"


def main(arguments: Sequence[str]) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="python -m eval compare",
        description="Compare two models on the same test items, and say whether the difference is noise.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="OUT_A[:MODEL]", help="the one to compare with")
    parser.add_argument("b", metavar="OUT_B[:MODEL]", help="the one in question")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)

    a, b = _side(options.a), _side(options.b)
    comparisons, left_out = compare(a, b, options.seed)
    precisions = ["/".join(sorted({str(r.made_by.get("dtype")) for r in side.results.values()})) for side in (a, b)]
    if precisions[0] != precisions[1]:
        print(f"note: A was computed in {precisions[0]}, B in {precisions[1]}", file=sys.stderr)
    if options.json:
        tasks = [asdict(found) | {"verdict": found.verdict} for found in comparisons]
        print(json.dumps({"a": options.a, "b": options.b, "tasks": tasks, "not_compared": left_out}, indent=2))
    else:
        _print(options.a, options.b, comparisons, left_out)
    return 0


def _side(words: str) -> Side:
    """What `OUT[:MODEL]` names; raises `InputError` where it names nothing, or several models."""
    splits = [words[:place] for place, letter in enumerate(words) if letter == ":"]  # models have colons, too
    directory = next((split for split in (words, *reversed(splits)) if split and Path(split).is_dir()), words)
    model = words[len(directory) + 1 :]
    evaluation = read(Path(directory))
    models = list(evaluation.results)
    if model and model not in models:
        raise InputError(f"{directory} has no model '{model}'; it has {', '.join(models)}")
    if not model and len(models) > 1:
        raise InputError(f"{directory} has several models; name one, such as {directory}:{models[0]}")
    if not models:
        raise InputError(f"{directory} has no results")
    return Side(evaluation, model or models[0])


def compare(a: Side, b: Side, seed: int = 0) -> tuple[list[Comparison], dict[str, str]]:
    """Compare all tasks that both have.

    Returns:
        The comparisons, with p-values corrected for their number; and by task why it was not compared.

    Raises `InputError` where nothing can be compared.
    """
    found: list[Comparison] = []
    left_out: dict[str, str] = {}
    for task in dict.fromkeys([*a.results, *b.results]):
        if task not in a.results or task not in b.results:
            left_out[task] = f"only {'A' if task in a.results else 'B'} has it"
            continue
        reason = _incomparable(a.results[task], b.results[task])
        compared = None if reason else _compare_task(task, a, b, seed)
        if compared is None:
            left_out[task] = reason or "no item has a score on both sides"
        else:
            found.append(compared)
    if not found:
        reasons = "; ".join(f"{task}: {reason}" for task, reason in left_out.items())
        raise InputError(f"nothing to compare between {a.evaluation.directory} and {b.evaluation.directory}: {reasons}")
    corrected = statistics.holm([comparison.p for comparison in found])
    return [Comparison(**{**asdict(one), "p_holm": p}) for one, p in zip(found, corrected)], left_out


def _incomparable(a: TaskResult, b: TaskResult) -> str | None:
    """Why two results of a task are not of the same thing, or None."""
    if a.version != b.version:
        return f"task versions {a.version} and {b.version} differ"
    for result, side in ((a, "A"), (b, "B")):
        if result.failed:
            return f"{side} is not to be used: {result.failed}"
    ours, theirs = _leaves(a.made_by), _leaves(b.made_by)
    differing = [key for key in dict.fromkeys([*ours, *theirs]) if ours.get(key) != theirs.get(key)]
    if differing:
        key = differing[0]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        return f"{key} differs: {_short(ours.get(key))} and {_short(theirs.get(key))}{more}"
    return None


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as `data.0.sha256: ...`, without those that may differ."""
    if isinstance(value, dict):
        pairs = [(key, one) for key, one in value.items() if key not in _MAY_DIFFER]
    elif isinstance(value, list):
        pairs = [(str(place), one) for place, one in enumerate(value)]
    else:
        return {prefix: value}
    return {
        name: leaf for key, one in pairs for name, leaf in _leaves(one, f"{prefix}.{key}" if prefix else key).items()
    }


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:15]}…"


def _compare_task(task: str, a: Side, b: Side, seed: int) -> Comparison | None:
    """Over the items of both, matched by id; None where there are none."""
    ours = {item["id"]: item for item in a.evaluation.items(a.model, task) if item.get("score") is not None}
    theirs = {item["id"]: item for item in b.evaluation.items(b.model, task) if item.get("score") is not None}
    shared = [name for name in ours if name in theirs]
    if not shared:
        return None
    pairs = [(ours[name], theirs[name]) for name in shared]
    if all({"nats", "bytes"} <= item.keys() for item in pairs[0]):
        difference = _of_bits(pairs, seed)
    else:
        difference = _of_scores(pairs, a.results[task], [item["score"] for item in ours.values()], seed)
    return Comparison(
        task=task,
        items=len(shared),
        only_a=len(ours) - len(shared),
        only_b=len(theirs) - len(shared),
        **asdict(difference),
        p_holm=difference.p,
    )


@dataclass(frozen=True)
class _Difference:
    metric: str
    higher_is_better: bool
    a: float
    b: float
    difference: float
    low: float
    high: float
    test: str
    p: float


def _of_scores(
    pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], result: TaskResult, all_scores: Sequence[float], seed: int
) -> _Difference:
    """Of the items' mean scores, which are the task's first metric or, for BLEU of a whole corpus, only near it."""
    a = np.array([item["score"] for item, _ in pairs], np.float64)
    b = np.array([item["score"] for _, item in pairs], np.float64)
    name, metric = next(iter(result.metrics.items()))
    is_mean = math.isclose(float(np.mean(all_scores)), metric.value, rel_tol=1e-6, abs_tol=1e-9)
    label = name if is_mean else f"mean score of items ({name})"
    difference, low, high = statistics.paired_bootstrap(b, a, seed)
    if np.isin(np.concatenate([a, b]), (0, 1)).all():
        test, p = "McNemar", statistics.mcnemar(a, b)
    else:
        test, p = "sign flips", statistics.sign_flip_test(a, b, seed)
    higher = metric.higher_is_better
    return _Difference(label, higher, float(a.mean()), float(b.mean()), difference, low, high, test, p)


def _of_bits(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], seed: int) -> _Difference:
    """Of bits per byte over the same windows of text."""
    size = np.array([item["bytes"] for item, _ in pairs], np.float64)
    a, b = (np.array([pair[side]["nats"] for pair in pairs]) / math.log(2) for side in (0, 1))
    counted = size > 0  # a window of special tokens alone has no text
    low, high = statistics.ratio_interval((b - a)[counted], size[counted], seed)
    of_a, of_b = float(a.sum() / size.sum()), float(b.sum() / size.sum())
    p = statistics.sign_flip_test(a, b, seed)
    return _Difference("bits_per_byte", False, of_a, of_b, of_b - of_a, low, high, "sign flips", p)


def _print(a: str, b: str, comparisons: Sequence[Comparison], left_out: dict[str, str]) -> None:
    table = Table(title=f"A: {a}\nB: {b}", title_justify="left")
    for head in ("task", "metric", "items", "A", "B", "B - A [95 %]", "test", "p", "p (Holm)", ""):
        table.add_column(head, justify="left" if head in ("task", "metric", "test", "") else "right")
    for one in comparisons:
        table.add_row(
            one.task,
            one.metric,
            f"{one.items:,}",
            number(one.a),
            number(one.b),
            f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}]",
            one.test,
            f"{one.p:.4f}",
            f"{one.p_holm:.4f}",
            one.verdict,
        )
    Console(width=None if sys.stdout.isatty() else 250).print(table)
    for one in comparisons:
        print(sentence(one))
    for task, reason in left_out.items():
        print(f"{task}: not compared: {reason}")


def sentence(one: Comparison) -> str:
    """What a comparison comes to, in words."""
    missing = [f"{count:,} only in {side}" for count, side in ((one.only_a, "A"), (one.only_b, "B")) if count]
    over = f"over {one.items:,} items" + (f" ({', '.join(missing)}, left out)" if missing else "")
    amount = f"{one.metric} {number(one.a)} and {number(one.b)} {over}"
    if one.verdict == "noise":
        return f"{one.task}: {amount}: the difference is within noise (p {one.p_holm:.3f})."
    return f"{one.task}: {amount}: B is {one.verdict}, by more than chance explains (p {one.p_holm:.4f})."
