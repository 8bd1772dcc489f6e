"""Reports of real evaluations: what a reader sees, and that it is what was measured."""

import base64
import html
import json
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from eval import run
from eval.reports import published, report
from eval.reports.evaluation import number, with_interval
from eval.results import Metric
from job.errors import InputError
from tests.eval.finished_evaluations import (
    TASK,
    last_option,
    longest_option,
    medmcqa_result,
    medmcqa_rows,
    write_evaluation,
    write_medmcqa,
)

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Cells of tables, sources of images and all text of a page; complains of tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.cells, self.images, self.open, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attributes)["src"])
        elif tag not in ("meta", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def medmcqa(real_data, tmp_path_factory):
    rows = medmcqa_rows(real_data)[:600]
    out = write_medmcqa(tmp_path_factory.mktemp("medmcqa"), rows, longest=longest_option, last=last_option)
    report.write(out)
    return out


def test_markdown_has_every_number_its_interval_and_where_it_is_from(medmcqa):
    text = (medmcqa / "report.md").read_text()
    results = json.loads((medmcqa / "results.json").read_text())["results"]
    for model in ("longest", "last"):
        accuracy = Metric(**results[model][TASK]["metrics"]["accuracy"])
        row = next(line for line in text.split("\n") if line.startswith(f"| **{model}** |") and "[" in line)
        assert f"{accuracy.value:.3f} [{accuracy.low:.3f}, {accuracy.high:.3f}]" in row
    assert re.search(r"\| baseline: always A \| 0\.\d{3} \[", text)
    assert "| published | setting | read in | accuracy |" in text
    assert "| BioMedGPT-LM-7B | fine-tuned | source 1 | 0.514 |" in text
    assert re.search(r"^1\. model card of PharMolix/BioMedGPT-LM-7B", text, re.MULTILINE)
    assert "Task version 1, shots 0" in text
    # A note may hold what would end a cell or begin a tag.
    assert "rows &lt;" in text and "> \\| in file order" in text


def test_html_is_one_file_with_the_same_tables_and_all_plots_inside(medmcqa):
    text = (medmcqa / "report.html").read_text()
    page = Page(text)
    plots = sorted((medmcqa / "plots").glob("*.png"))
    assert [file.name for file in plots] == ["accuracy.png", f"{TASK}-published.png", f"{TASK}-subjects.png"]
    assert len(page.images) == 3
    for source in page.images:
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64" and base64.b64decode(data) in [file.read_bytes() for file in plots]
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text) and "script" not in page.tags
    in_markdown = [line for line in (medmcqa / "report.md").read_text().split("\n") if line.startswith("| **longest")]
    for line in in_markdown:
        for cell in line.strip("| ").split(" | "):
            assert cell.replace("*", "").replace("`", "") in page.cells


def test_words_of_data_are_words_and_no_files_are_read_for_them(medmcqa, tmp_path):
    shutil.copytree(medmcqa, tmp_path / "out")
    (tmp_path / "secret.txt").write_text("a secret")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    link = f"![x]({tmp_path}/secret.txt) and [y](https://example.org)"
    for found in results["results"].values():
        found[TASK]["notes"].append(link)
    (tmp_path / "out" / "results.json").write_text(json.dumps(results))
    report.write(tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert base64.b64encode(b"a secret").decode() not in text and "example.org</a>" not in text
    assert link in html.unescape(text)
    assert len(Page(text).images) == 3


def test_plots_are_of_a_readable_size(medmcqa):
    for file in (medmcqa / "plots").glob("*.png"):
        data = file.read_bytes()
        assert data.startswith(PNG)
        width, height = (int.from_bytes(data[place : place + 4]) for place in (16, 20))
        assert 600 < width < 3000 and 200 < height < 6000


def test_the_same_results_give_the_same_bytes(medmcqa):
    files = [path for path in sorted(medmcqa.rglob("*")) if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    report.write(medmcqa)
    assert {path: path.read_bytes() for path in sorted(medmcqa.rglob("*")) if path.is_file()} == before


def test_model_card_has_a_table_per_model(medmcqa):
    text = (medmcqa / "model_card.md").read_text()
    assert text.count("| task | version | shots | metric | value |") == 2
    assert re.search(rf"\| {TASK} \| 1 \| 0 \| accuracy \| 0\.\d{{3}} \[0\.\d{{3}}, 0\.\d{{3}}\] \|", text)


def test_a_failed_task_says_so_wherever_its_number_stands(real_data, tmp_path, capsys):
    result = medmcqa_result(medmcqa_rows(real_data)[:50], last_option)
    result.failed = "9.0% of the answers were not parsed"
    out = write_evaluation(tmp_path, {"model": {TASK: result}})
    report.write(out)
    report.print_tables(out)
    assert "**Not to be used**" in (out / "report.md").read_text()
    for text in ((out / "report.md").read_text(), (out / "model_card.md").read_text(), capsys.readouterr().out):
        assert "(not to be used)" in text


def test_many_metrics_stand_below_each_other(real_data, tmp_path):
    result = medmcqa_result(medmcqa_rows(real_data)[:50], last_option)
    result.metrics |= {f"kind {number}": Metric(0.5) for number in range(9)}
    out = write_evaluation(tmp_path, {"one": {TASK: result}})
    report.write(out)
    text = (out / "report.md").read_text()
    assert re.search(r"^\|  \| \*\*one\*\* \| baseline: always A \| n \|$", text, re.MULTILINE)
    assert "| kind 8 | 0.500 |  | 50 |" in text and "| BioMedGPT-LM-7B | fine-tuned |" in text


def test_published_rows_stand_once_for_all_tasks_of_a_benchmark(real_data, tmp_path):
    result = medmcqa_result(medmcqa_rows(real_data)[:50], last_option)
    out = write_evaluation(tmp_path, {"one": {"medmcqa-letters-0-shot": result, "medmcqa-options-5-shot": result}})
    report.write(out)
    text = (out / "report.md").read_text()
    assert text.count("| BioMedGPT-LM-7B | fine-tuned |") == 1
    assert "stand with medmcqa-letters-0-shot" in text.split("## medmcqa-options-5-shot")[1]


def test_console_table_is_whole_in_a_pipe(medmcqa):
    code = f"from pathlib import Path; from eval.reports import report; report.print_tables(Path({str(medmcqa)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "…" not in done.stdout and "accuracy" in done.stdout and "baseline: always A" in done.stdout
    value = Metric(**json.loads((medmcqa / "results.json").read_text())["results"]["last"][TASK]["metrics"]["accuracy"])
    assert with_interval(value) in done.stdout
    assert re.search(r"│ accuracy\s*│\s*600 │", done.stdout)
    assert "| n |" in (medmcqa / "report.md").read_text() and "| 600 |" in (medmcqa / "report.md").read_text()


def test_perplexity_has_a_row_per_source_a_column_per_model_and_plots(inputs, tmp_path, capsys):
    out = tmp_path / "scores"
    words = ["--suite", "perplexity", "--data", inputs.shards, "--out", str(out), "--sequence-length", "64"]
    run.main([inputs.hugging_face, *words, "--limit", "20"], {})
    printed = capsys.readouterr().out
    metrics = json.loads((out / "results.json").read_text())["results"]["hf"]["pubmed"]["metrics"]
    row = next(line for line in printed.split("\n") if line.startswith("│ pubmed"))
    assert f"{metrics['perplexity']['value']:,.2f} ({metrics['loss']['value']:.4f}; " in row
    assert sorted(path.name for path in (out / "plots").iterdir()) == ["bits_per_byte.png", "loss.png"]
    assert "bits_per_byte" in (out / "report.md").read_text()


def test_refuses_what_is_no_evaluation(tmp_path, medmcqa):
    with pytest.raises(InputError, match=r"results\.json does not exist"):
        report.write(tmp_path)
    (tmp_path / "results.json").write_text('{"suite": "qa", "results": {"model": {"task": {"loss": 1}}}}')
    with pytest.raises(InputError, match=r"is not the results\.json of"):
        report.write(tmp_path)
    items = medmcqa / "items" / "last" / f"{TASK}.jsonl"
    text = items.read_text()
    items.write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match="is damaged; run the evaluation again"):
        report.write(medmcqa)
    items.write_text(text)


def test_numbers_have_four_digits_or_so():
    assert [number(value) for value in (0.51449, 1.2, 12.345, 1234.56, float("nan"))] == [
        "0.514",
        "1.200",
        "12.35",
        "1,234.6",
        "nan",
    ]


def test_published_rows_are_well_formed_and_belong_where_they_should():
    body = tomllib.loads((Path(published.__file__).parent / "published.toml").read_text())
    used = set()
    for table in body["benchmark"]:
        for row in table["rows"]:
            assert len(row) == 3 + len(table["metrics"]) and row[2] in body["sources"]
            assert all(isinstance(number, float) for number in row[3:])
            used.add(row[2])
            if table["scale"] == 0.01:
                assert all(not 0 <= number <= 1 and number <= 100 for number in row[3:] if number == number)
    assert used == set(body["sources"])

    def find(task, model, setting):
        [row] = [row for row in published.rows(task) if (row.model, row.setting) == (model, setting)]
        return row.values

    assert find("chebi20", "MolT5-large", "fine-tuned, ChEBI-20 test")["levenshtein"] == 16.07
    assert find("chebi20", "MolT5-large", "fine-tuned, ChEBI-20 test")["rouge_l"] == pytest.approx(0.594)
    assert find("bc5cdr", "BioGPT", "fine-tuned")["f1_authors"] == pytest.approx(0.4498)
    assert find("mmlu_anatomy-letters-0-shot", "BioMedGPT-LM-7B", "fine-tuned, rerun by others")["accuracy"] == 0.494
    assert find("mmlu_medical-letters-5-shot", "Meditron-7B", "3-shot, nine subjects")["accuracy"] == 0.423
    assert find("medqa_5_options-letters-0-shot", "Meditron-70B", "fine-tuned")["accuracy"] == pytest.approx(0.607)
    assert published.rows("pubmed") == published.rows("mmlu_virology-letters-0-shot") == ()
