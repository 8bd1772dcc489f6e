"""`python -m eval watch RUN_DIR --suite NAME ...`: score the checkpoints of a run as they appear.

Each is exported, scored like any model directory, and its scores join the run's `metrics.jsonl` and W&B run, over the
tokens it was trained on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from eval import run as evaluation
from job import manifest
from job.directory import RunDirectory, RunLock
from job.errors import InputError
from job.files import read_json, write_json
from job.track import add_evaluation

_TOLD = "told.json"  # written once the run's metrics have the scores

DESCRIPTION = """Score the checkpoints of a training run, of `pretrain` or of `align train`, as they appear.

  python -m eval watch runs/llama2-7b --suite qa --data benchmarks/medical
  python -m eval watch runs/llama2-7b --suite qa --data benchmarks/medical --once    those there are now: for a job

Results are kept in RUN_DIR/evaluation/SUITE-xxxxxxxx/step-00001000 (the letters stand for the options), so that
nothing is scored twice; scores also go to the run's metrics.jsonl and W&B run. Without --once it goes on until the run
has ended. All options of the suite can be given: see `python -m eval --suite NAME --help`.
"""


def main(arguments: Sequence[str]) -> int:
    """Score what there is, then wait for more."""
    parser = argparse.ArgumentParser(
        prog="python -m eval watch", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of a training job")
    parser.add_argument("--suite", required=True, choices=evaluation.SUITES, help="what to measure")
    parser.add_argument("--once", action="store_true", help="score the checkpoints that there are, and end")
    parser.add_argument("--every-seconds", type=float, default=60.0, metavar="S", help="between looks (default 60)")
    options, suite_words = parser.parse_known_args(arguments)
    run = RunDirectory(options.run)
    if not run.config.is_file():
        raise InputError(f"{run.config} does not exist: {run.path} is not the directory of a training run")
    # Other data or options are another series of scores.
    series = hashlib.sha256(json.dumps(suite_words).encode()).hexdigest()[:8]
    out = run.path / "evaluation" / f"{options.suite}-{series}"
    while True:
        # asked first, so that the last checkpoint is not missed
        last_look = options.once or not _is_training(run)
        for checkpoint in reversed(run.complete_checkpoints()):
            if not (out / checkpoint.name / _TOLD).exists():
                _score(run, checkpoint, options.suite, out / checkpoint.name, suite_words)
        if last_look:
            return 0
        time.sleep(options.every_seconds)


def _is_training(run: RunDirectory) -> bool:
    try:
        RunLock(run).release()
    except InputError:
        return True
    return False


def _score(run: RunDirectory, checkpoint: Path, suite: str, out: Path, words: Sequence[str]) -> None:
    """Export one checkpoint, score it, tell the run, remove the export."""
    try:
        body = read_json(checkpoint / manifest.NAME)
        model = out / "model" / checkpoint.name
        shutil.rmtree(model, ignore_errors=True)  # of a killed attempt
        _export(checkpoint, body["stage"], model)
    except (InputError, OSError) as error:
        if checkpoint.exists():
            raise
        print(f"{checkpoint.name} was removed before it could be exported ({error})", file=sys.stderr)
        return
    print(f"{checkpoint.name}: {body['consumed_tokens']:,} tokens", flush=True)
    evaluation.main([str(model), "--suite", suite, "--out", str(out), *words], {})
    results = read_json(out / "results.json")["results"][checkpoint.name]
    values = {
        f"eval/{task}/{name}": number
        for task, result in results.items()
        for metric, bounds in result["metrics"].items()
        for name, number in ((metric, bounds["value"]), *_interval(metric, bounds))
        if number is not None
    }
    add_evaluation(run, body["step"], body["consumed_tokens"], values)
    write_json(out / _TOLD, {"suite": suite, "options": list(words), "metrics": values})
    with contextlib.suppress(OSError):
        shutil.rmtree(out / "model")


def _interval(metric: str, bounds: dict[str, float | None]) -> list[tuple[str, float | None]]:
    return [(f"{metric}_ci_low", bounds["low"]), (f"{metric}_ci_high", bounds["high"])]


def _export(checkpoint: Path, stage: str, model: Path) -> None:
    from align.checkpoint import STAGE
    from align.export import export
    from parallel.convert import export_model

    if stage == STAGE:
        export(checkpoint, model)
    else:
        export_model(checkpoint, model)
