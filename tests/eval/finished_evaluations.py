"""OUT directories of finished evaluations, made of real rows, for what reads them."""

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np

from eval.results import TaskResult
from eval.run import write_results
from eval.structures import score
from eval.trust.statistics import mean_metric

TASK = "medmcqa-letters-0-shot"


def medmcqa_rows(real_data: Path) -> list[dict]:
    """MedMCQA's open rows."""
    text = (real_data / "medmcqa" / "dev_sample_open.json").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.strip().split("\n")]


def longest_option(row: dict) -> int:
    """A guesser that has learnt something about how questions are written."""
    return 1 + max(range(4), key=lambda place: len(str(row[("opa", "opb", "opc", "opd")[place]])))


def last_option(row: dict) -> int:
    """A guesser that has learnt nothing."""
    return 4


def medmcqa_result(rows: list[dict], guess, **made_by) -> TaskResult:
    """What a task hands back, with real scores of a guesser in place of a model."""
    items = [
        {
            "id": row["id"],
            "text": f"{row['question']} {row['opa']} {row['opb']} {row['opc']} {row['opd']}",
            "subject": row["subject_name"],
            "answer": guess(row),
            "score": float(guess(row) == row["cop"]),
        }
        for row in rows
    ]
    scores = np.array([item["score"] for item in items])
    first = np.array([row["cop"] == 1 for row in rows], float)
    data = hashlib.sha256("".join(row["id"] for row in rows).encode()).hexdigest()
    return TaskResult(
        TASK,
        "1",
        {
            "accuracy": mean_metric(scores, share=True),
            "unparsed": mean_metric(np.zeros(len(rows)), higher_is_better=False, share=True),
        },
        items,
        {"shots": 0, "limit": len(rows), "data": {"sha256": "of the file"}} | made_by,
        {"always A": {"accuracy": mean_metric(first)}},
        [f"half of the official validation rows <{data[:8]}> | in file order"],
    )


def write_medmcqa(out: Path, rows: list[dict], **guessers) -> Path:
    """An OUT directory with a model per guesser."""
    results = {name: {TASK: medmcqa_result(rows, guess)} for name, guess in guessers.items()}
    return write_evaluation(out, results)


def write_evaluation(out: Path, results: dict[str, dict[str, TaskResult]]) -> Path:
    """An OUT directory with these results."""
    models = {
        name: {"directory": f"/models/{name}", "checksum": hashlib.sha256(name.encode()).hexdigest(), "manifest": None}
        for name in results
    }
    write_results(out, "qa", {"suite": "qa", "seed": 0}, results, models)
    return out


def score_captions(real_data: Path, folder: Path, planted: list[str], count: int = 40) -> Path:
    """An OUT directory of `eval score` on MolT5's captions, with other texts among the references."""
    source = real_data / "molt5_predictions" / "molt5-base-smiles2caption.txt.gz"
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        head, *rows = [line for line, _ in zip(lines, range(count + 1))]
    rows += [f"C\t{text}\t{text[: len(text) // 2]}\n" for text in planted]
    (folder / "captions.txt").write_text(head + "".join(rows), encoding="utf-8")
    score.main([str(folder / "captions.txt"), "--out", str(folder / "scores")])
    return folder / "scores"
