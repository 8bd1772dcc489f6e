"""Test items that were copied from training articles are found, others are not."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_shards import build
from data_shards.shards import ShardSet
from data_shards.tokens import load
from eval import run
from eval.reports import report
from eval.reports.evaluation import read
from eval.trust import contamination, training_search
from job.errors import InputError
from tests.eval.finished_evaluations import (
    last_option,
    longest_option,
    medmcqa_rows,
    score_captions,
    write_medmcqa,
)


@pytest.fixture(scope="module")
def articles(inputs):
    """Words of a training article from its middle, and of one that was held out."""
    tokenizer = load(inputs.hugging_face)

    def middle(split):
        shards = ShardSet(inputs.shards, split)
        number = len(shards) // 2
        text = tokenizer.decode(shards[number]).split()
        return " ".join(text[20:80]), next(record["id"] for place, record in shards.records() if place == number)

    return middle("train"), middle("validation")


@pytest.fixture(scope="module")
def evaluation(real_data, articles, tmp_path_factory):
    (training, _), (held_out, _) = articles
    half = " ".join(training.split()[:30])
    disguised = training.upper().replace(" ", "  ")
    planted = [disguised, f"{half} and then this goes on with other words that no article has in this order", held_out]
    return score_captions(real_data, tmp_path_factory.mktemp("contamination"), planted)


def test_finds_planted_items_and_no_others(evaluation, inputs, articles, capsys):
    assert contamination.main([str(evaluation), "--shards", inputs.shards, "--workers", "1"]) == 0
    body = json.loads((evaluation / "contamination.json").read_text())
    [found] = body["tasks"].values()
    assert (found["items"], found["overlapping"], found["mostly_overlapping"]) == (43, 2, 1)
    copy, half = found["overlapping_items"]
    assert (copy["id"], half["id"]) == ("41", "42")
    assert copy["share"] == 1 and 0.3 < half["share"] < 0.6
    assert copy["document"] == half["document"] == articles[0][1]

    [scores] = found["scores"].values()
    items = [json.loads(line) for line in next((evaluation / "items").rglob("*.jsonl")).open()]
    clean = [item["score"] for item in items if item["id"] not in ("41", "42")]
    assert scores["without"]["value"] == pytest.approx(np.mean(clean))
    assert scores["without"]["low"] < scores["without"]["value"] < scores["without"]["high"]
    assert scores["all"]["value"] == pytest.approx(np.mean([item["score"] for item in items]))

    assert "2 (4.7%)" in capsys.readouterr().out
    assert "2 (4.7%)" in (evaluation / "report.md").read_text()
    assert "<h2>Contamination</h2>" in (evaluation / "report.html").read_text()


def test_several_processes_find_the_same(evaluation, inputs, monkeypatch):
    evaluation_read = read(evaluation)
    alone = contamination.measure(evaluation_read, [Path(inputs.shards)], 13)
    monkeypatch.setattr(training_search, "_CHUNK_BYTES", 200_000)
    assert contamination.measure(evaluation_read, [Path(inputs.shards)], 13, workers=2) == alone


def test_results_made_later_make_it_void(evaluation, inputs):
    contamination.main([str(evaluation), "--shards", inputs.shards, "--workers", "1"])
    body = json.loads((evaluation / "results.json").read_text())
    (evaluation / "results.json").write_text(json.dumps(body | {"code_version": "later"}))
    report.write(evaluation)
    assert "is of earlier results" in (evaluation / "report.md").read_text()
    assert "2 (4.7%)" not in (evaluation / "report.md").read_text()


def test_several_models_and_real_questions_that_no_article_has(real_data, inputs, tmp_path):
    out = write_medmcqa(tmp_path, medmcqa_rows(real_data)[:300], longest=longest_option, last=last_option)
    [found] = contamination.measure(read(out), [Path(inputs.shards)], 13)["tasks"].values()
    assert found["items"] == 300 and found["overlapping"] == 0 and 0 < found["too_short"] < 150
    assert list(found["scores"]) == ["longest", "last"]
    assert found["scores"]["last"]["overlapping"] is None
    assert found["scores"]["last"]["all"] == found["scores"]["last"]["without"]


def test_abstracts_that_pubmedqa_asks_about_are_noticed_in_training(real_data, tmp_path):
    """PubMedQA's contexts are PubMed abstracts: what a corpus of all of PubMed has in it."""
    rows = json.loads((real_data / "pubmedqa" / "ori_pqal_train_dev500.json").read_text())
    abstracts = {pmid: " ".join(row["CONTEXTS"]) for pmid, row in rows.items()}
    leaked = list(abstracts)[:2]
    lines = [json.dumps({"pmid": pmid, "text": abstracts[pmid]}) + "\n" for pmid in leaked]
    (tmp_path / "pubmed.jsonl").write_text("".join(lines))
    (tmp_path / "build.toml").write_text(f"""
        tokenizer = "{real_data}/stories260K/hf"
        output = "{tmp_path}/shards"
        workers = 1
        [[sources]]
        name = "pubmed"
        format = "jsonl"
        paths = ["{tmp_path}/pubmed.jsonl"]
        [sharding]
        validation_fraction = 0.0
    """)
    build.main([str(tmp_path / "build.toml")])
    out = tmp_path / "scores"
    words = ["--suite", "qa", "--data", str(real_data / "pubmedqa"), "--out", str(out), "--limit", "5"]
    run.main([str(real_data / "stories260K" / "hf"), *words], {})
    contamination.main([str(out), "--shards", str(tmp_path / "shards"), "--workers", "1"])
    [found] = json.loads((out / "contamination.json").read_text())["tasks"].values()
    assert (found["items"], found["overlapping"], found["mostly_overlapping"]) == (5, 2, 2)
    assert [item["id"] for item in found["overlapping_items"]] == leaked
    assert [item["document"] for item in found["overlapping_items"]] == [f"pmid:{pmid}" for pmid in leaked]
    assert all(0.8 < item["share"] < 1 for item in found["overlapping_items"])  # the question itself is not there


def test_refuses_what_cannot_be_searched(evaluation, inputs, tmp_path):
    with pytest.raises(InputError, match=r"results\.json does not exist"):
        contamination.main([str(tmp_path), "--shards", inputs.shards])
    with pytest.raises(InputError, match=r"manifest\.json does not exist"):
        contamination.main([str(evaluation), "--shards", str(tmp_path)])
    with pytest.raises(InputError, match="must be at least 1"):
        contamination.main([str(evaluation), "--shards", inputs.shards, "--ngram", "0"])
