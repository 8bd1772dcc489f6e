"""What a person reads of an evaluation: tables on the console, report.md, report.html, plots and a model card's table.

Everything is made from OUT/results.json, OUT/items and, where it exists, OUT/contamination.json, and can be made again
at any time. Published numbers (`published.toml`) are marked as such wherever they stand.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.reports import published
from eval.reports.evaluation import Evaluation, number, read, with_interval
from eval.reports.figures import draw_beside_published, draw_overviews, draw_subjects
from eval.reports.markdown import cell, table_lines
from eval.results import Metric, TaskResult
from job.files import read_json, sha256_file, write_text

_MOST_ROWS = 40
"""of a console table; with more, each task shows its first metric alone"""
_MOST_COLUMNS = 7
"""of a task's table; with more metrics, each has a row"""

# Console


def print_tables(out: Path) -> None:
    """Print OUT's results: one row per task and metric, one column per model and baseline."""
    evaluation = read(out)
    table = _perplexity_table(evaluation) if evaluation.suite == "perplexity" else _console_table(evaluation)
    width = None if sys.stdout.isatty() else 80 + 40 * len(table.columns)  # a pipe has no width: nothing is cut
    Console(width=width).print(table)
    if any(_published_rows(evaluation, task) for task in evaluation.tasks):
        print("published rows beside these: report.md, report.html")


def _perplexity_table(evaluation: Evaluation) -> Table:
    """One row per source and one column per model."""
    table = Table(
        title="validation perplexity (loss in nats per token; bits per byte of text)",
        title_justify="left",
        min_width=70,
    )
    table.add_column("source")
    table.add_column("tokens", justify="right")
    for model in evaluation.results:
        table.add_column(model, justify="right")
    for task in evaluation.tasks:
        found = evaluation.of_task(task)
        tokens = evaluation.a_result(task).made_by.get("tokens")
        cells = [_perplexity_cell(found[model]) if model in found else "-" for model in evaluation.results]
        table.add_row(task, f"{tokens:,}" if tokens is not None else "-", *cells)
    return table


def _perplexity_cell(result: TaskResult) -> str:
    values = {name: metric.value for name, metric in result.metrics.items()}
    return f"{values['perplexity']:,.2f} ({values['loss']:.4f}; {values['bits_per_byte']:.4f})"


def _console_table(evaluation: Evaluation) -> Table:
    lines = [(task, metric) for task in evaluation.tasks for metric in evaluation.a_result(task).metrics]
    if len(lines) > _MOST_ROWS:
        lines = [(task, evaluation.first_metric(task)) for task in evaluation.tasks]
    baselines = list(dict.fromkeys(name for task in evaluation.tasks for name in evaluation.a_result(task).baselines))
    title = f"{evaluation.suite} [95 % interval over test items]"
    table = Table(title=title, title_justify="left", min_width=len(title) + 10)
    table.add_column("task")
    table.add_column("metric")
    table.add_column("n", justify="right")
    for name in evaluation.results:
        table.add_column(name, justify="right")
    for name in baselines:
        table.add_column(f"baseline: {name}", justify="right", style="dim")
    previous = None
    for task, metric in lines:
        cells = [_console_cell(found.get(task), metric) for found in evaluation.results.values()]
        found = evaluation.a_result(task).baselines
        cells += [number(found[name][metric].value) if metric in found.get(name, {}) else "-" for name in baselines]
        table.add_row(task if task != previous else "", metric, evaluation.count(task, metric), *cells)
        previous = task
    return table


def _console_cell(result: TaskResult | None, metric: str) -> str:
    if result is None or metric not in result.metrics:
        return "-"
    return with_interval(result.metrics[metric]) + (" (not to be used)" if result.failed else "")


# Files


def write(out: Path) -> None:
    """Write report.md, report.html, plots/ and model_card.md into OUT, from what lies there."""
    evaluation = read(out)
    for old in (out / "plots").glob("*.png"):
        old.unlink()
    text = _markdown(evaluation)
    write_text(out / "report.md", text)
    write_text(out / "report.html", _html(text, out))
    write_text(out / "model_card.md", model_card(evaluation))


def _markdown(evaluation: Evaluation) -> str:
    parts = [f"# Evaluation: {evaluation.suite}", "", *_models_table(evaluation), ""]
    failures = [
        f"- **Not to be used**: {model}, {task}: {result.failed}"
        for task in evaluation.tasks
        for model, result in evaluation.of_task(task).items()
        if result.failed
    ]
    parts += [*failures, ""] if failures else []
    parts += [
        "Brackets hold 95 % bootstrap intervals over the n test items: what another draw of them could have given. "
        "For a share of items that is 0 or 1 (none right, or all), which a bootstrap takes for certain, they hold the "
        "exact interval of Clopper and Pearson; other numbers that are the same for all items have none. They say "
        "nothing about prompts, seeds or training runs. `python -m eval compare` tells whether two models differ.",
        "",
    ]
    for file in draw_overviews(evaluation):
        parts += [f"![{file.stem}](plots/{file.name})", ""]
    sources: list[str] = []
    for task in evaluation.tasks:
        parts += _task_section(evaluation, task)
        parts += _published_section(evaluation, task, sources)
        parts += _image(draw_subjects(evaluation, task))
    parts += _contamination_section(evaluation)
    if sources:
        parts += ["## Where published numbers were read", ""]
        parts += [f"{place}. {cell(source)}" for place, source in enumerate(sources, 1)] + [""]
    parts += ["## What made these numbers", "", *_provenance(evaluation), ""]
    return "\n".join(parts)


def _models_table(evaluation: Evaluation) -> list[str]:
    rows = []
    for name in evaluation.results:
        model = evaluation.body.get("models", {}).get(name, {})
        made = model.get("manifest") or {}
        origin = f"{made['stage']}, code {made.get('code_version', '-')}" if made.get("stage") else "no manifest"
        rows.append([f"**{name}**", f"`{str(model.get('checksum', '-'))[:16]}`", origin])
    return table_lines(["model", "SHA-256 of config and weights", "made by"], rows)


def _task_section(evaluation: Evaluation, task: str) -> list[str]:
    """Models and baselines of one task, and what a reader has to know of it."""
    found = evaluation.of_task(task)
    metrics = _metrics(evaluation, task)
    columns = {
        f"**{model}**" + (" (not to be used)" if result.failed else ""): result.metrics
        for model, result in found.items()
    }
    columns |= {f"baseline: {name}": values for name, values in evaluation.a_result(task).baselines.items()}
    if len(metrics) <= _MOST_COLUMNS:
        count = evaluation.count(task)
        rows = [[name, *_cells(values, metrics), count] for name, values in columns.items()]
        table = table_lines(["", *metrics, "n"], rows)
    else:
        rows = [[name, *_across(columns.values(), name), evaluation.count(task, name)] for name in metrics]
        table = table_lines(["", *columns, "n"], rows)
    notes = dict.fromkeys(note for result in found.values() for note in result.notes)
    lines = [f"## {cell(task)}", "", f"{_described(evaluation.a_result(task))}.", "", *table, ""]
    return [*lines, *(f"- {cell(note)}" for note in notes), *([""] if notes else [])]


def _metrics(evaluation: Evaluation, task: str) -> list[str]:
    return list(dict.fromkeys(name for result in evaluation.of_task(task).values() for name in result.metrics))


def _published_rows(evaluation: Evaluation, task: str) -> list[published.PublishedRow]:
    """Those that have a metric of ours."""
    metrics = set(_metrics(evaluation, task))
    return [row for row in published.rows(task) if row.values.keys() & metrics]


def _published_section(evaluation: Evaluation, task: str, sources: list[str]) -> list[str]:
    """Published rows of a task's benchmark, below the first of its tasks; `sources` collects where they were read."""
    metrics = _metrics(evaluation, task)
    rows = _published_rows(evaluation, task)
    if not rows:
        return []
    tasks = [other for other in evaluation.tasks if published.rows(other) == published.rows(task)]
    if tasks[0] != task:
        return [f"Published rows of this benchmark stand with {cell(tasks[0])}.", ""]
    shown = [name for name in metrics if any(name in row.values for row in rows)]
    lines = []
    for row in rows:
        if row.source not in sources:
            sources.append(row.source)
        values = {name: Metric(value) for name, value in row.values.items()}
        lines.append([row.model, row.setting, f"source {sources.index(row.source) + 1}", *_cells(values, shown)])
    return [
        "Published by others, with prompts, splits and scorers of their own:",
        "",
        *table_lines(["published", "setting", "read in", *shown], lines),
        "",
        *_image(draw_beside_published(evaluation, tasks, shown, rows)),
    ]


def _described(result: TaskResult) -> str:
    """Version, size and the plain settings of a task in one line."""
    facts = [f"Task version {result.version}"]
    facts += [f"{key.replace('_', ' ')} {value}" for key, value in _settings(result).items()]
    return ", ".join(facts)


def _settings(result: TaskResult) -> dict[str, Any]:
    """What made a result, as far as it is short and plain; checksums are in results.json."""
    return {
        key: value
        for key, value in result.made_by.items()
        if key != "version" and isinstance(value, (int, float, str, bool)) and len(str(value)) <= 40
    }


def _contamination_section(evaluation: Evaluation) -> list[str]:
    file = evaluation.directory / "contamination.json"
    if not file.is_file():
        return []
    body = read_json(file)
    if body.get("results_sha256") != sha256_file(evaluation.directory / "results.json"):
        return [
            "## Contamination",
            "",
            "contamination.json is of earlier results; run `python -m eval contamination`.",
            "",
        ]
    from eval.reports.contamination import markdown

    return ["## Contamination", "", *markdown(body), ""]


def _provenance(evaluation: Evaluation) -> list[str]:
    body = evaluation.body
    lines = [f"- code: {body.get('code_version', '-')}"]
    lines.append("- packages: " + ", ".join(f"{name} {version}" for name, version in body.get("packages", {}).items()))
    options = {key: value for key, value in body.get("options", {}).items() if key != "suite"}
    lines.append("- options: " + ", ".join(f"{key} {value}" for key, value in options.items()))
    lines.append("- prompts, data checksums, seeds, model manifests: results.json; answers item by item: items/")
    return [cell(line) for line in lines]


def model_card(evaluation: Evaluation) -> str:
    """For each model a Markdown table to paste into its README."""
    parts = []
    for model, found in evaluation.results.items():
        rows = []
        for task, result in found.items():
            shots = result.made_by.get("shots", result.made_by.get("few_shot", "-"))
            for name, metric in result.metrics.items():
                value = with_interval(metric) + (" (not to be used)" if result.failed else "")
                rows.append([task, result.version, str(shots), name, value])
        parts += [
            f"## Evaluation of {model}",
            "",
            f"By `python -m eval --suite {evaluation.suite}`, code {evaluation.body.get('code_version', '-')}; "
            "brackets hold 95 % bootstrap intervals over test items.",
            "",
            *table_lines(["task", "version", "shots", "metric", "value"], rows),
            "",
        ]
        notes = dict.fromkeys(note for result in found.values() for note in result.notes)
        parts += [*(f"- {cell(note)}" for note in notes), ""] if notes else []
    return "\n".join(parts)


# Markdown and HTML


def _cells(values: Mapping[str, Metric], metrics: Sequence[str]) -> list[str]:
    return [with_interval(values[name]) if name in values else "" for name in metrics]


def _across(columns: Iterable[Mapping[str, Metric]], metric: str) -> list[str]:
    return [with_interval(values[metric]) if metric in values else "" for values in columns]


def _image(file: Path | None) -> list[str]:
    return [f"![{file.stem}](plots/{file.name})", ""] if file else []


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: left; }
th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
code { background: #f3f3f3; padding: 0 .2rem; }
h2 { margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
"""


def _html(markdown: str, out: Path) -> str:
    """The Markdown as one HTML file that needs nothing beside it: plots are inside."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    plots = {f"plots/{file.name}": file for file in (out / "plots").glob("*.png")}
    for token in tokens:
        for child in token.children or ():
            if child.type == "image" and (file := plots.get(str(child.attrs["src"]))):
                child.attrs["src"] = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
            elif child.type == "image":  # no plot of ours: nothing that a data file names is read
                child.type = "text"
    content = parser.renderer.render(tokens, parser.options, {})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Evaluation</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{content}</body>\n</html>\n"
    )
