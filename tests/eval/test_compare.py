"""Real models on real items: differences that are there, and differences that are noise."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import stats

from eval import run
from eval.structures import score
from eval.trust import compare
from eval.trust.statistics import mcnemar, paired_bootstrap
from job.errors import InputError
from tests.eval.finished_evaluations import (
    TASK,
    last_option,
    longest_option,
    medmcqa_result,
    medmcqa_rows,
    score_captions,
    write_evaluation,
    write_medmcqa,
)


@pytest.fixture(scope="module")
def rows(real_data):
    return medmcqa_rows(real_data)[:800]


@pytest.fixture(scope="module")
def guesses(rows, tmp_path_factory):
    """One OUT directory with two models."""
    out = tmp_path_factory.mktemp("guesses")
    return write_medmcqa(out, rows, longest=longest_option, last=last_option)


def run_json(capsys, *words):
    capsys.readouterr()
    assert compare.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_real_difference(guesses, rows, capsys):
    [found] = run_json(capsys, f"{guesses}:last", f"{guesses}:longest")["tasks"]
    last = np.array([row["cop"] == 4 for row in rows], float)
    longest = np.array([longest_option(row) == row["cop"] for row in rows], float)
    assert (found["a"], found["b"]) == (last.mean(), longest.mean())
    assert (found["difference"], found["low"], found["high"]) == paired_bootstrap(longest, last)
    assert found["test"] == "McNemar" and found["p"] == found["p_holm"] == mcnemar(last, longest) < 0.01
    assert found["verdict"] == "better" and found["low"] > 0
    assert found["metric"] == "accuracy" and found["items"] == 800

    [back] = run_json(capsys, f"{guesses}:longest", f"{guesses}:last")["tasks"]
    assert back["verdict"] == "worse" and back["difference"] == -found["difference"]

    assert compare.main([f"{guesses}:last", f"{guesses}:longest"]) == 0
    assert "B is better, by more than chance explains" in capsys.readouterr().out


def test_a_model_against_itself_and_against_a_few_changed_answers_is_noise(guesses, rows, tmp_path, capsys):
    changed = {row["id"] for row in rows[:6]}

    def nearly(row):
        return 1 if row["id"] in changed else longest_option(row)

    out = write_medmcqa(tmp_path, rows, nearly=nearly)
    [found] = run_json(capsys, f"{guesses}:longest", out)["tasks"]
    assert found["verdict"] == "noise" and found["p"] > 0.05
    [same] = run_json(capsys, f"{guesses}:longest", f"{guesses}:longest")["tasks"]
    assert same["verdict"] == "noise" and same["p"] == 1 and same["low"] == same["high"] == 0
    compare.main([f"{guesses}:longest", str(out)])
    assert "the difference is within noise" in capsys.readouterr().out


def test_items_of_one_side_alone_are_left_out_and_counted(guesses, rows, tmp_path, capsys):
    out = write_medmcqa(tmp_path, rows[100:700], longest=longest_option)
    [found] = run_json(capsys, f"{guesses}:last", out)["tasks"]
    assert (found["items"], found["only_a"], found["only_b"]) == (600, 200, 0)
    assert found["a"] == np.mean([row["cop"] == 4 for row in rows[100:700]])
    compare.main([f"{guesses}:last", str(out)])
    assert "over 600 items (200 only in A, left out)" in capsys.readouterr().out


def test_several_tasks_are_corrected_for_their_number(rows, tmp_path, capsys):
    """Of twenty slices of the same questions one or another differs by chance: Holm lets none of a pair pass."""
    parts = [rows[start::10] for start in range(10)]

    def other(row):
        return 4 if longest_option(row) == 1 else longest_option(row)

    tasks = {f"part-{number}": part for number, part in enumerate(parts)}
    sides = {
        name: {task: medmcqa_result(part, guess) for task, part in tasks.items()}
        for name, guess in (("a", longest_option), ("b", other))
    }
    out = write_evaluation(tmp_path, sides)
    found = run_json(capsys, f"{out}:a", f"{out}:b")["tasks"]
    smallest = min(one["p"] for one in found)
    assert len(found) == 10 and min(one["p_holm"] for one in found) == pytest.approx(min(1, 10 * smallest))
    assert all(one["p_holm"] >= one["p"] for one in found)


def test_refuses_what_is_not_the_same_task(guesses, rows, tmp_path, capsys):
    other = {
        "data": ({"data": {"sha256": "of another file"}}, r"data\.sha256 differs"),
        "shots": ({"shots": 5}, "shots differs: 0 and 5"),
    }
    for name, (made_by, message) in other.items():
        result = medmcqa_result(rows, last_option, **made_by)
        out = write_evaluation(tmp_path / name, {"last": {TASK: result}})
        with pytest.raises(InputError, match=message):
            compare.main([f"{guesses}:last", str(out)])
    newer = medmcqa_result(rows, last_option)
    newer.version = "2"
    out = write_evaluation(tmp_path / "newer", {"last": {TASK: newer, "another": medmcqa_result(rows, last_option)}})
    with pytest.raises(InputError, match=r"task versions 1 and 2 differ.*another: only B has it"):
        compare.main([f"{guesses}:last", str(out)])
    failed = medmcqa_result(rows, last_option)
    failed.failed = "7.0% of the answers were not parsed"
    out = write_evaluation(tmp_path / "failed", {"last": {TASK: failed}})
    with pytest.raises(InputError, match=r"B is not to be used: 7\.0% of"):
        compare.main([f"{guesses}:last", str(out)])
    # Where the data lay makes no difference.
    elsewhere = medmcqa_result(rows, last_option, data={"sha256": "of the file", "path": "/elsewhere"})
    out = write_evaluation(tmp_path / "elsewhere", {"last": {TASK: elsewhere}})
    assert run_json(capsys, f"{guesses}:last", out)["tasks"][0]["p"] == 1


def test_refuses_what_names_no_model(guesses, tmp_path):
    with pytest.raises(InputError, match=r"results\.json does not exist"):
        compare.main([str(tmp_path), str(guesses)])
    with pytest.raises(InputError, match="several models; name one"):
        compare.main([str(guesses), f"{guesses}:last"])
    with pytest.raises(InputError, match="has no model 'a:b'; it has longest, last"):
        compare.main([f"{guesses}:a:b", f"{guesses}:last"])
    with pytest.raises(InputError, match="has no model 'first'; it has longest, last"):
        compare.main([f"{guesses}:first", f"{guesses}:last"])


def test_captions_of_two_files_are_compared_by_their_mean_scores(real_data, tmp_path, capsys):
    out = score_captions(real_data, tmp_path, [], count=60)
    rows = (tmp_path / "captions.txt").read_text().split("\n")
    shorter = [rows[0], *("\t".join([*row.split("\t")[:2], row.split("\t")[2][:60]]) for row in rows[1:-1]), ""]
    (tmp_path / "shorter.txt").write_text("\n".join(shorter))
    score.main([str(tmp_path / "shorter.txt"), "--out", str(tmp_path / "other")])
    [found] = run_json(capsys, out, tmp_path / "other")["tasks"]
    items = [
        [json.loads(line)["score"] for line in next((folder / "items").rglob("*.jsonl")).open()]
        for folder in (out, tmp_path / "other")
    ]
    assert found["metric"] == "rouge_l" and found["test"] == "sign flips" and found["verdict"] == "worse"
    assert found["p"] == pytest.approx(stats.ttest_rel(*items).pvalue, abs=0.01)
    other_texts = score_captions(real_data, tmp_path, ["another reference"], count=60)
    with pytest.raises(InputError, match="references_sha256 differs"):
        compare.main([str(tmp_path / "other"), str(other_texts)])


def test_bits_per_byte_of_a_damaged_model_are_worse(inputs, real_data, tmp_path, capsys):
    original = real_data / "stories260K" / "hf"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in original.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    weights = {
        name: tensor + 0.05 * tensor.std() * torch.randn_like(tensor)
        for name, tensor in load_file(damaged / "model.safetensors").items()
    }
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "scores"
    words = ["--suite", "perplexity", "--data", inputs.shards, "--out", str(out), "--sequence-length", "64"]
    run.main([str(original), str(damaged), *words, "--limit", "100"], {})
    found = run_json(capsys, f"{out}:hf", f"{out}:damaged")["tasks"]
    results = json.loads((out / "results.json").read_text())["results"]
    for one in found:
        assert one["metric"] == "bits_per_byte"
        for side, model in (("a", "hf"), ("b", "damaged")):
            measured = results[model][one["task"]]["metrics"]["bits_per_byte"]["value"]
            assert one[side] == pytest.approx(measured)
        items = [
            [json.loads(line)["nats"] for line in (out / "items" / model / f"{one['task']}.jsonl").open()]
            for model in ("hf", "damaged")
        ]
        assert one["p"] == pytest.approx(stats.ttest_rel(*items).pvalue, abs=0.03)
        assert one["low"] < one["difference"] < one["high"]
    assert {one["task"]: one["verdict"] for one in found}["pubmed"] == "worse"
