"""Score model directories on a suite: check the data, then model by model and task by task, then write the report.

    OUT/results.json           every number, and everything that made it; no times: a rerun gives the same bytes
    OUT/items/MODEL/TASK.jsonl what each model gave on each test item
    OUT/report.md, report.html, plots/, model_card.md
    OUT/parts/                 finished tasks and journals of unfinished ones, so that a run that died goes on

Under torchrun the items of each task are split over the ranks.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.suites import SUITES, Suite, Task, suite
from job import manifest
from job.errors import InputError
from job.files import atomic_file, read_json, write_json
from job.verbs import check_at_least

if TYPE_CHECKING:
    from eval.models import EvalModel
    from eval.results import TaskResult

FORMAT_VERSION = 1
_PACKAGES = ("lm-eval", "nltk", "rouge-score", "rdkit", "scipy", "torch-geometric")

DESCRIPTION = """Score Hugging Face model directories, or aligned ones; several are shown side by side.

  python -m eval models/biomedgpt-lm-7b --suite qa --data benchmarks/medical --out scores/qa
  torchrun --nproc-per-node 8 -m eval ...      the items split over 8 devices

A run that was stopped goes on when it is started again with the same --out.
"""


def main(words: Sequence[str], verbs: Mapping[str, tuple[str, str]]) -> int:
    """Parse, check, score, write, print."""
    options, chosen = parse(words, verbs)
    with _ranks():
        return _run(options, chosen)


def _run(options: argparse.Namespace, chosen: Suite) -> int:
    names = _names(options.models)
    _check_out(options, names)
    tasks = chosen.tasks(options)
    if not tasks:
        raise InputError(f"suite {options.suite}: nothing to measure in {', '.join(map(str, options.data))}")
    _choose_device(options)
    results: dict[str, dict[str, TaskResult]] = {}
    models: dict[str, Any] = {}
    for name, directory in names.items():
        results[name] = _score_model(name, directory, tasks, options, models)
    if _is_first_rank():
        _write(options, results, models)
        from eval.reports import report

        report.write(options.out)
        report.print_tables(options.out)
        print(f"results: {options.out / 'results.json'}   report: {options.out / 'report.html'}")
    failed = [f"{name}: {task}: {r.failed}" for name, found in results.items() for task, r in found.items() if r.failed]
    if failed and _is_first_rank():
        print("\n".join(f"not to be used: {line}" for line in failed), file=sys.stderr)
    return 1 if failed else 0


def parse(words: Sequence[str], verbs: Mapping[str, tuple[str, str]]) -> tuple[argparse.Namespace, Suite]:
    """The options, with those of the suite that `--suite` names, and the suite."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--suite", choices=SUITES)
    name = first.parse_known_args(words)[0].suite
    parser = argparse.ArgumentParser(
        prog="python -m eval",
        description=DESCRIPTION,
        epilog=_epilog(name, verbs),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", metavar="MODEL_DIR", nargs="+", type=Path, help="model directories")
    parser.add_argument("--suite", required=True, choices=SUITES, help="what to measure")
    parser.add_argument(
        "--data", required=True, type=Path, nargs="+", metavar="DIR", help="where the suite's data lie (several: all)"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="directory of results and report")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only so many items of each task")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument(
        "--token-budget", type=int, default=8192, metavar="N", help="padded tokens of a batch (default 8192)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of the language model (default: bfloat16 on a GPU, else float32)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    if name is None:
        options = parser.parse_args(words)  # prints the help, or complains
        raise AssertionError(options)
    chosen = suite(name)
    chosen.add_options(parser.add_argument_group(f"suite {name}"))  # type: ignore[arg-type]
    options = parser.parse_args(words)
    check_at_least(options, limit=0, seed=0, token_budget=1)
    for directory in options.models:
        if not (directory / "config.json").exists():
            raise InputError(f"{directory}/config.json does not exist; a Hugging Face model directory is needed")
    for directory in options.data:
        if not directory.exists():
            raise InputError(f"--data {directory} does not exist")
    return options, chosen


def _epilog(name: str | None, verbs: Mapping[str, tuple[str, str]]) -> str:
    if name is not None:
        return f"suite {name}: {suite(name).HELP}"
    width = max(map(len, [*SUITES, *verbs]))
    lines = ["suites (--suite NAME --help explains one):"]
    lines += [f"  {other:<{width}}  {suite(other).HELP}" for other in SUITES]
    lines += ["", "verbs (python -m eval VERB --help):"]
    lines += [f"  {verb:<{width}}  {help_line}" for verb, (_, help_line) in verbs.items()]
    return "\n".join(lines)


def _names(directories: Sequence[Path]) -> dict[str, Path]:
    """What the report calls each model: its directory's name, with its parent's where two are alike."""
    resolved = [directory.resolve() for directory in directories]
    short = [path.name for path in resolved]
    names = [path.name if short.count(path.name) == 1 else f"{path.parent.name}-{path.name}" for path in resolved]
    if len(set(names)) < len(names):
        raise InputError(f"model directories have the same names ({', '.join(names)}); give each once, or rename them")
    return dict(zip(names, directories))


def _check_out(options: argparse.Namespace, names: Mapping[str, Path]) -> None:
    """Refuse an OUT with results that this run's would replace: of another suite, or of a model it does not score."""
    file = options.out / "results.json"
    body = read_json(file) if file.is_file() else None
    if not isinstance(body, dict):
        return
    others = [name for name in body.get("models", {}) if name not in names]
    if body.get("suite") != options.suite:
        what = f"suite {body.get('suite')}"
    elif others:
        what = f"model {', '.join(others)}"
    else:
        return
    raise InputError(f"{options.out} holds results of {what}, which these would replace; choose another --out")


@contextlib.contextmanager
def _ranks() -> Iterator[None]:
    """Join the ranks that torchrun or srun has started, if there are several; all leave together, after the report."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield
    dist.barrier()  # a rank that leaves with status 1 ends the others
    dist.destroy_process_group()


def _choose_device(options: argparse.Namespace) -> None:
    """Say in the options what is used where they left it open: results depend on it, and tell it."""
    import torch

    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.dtype = options.dtype or ("float32" if options.device.startswith("cpu") else "bfloat16")


def _score_model(
    name: str, directory: Path, tasks: Sequence[Task], options: argparse.Namespace, models: dict[str, Any]
) -> dict[str, TaskResult]:
    """All tasks of one model, which is loaded only if one of them is still to be measured."""
    from eval.models import checksum

    identity = checksum(directory)
    models[name] = {"directory": str(directory), "checksum": identity, "manifest": _manifest(directory)}
    parts = options.out / "parts" / name
    model: EvalModel | None = None
    results: dict[str, TaskResult] = {}
    for task in tasks:
        fingerprint = _fingerprint(identity, task, options)
        result = _kept(parts, task, fingerprint)
        if result is None:
            if task.combine is not None:
                result = task.combine(results)
            else:
                model = model or _load(directory, options)
                of_answers = _fingerprint(identity, task, options, without=task.scored_by)
                result = _measure(task, model, parts, of_answers)
            result.made_by = result.made_by | {"dtype": options.dtype, "device": options.device}
            _keep(parts, task, fingerprint, result)
        results[task.name] = result
    return results


def _measure(task: Task, model: EvalModel, parts: Path, fingerprint: str) -> TaskResult:
    from eval.work import Journal

    # Batches, and with them the last digits, depend on the number of ranks: no mixture within a task.
    journal = Journal(parts, task.name, f"{fingerprint}-{os.environ.get('WORLD_SIZE', '1')}")
    try:
        return task.run(model, journal)
    finally:
        journal.close()


def _load(directory: Path, options: argparse.Namespace) -> EvalModel:
    import torch

    from eval.models import load

    try:
        device = torch.device(options.device)
    except RuntimeError:
        raise InputError(f"--device {options.device} is no device; cpu, cuda and cuda:1 are") from None
    return load(directory, getattr(torch, options.dtype), device)


def _fingerprint(identity: str, task: Task, options: argparse.Namespace, without: frozenset[str] = frozenset()) -> str:
    """Of all that decides a task's numbers (`without` some of it); its change makes what was measured before void."""
    made_by = {key: value for key, value in task.made_by.items() if key not in without}
    content = [identity, task.name, made_by, options.dtype, options.device, options.token_budget, _versions()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return manifest.package_versions(_PACKAGES)


def _manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest of a model that this project exported, which tells its provenance."""
    file = directory / manifest.NAME
    return read_json(file) if file.is_file() else None


def _is_first_rank() -> bool:
    return int(os.environ.get("RANK", "0")) == 0 or int(os.environ.get("WORLD_SIZE", "1")) == 1


def _kept(parts: Path, task: Task, fingerprint: str) -> TaskResult | None:
    """What an earlier run measured, if it measured the same."""
    from eval.results import TaskResult

    file = parts / f"{task.name}.json"
    if not file.is_file():
        return None
    try:
        body = read_json(file)
        if body["fingerprint"] == fingerprint:
            return TaskResult.from_json(body["result"], body["items"])
    except (InputError, KeyError, TypeError, AttributeError) as error:
        print(f"{file} is damaged ({error}): {task.name} is measured again", file=sys.stderr)
    return None


def _keep(parts: Path, task: Task, fingerprint: str, result: TaskResult) -> None:
    if _is_first_rank():
        body = {"fingerprint": fingerprint, "result": result.to_json(), "items": result.items}
        write_json(parts / f"{task.name}.json", body)


def _write(options: argparse.Namespace, results: dict[str, dict[str, TaskResult]], models: dict[str, Any]) -> None:
    chosen = {key: value for key, value in vars(options).items() if key not in ("models", "out")}
    write_results(options.out, options.suite, json.loads(json.dumps(chosen, default=str)), results, models)


def write_results(
    out: Path,
    suite_name: str,
    options: dict[str, Any],
    results: dict[str, dict[str, TaskResult]],
    models: dict[str, Any],
) -> None:
    """Write `results.json` and, per model and task, the items.

    Args:
        out: the directory; see the top of this module.
        suite_name: what was measured.
        options: JSON of what was asked for.
        results: by model, then task.
        models: by name: directory, checksum, manifest.
    """
    for name, found in results.items():
        for task, result in found.items():
            with atomic_file(out / "items" / name / f"{task}.jsonl", "w") as file:
                file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in result.items)
    body = {
        "format_version": FORMAT_VERSION,
        "suite": suite_name,
        "options": options,
        "code_version": manifest.code_version(),
        "packages": manifest.package_versions() | _versions(),
        "models": models,
        "results": {name: {task: r.to_json() for task, r in found.items()} for name, found in results.items()},
    }
    write_json(out / "results.json", body)
