"""What a person reads of an evaluation: tables on the console, report.md, report.html, plots and a model card's table.

Everything is made from OUT/results.json, OUT/items and, where it exists, OUT/contamination.json, and can be made again
at any time. Published numbers (`published.toml`) are marked as such wherever they stand.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from eval import plots, published
from eval.results import Metric, TaskResult
from eval.statistics import mean_metric
from job.errors import InputError
from job.files import read_json, sha256_file, write_text

_MOST_ROWS = 40
"""of a console table; with more, each task shows its first metric alone"""
_MOST_COLUMNS = 7
"""of a task's table; with more metrics, each has a row"""
_FEWEST_OF_A_SUBJECT = 5

Results = dict[str, dict[str, TaskResult]]
"""by model and task; without items"""


@dataclass(frozen=True)
class Evaluation:
    """An OUT directory, read."""

    directory: Path
    suite: str
    body: dict[str, Any]
    """results.json"""
    results: Results

    @property
    def tasks(self) -> list[str]:
        """Names of all tasks, in order."""
        return list(dict.fromkeys(task for found in self.results.values() for task in found))

    def of_task(self, task: str) -> dict[str, TaskResult]:
        """The results of one task by model."""
        return {model: found[task] for model, found in self.results.items() if task in found}

    def items(self, model: str, task: str) -> Iterator[dict[str, Any]]:
        """What a model gave on each item of a task; raises `InputError` where the file is missing or damaged."""
        file = self.directory / "items" / model / f"{task}.jsonl"
        try:
            with open(file, encoding="utf-8") as lines:
                for line in lines:
                    yield json.loads(line)
        except OSError as error:
            raise InputError(f"cannot read {file} ({error.strerror}); run the evaluation again") from None
        except ValueError:
            raise InputError(f"{file} is damaged; run the evaluation again, which rewrites it") from None


def read(out: Path) -> Evaluation:
    """Read OUT/results.json; raises `InputError` where it is none of ours."""
    file = out / "results.json"
    if not file.is_file():
        raise InputError(f"{file} does not exist; give the --out directory of a finished `python -m eval`")
    body = read_json(file)
    try:
        results = {
            model: {task: TaskResult.from_json(value, []) for task, value in found.items()}
            for model, found in body["results"].items()
        }
        return Evaluation(out, body["suite"], body, results)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{file} is not the results.json of `python -m eval`; run the evaluation again") from None


def number(value: float) -> str:
    """Four digits or a little more, whatever the size."""
    if not np.isfinite(value):
        return str(value)
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def with_interval(metric: Metric) -> str:
    """`0.514 [0.499, 0.529]`, or the number alone."""
    if metric.low is None or metric.high is None:
        return number(metric.value)
    return f"{number(metric.value)} [{number(metric.low)}, {number(metric.high)}]"


# Console


def print_tables(out: Path) -> None:
    """Print OUT's results: one row per task and metric, one column per model and baseline."""
    evaluation = read(out)
    table = _perplexity_table(evaluation) if evaluation.suite == "perplexity" else _console_table(evaluation)
    width = None if sys.stdout.isatty() else 80 + 40 * len(table.columns)  # a pipe has no width: nothing is cut
    Console(width=width).print(table)
    if any(published.rows(task) for task in evaluation.tasks):
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
        tokens = next(iter(found.values())).made_by.get("tokens")
        cells = [_perplexity_cell(found[model]) if model in found else "-" for model in evaluation.results]
        table.add_row(task, f"{tokens:,}" if tokens is not None else "-", *cells)
    return table


def _perplexity_cell(result: TaskResult) -> str:
    values = {name: metric.value for name, metric in result.metrics.items()}
    return f"{values['perplexity']:,.2f} ({values['loss']:.4f}; {values['bits_per_byte']:.4f})"


def _console_table(evaluation: Evaluation) -> Table:
    lines = [
        (task, metric) for task in evaluation.tasks for metric in next(iter(evaluation.of_task(task).values())).metrics
    ]
    if len(lines) > _MOST_ROWS:
        first = {task: next(iter(next(iter(evaluation.of_task(task).values())).metrics)) for task in evaluation.tasks}
        lines = list(first.items())
    baselines = list(dict.fromkeys(name for _, result in _all(evaluation) for name in result.baselines))
    title = f"{evaluation.suite} [95 % interval over test items]"
    table = Table(title=title, title_justify="left", min_width=len(title) + 10)
    table.add_column("task")
    table.add_column("metric")
    for name in evaluation.results:
        table.add_column(name, justify="right")
    for name in baselines:
        table.add_column(f"baseline: {name}", justify="right", style="dim")
    previous = None
    for task, metric in lines:
        found = evaluation.of_task(task)
        cells = []
        for model in evaluation.results:
            result = found.get(model)
            mark = " (not to be used)" if result and result.failed else ""
            cells.append(with_interval(result.metrics[metric]) + mark if result and metric in result.metrics else "-")
        for name in baselines:
            values = [r.baselines[name][metric] for r in found.values() if metric in r.baselines.get(name, {})]
            cells.append(number(values[0].value) if values else "-")
        table.add_row(task if task != previous else "", metric, *cells)
        previous = task
    return table


def _all(evaluation: Evaluation) -> Iterator[tuple[str, TaskResult]]:
    for found in evaluation.results.values():
        yield from found.items()


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
        "Brackets hold 95 % bootstrap intervals: what another draw of test items could have given. They say nothing "
        "about prompts, seeds or training runs. `python -m eval compare` tells whether two models differ.",
        "",
    ]
    for file in _draw_overviews(evaluation):
        parts += [f"![{file.stem}](plots/{file.name})", ""]
    sources: list[str] = []
    for task in evaluation.tasks:
        parts += _task_section(evaluation, task, sources)
    parts += _contamination_section(evaluation)
    if sources:
        parts += ["## Where published numbers were read", ""]
        parts += [f"{place}. {_cell(source)}" for place, source in enumerate(sources, 1)] + [""]
    parts += ["## What made these numbers", "", *_provenance(evaluation), ""]
    return "\n".join(parts)


def _models_table(evaluation: Evaluation) -> list[str]:
    rows = []
    for name in evaluation.results:
        model = evaluation.body.get("models", {}).get(name, {})
        origin = (model.get("manifest") or {}).get("stage") or "no manifest"
        rows.append([f"**{name}**", f"`{str(model.get('checksum', '-'))[:16]}`", origin])
    return table_lines(["model", "SHA-256 of config and weights", "made by"], rows)


def _task_section(evaluation: Evaluation, task: str, sources: list[str]) -> list[str]:
    """Ours, baselines and published rows of one task; `sources` collects where the latter were read."""
    found = evaluation.of_task(task)
    first = next(iter(found.values()))
    metrics = list(dict.fromkeys(name for result in found.values() for name in result.metrics))
    columns = {
        f"**{model}**" + (" (not to be used)" if result.failed else ""): result.metrics
        for model, result in found.items()
    }
    columns |= {f"baseline: {name}": baseline for name, baseline in first.baselines.items()}
    theirs = [row for row in published.rows(task) if row.values.keys() & set(metrics)]
    published_rows = []
    for row in theirs:
        if row.source not in sources:
            sources.append(row.source)
        place = f"{row.model}: published, {row.setting} [source {sources.index(row.source) + 1}]"
        published_rows.append((place, {metric: Metric(value) for metric, value in row.values.items()}))
    parts = [f"## {_cell(task)}", "", f"{_described(first)}.", ""]
    if len(metrics) <= _MOST_COLUMNS:
        parts += [
            *table_lines(
                ["", *metrics], [[name, *_cells(v, metrics)] for name, v in [*columns.items(), *published_rows]]
            )
        ]
    else:
        parts += table_lines(["metric", *columns], [[name, *_across(columns.values(), name)] for name in metrics])
        shown = [name for name in metrics if any(name in values for _, values in published_rows)]
        if shown:
            parts += [
                "",
                *table_lines(["", *shown], [[name, *_cells(values, shown)] for name, values in published_rows]),
            ]
    parts.append("")
    notes = dict.fromkeys(note for result in found.values() for note in result.notes)
    parts += [*(f"- {_cell(note)}" for note in notes), ""] if notes else []
    if theirs:
        parts += [
            "Published rows were measured by others, with prompts, splits and scorers of their own.",
            "",
            *_image(_draw_beside_published(evaluation, task, metrics, theirs)),
        ]
    return [*parts, *_image(_draw_subjects(evaluation, task))]


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
        if isinstance(value, (int, float, str, bool)) and len(str(value)) <= 40
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
    from eval.contamination import markdown

    return ["## Contamination", "", *markdown(body), ""]


def _provenance(evaluation: Evaluation) -> list[str]:
    body = evaluation.body
    lines = [f"- code: {body.get('code_version', '-')}"]
    lines.append("- packages: " + ", ".join(f"{name} {version}" for name, version in body.get("packages", {}).items()))
    options = {key: value for key, value in body.get("options", {}).items() if key != "suite"}
    lines.append("- options: " + ", ".join(f"{key} {value}" for key, value in options.items()))
    lines.append("- prompts, data checksums, seeds, model manifests: results.json; answers item by item: items/")
    return [_cell(line) for line in lines]


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
        parts += [*(f"- {_cell(note)}" for note in notes), ""] if notes else []
    return "\n".join(parts)


# Plots


def _draw_overviews(evaluation: Evaluation) -> list[Path]:
    """All tasks together, one plot per first metric; bits per byte beside the loss."""
    firsts = {task: next(iter(next(iter(evaluation.of_task(task).values())).metrics)) for task in evaluation.tasks}
    wanted = list(dict.fromkeys(firsts.values())) + (["bits_per_byte"] if evaluation.suite == "perplexity" else [])
    files = []
    for metric in wanted:
        groups = []
        for task in evaluation.tasks:
            if firsts[task] == metric or metric == "bits_per_byte":
                groups.append(plots.Group(task, _points(evaluation, task, metric)))
        files.append(evaluation.directory / "plots" / f"{_file_name(metric)}.png")
        plots.draw(files[-1], f"{evaluation.suite}: {metric}, 95 % intervals over test items", metric, groups)
    return files


def _points(evaluation: Evaluation, task: str, metric: str) -> dict[str, Metric]:
    found = evaluation.of_task(task)
    points = {model: result.metrics[metric] for model, result in found.items() if metric in result.metrics}
    for name, baseline in next(iter(found.values())).baselines.items():
        if metric in baseline:
            points[f"{plots.BASELINE}{name}"] = baseline[metric]
    return points


def _draw_beside_published(
    evaluation: Evaluation, task: str, metrics: Sequence[str], rows: Sequence[published.PublishedRow]
) -> Path:
    """By the first of the metrics that was published."""
    metric = next(name for name in metrics if any(name in row.values for row in rows))
    theirs = [row for row in rows if metric in row.values]
    groups = [plots.Group(task, _points(evaluation, task, metric))]
    groups += [
        plots.Group(f"{row.model} ({row.setting})", {plots.PUBLISHED: Metric(row.values[metric])}) for row in theirs
    ]
    file = evaluation.directory / "plots" / f"{_file_name(task)}-published.png"
    plots.draw(file, f"{task}: {metric}, ours and published", metric, groups)
    return file


def _draw_subjects(evaluation: Evaluation, task: str) -> Path | None:
    """The mean score by subject, where items of a task have one."""
    groups: dict[str, dict[str, Metric]] = {}
    sizes: dict[str, int] = {}
    for model in evaluation.of_task(task):
        scores: dict[str, list[float]] = {}
        for item in evaluation.items(model, task):
            if item.get("subject") and item.get("score") is not None:
                scores.setdefault(str(item["subject"]), []).append(float(item["score"]))
        for subject, values in scores.items():
            sizes[subject] = len(values)
            groups.setdefault(subject, {})[model] = mean_metric(np.array(values))
    shown = [name for name in sorted(groups, key=lambda name: (-sizes[name], name))]
    shown = [name for name in shown if sizes[name] >= _FEWEST_OF_A_SUBJECT]
    if len(shown) < 2:
        return None
    metric = next(iter(next(iter(evaluation.of_task(task).values())).metrics))
    file = evaluation.directory / "plots" / f"{_file_name(task)}-subjects.png"
    lines = [plots.Group(f"{name} ({sizes[name]})", groups[name]) for name in shown]
    plots.draw(file, f"{task}: {metric} by subject (items)", metric, lines)
    return file


# Markdown and HTML


def _cells(values: Mapping[str, Metric], metrics: Sequence[str]) -> list[str]:
    return [with_interval(values[name]) if name in values else "" for name in metrics]


def _across(columns: Iterable[Mapping[str, Metric]], metric: str) -> list[str]:
    return [with_interval(values[metric]) if metric in values else "" for values in columns]


def table_lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(map(_cell, heads)) + " |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]


def _cell(text: str) -> str:
    """Text that neither ends a table's cell nor is taken for markup of HTML."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _image(file: Path | None) -> list[str]:
    return [f"![{file.stem}](plots/{file.name})", ""] if file else []


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


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
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                data = base64.b64encode((out / str(child.attrs["src"])).read_bytes()).decode()
                child.attrs["src"] = f"data:image/png;base64,{data}"
    content = parser.renderer.render(tokens, parser.options, {})
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Evaluation</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{content}</body>\n</html>\n"
    )
