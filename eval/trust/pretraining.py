"""`python -m eval pretraining`: does continued pretraining help? Base against continued model, over seeds.

Two questions, answered with the same machinery and on the same items for every model: held-out text, source by source
(bits per byte), and the questions of suite `qa`. Each difference has the interval that the choice of items leaves open
(paired bootstrap of the mean over seeds), and the spread over seeds beside it; it counts only where a paired t-test,
corrected for the number of measures (Holm), finds it and all seeds agree on the sign.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import run as suites
from eval.reports.evaluation import Evaluation, read
from job.errors import InputError
from job.files import write_json, write_text

if TYPE_CHECKING:
    import numpy as np

DESCRIPTION = """Does continued pretraining help? Compare the model before with the models after, one per seed.

  python -m eval pretraining --base models/llama2-7b-chat --continued models/seed-1 models/seed-2 models/seed-3 \\
      --shards shards/pubmed --data benchmarks/medical --out scores/pretraining

Measures bits per byte on the validation split of --shards, per source, and every task of suite qa on --data (its
options, such as --shots 5, can be added; see `python -m eval --suite qa --help`), and says of each whether the
difference is more than noise. What was measured before is not measured again.
"""


@dataclass(frozen=True)
class Difference:
    """One measure of the model before and of the models after."""

    measure: str
    items: int
    base: float
    continued: list[float]
    """by seed"""
    difference: float
    """mean over seeds minus base"""
    low: float
    """95 % interval of the difference over items"""
    high: float
    seed_spread: float
    """standard deviation over seeds; 0 for a single one"""
    higher_is_better: bool
    p: float
    """that items alone make such a difference (paired t over items); corrected for the number of measures"""
    failed: str | None = None
    """models whose numbers must not be used"""
    constant: float | None = None
    """what the same answer to every item scores at best; None where answers are not chosen"""

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `noise`; `not to be used`.

        A gain up to what a constant answer scores is said to be that: models learn the most frequent letter first.
        """
        signs = {value > self.base for value in self.continued}
        if self.failed:
            return f"not to be used: {self.failed}"
        if self.p >= 0.05 or len(signs) > 1:
            return "noise"
        if (self.difference > 0) != self.higher_is_better:
            return "worse"
        if self.constant is not None and sum(self.continued) / len(self.continued) <= self.constant:
            return "better, yet not above a constant answer"
        return "better"


def main(arguments: Sequence[str]) -> int:
    """Measure both, compare, write and print."""
    parser = argparse.ArgumentParser(
        prog="python -m eval pretraining", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, metavar="MODEL_DIR", help="the model before")
    parser.add_argument(
        "--continued", type=Path, required=True, nargs="+", metavar="MODEL_DIR", help="the models after, one per seed"
    )
    parser.add_argument("--shards", type=Path, nargs="+", metavar="DIR", help="token shards with a validation split")
    parser.add_argument("--sequence-length", type=int, default=2048, metavar="N", help="tokens of a window (2048)")
    parser.add_argument("--data", type=Path, nargs="+", metavar="DIR", help="files of suite qa")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of results and tables")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, and of suite qa (default 0)")
    for name, help_line in (
        ("limit", "only so many items of each task"),
        ("token-budget", "padded tokens of a batch"),
        ("dtype", "float32 or bfloat16"),
        ("device", "cpu, cuda, cuda:1"),
    ):
        parser.add_argument(f"--{name}", metavar="X", help=f"{help_line}, as in `python -m eval`")
    options, qa_words = parser.parse_known_args(arguments)
    if not (options.shards or options.data):
        raise InputError("give --shards, --data, or both: there is nothing to measure")
    if qa_words and not options.data:
        raise InputError(f"{' '.join(qa_words)}: unknown, or an option of suite qa, which needs --data")
    models = [options.base, *options.continued]
    differences = []
    if options.shards:
        words = ["--data", *options.shards, "--sequence-length", options.sequence_length]
        differences += _differences(_run("perplexity", models, words, options), options.seed)
    if options.data:
        differences += _differences(_run("qa", models, ["--data", *options.data, *qa_words], options), options.seed)
    differences = _corrected(differences)
    body = {
        "base": str(options.base),
        "continued": [str(path) for path in options.continued],
        "seed": options.seed,
        "differences": [asdict(found) | {"verdict": found.verdict} for found in differences],
    }
    write_json(options.out / "pretraining.json", body)
    text = table(differences)
    write_text(options.out / "pretraining.md", text + "\n")
    print(f"\n{text}\n\ntable: {options.out / 'pretraining.md'}   details: {options.out / 'pretraining.json'}")
    return 0


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    """With p-values corrected for the number of measures."""
    from eval.trust.statistics import holm

    return [replace(found, p=p) for found, p in zip(differences, holm([found.p for found in differences]))]


def _run(suite: str, models: Sequence[Path], words: Sequence[Any], options: argparse.Namespace) -> Path:
    out = options.out / suite
    fixed = [*models, "--suite", suite, "--out", out, "--seed", options.seed]
    for name in ("limit", "token_budget", "dtype", "device"):
        if getattr(options, name) is not None:
            fixed += [f"--{name.replace('_', '-')}", getattr(options, name)]
    suites.main([str(word) for word in [*fixed, *words]], {})
    return out


def _differences(out: Path, seed: int) -> list[Difference]:
    """One per task of a finished run, whose first model is the base."""
    import numpy as np

    evaluation = read(out)
    base, *continued = evaluation.results
    found = []
    for task, result in evaluation.results[base].items():
        ours, below = _values(evaluation, base, task)
        theirs = np.stack([_values(evaluation, model, task)[0] for model in continued])
        name = "bits per byte" if "bits_per_byte" in result.metrics else evaluation.first_metric(task)
        better = result.metrics[evaluation.first_metric(task)].higher_is_better
        one = difference(f"{task}: {name}", ours, theirs, below, better, seed)
        failed = [model for model, of_model in evaluation.of_task(task).items() if of_model.failed]
        found.append(replace(one, failed=", ".join(failed) or None, constant=_constant(evaluation, base, task)))
    return found


def _values(evaluation: Evaluation, model: str, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Per item what is summed, and what the sum is divided by."""
    import numpy as np

    items = list(evaluation.items(model, task))
    if "nats" in items[0]:
        return np.array([item["nats"] / np.log(2) for item in items]), np.array(
            [float(item["bytes"]) for item in items]
        )
    return np.array([float(item["score"]) for item in items]), np.ones(len(items))


def _constant(evaluation: Evaluation, model: str, task: str) -> float | None:
    """The share of the most frequent right answer."""
    golds = [item["gold"] for item in evaluation.items(model, task) if "gold" in item]
    return Counter(golds).most_common(1)[0][1] / len(golds) if golds else None


def difference(
    measure: str, base: np.ndarray, continued: np.ndarray, below: np.ndarray, higher_is_better: bool, seed: int
) -> Difference:
    """Compare sums of item values over sums of `below`: base [items], continued [seeds, items], below [items]."""
    import numpy as np
    from scipy.stats import ttest_rel

    from eval.trust.statistics import ratio_interval

    low, high = ratio_interval(continued.mean(0) - base, below, seed)
    after = [float(values.sum() / below.sum()) for values in continued]
    before = float(base.sum() / below.sum())
    spread = float(np.std(after, ddof=1)) if len(after) > 1 else 0.0
    mean = float(np.mean(after)) - before
    counted = below > 0  # a window may hold nothing but an end token, which has no bytes
    changed, unchanged = continued.mean(0)[counted] / below[counted], base[counted] / below[counted]
    p = float(ttest_rel(changed, unchanged).pvalue) if (changed != unchanged).any() else 1.0
    return Difference(measure, len(base), before, after, mean, low, high, spread, higher_is_better, p)


def table(differences: Sequence[Difference]) -> str:
    """Markdown."""
    lines = [
        "| measure | items | one constant answer | before | after, by seed | difference [95 %] | |",
        "|---|---:|---:|---:|---|---|---|",
    ]
    for found in differences:
        after = " / ".join(f"{value:.3f}" for value in found.continued)
        interval = f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
        constant = "" if found.constant is None else f"{found.constant:.3f}"
        values = [found.measure, f"{found.items:,}", constant, f"{found.base:.3f}", after, interval, found.verdict]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)
