"""The qa suite on real rows: the same answers as stock lm-eval, examples, seeds, written answers, and its files."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from eval.models import load
from eval.qa import measure as qa
from eval.qa import prompts, pubmedqa, stock_tokenizer
from eval.qa import suite as qa_suite
from eval.qa.questions import OFFICIAL_ROWS, read_set
from eval.work import Journal
from job.errors import InputError
from job.tokenizer import write_hf_tokenizer
from tests.eval.scored_models import random_model, trained


def options(data, *words, limit=8):
    parser = argparse.ArgumentParser()
    qa_suite.add_options(parser)
    parser.set_defaults(data=[data], limit=limit, seed=0, token_budget=8192, device="cpu", dtype="float32")
    return parser.parse_args(words)


def run(tmp_path, model, asked):
    results = {}
    for task in qa_suite.tasks(asked):
        journal = Journal(tmp_path, task.name, "test")
        results[task.name] = task.run(model, journal)
        journal.close()
        assert json.loads(json.dumps(task.made_by)) == task.made_by
    return results


def stock(model, task, data, limit, shots=0, **metadata):
    """What lm-eval's own Hugging Face backend gives: per item the log-likelihoods, and its table."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=model.language_model, tokenizer=model.tokenizer, batch_size=8, device="cpu", backend="causal")
    manager = TaskManager(include_path=str(qa.TASKS), include_defaults=False, metadata={"data": str(data), **metadata})
    loaded = manager.load([task])
    loaded["tasks"][task].set_config("num_fewshot", shots)
    results = evaluate(lm, loaded, limit=limit, bootstrap_iters=0, log_samples=True)
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [[nats for nats, _ in sample["filtered_resps"]] for sample in samples], results["results"][task]


@pytest.mark.parametrize("make", [trained, lambda real_data: random_model(real_data, "mistral")])
def test_answers_are_those_of_stock_lm_eval(real_data, tmp_path, make):
    model = make(real_data)
    asked = options(
        real_data, "--tasks", "medmcqa", "mmlu_anatomy", "--scoring", "letters", "options", "--shots", "0", "2"
    )
    found = run(tmp_path, model, asked)
    for shots, scoring in ((0, "letters"), (0, "options"), (2, "options")):
        result = found[f"medmcqa-{scoring}-{shots}-shot"]
        nats, table = stock(model, f"biomedgpt_medmcqa_{scoring}", real_data, 8, shots, held_out=20)
        for item, theirs in zip(result.items, nats, strict=True):
            np.testing.assert_allclose(item["log_likelihoods"], theirs, atol=1e-4)
            assert item["chosen"] == "ABCD"[int(np.argmax(theirs))]
        assert result.metrics["accuracy"].value == pytest.approx(table["acc,none"])
        assert result.metrics["macro_f1"].value == pytest.approx(table["macro_f1,none"])
        if scoring == "options":
            assert result.metrics["accuracy_normalised"].value == pytest.approx(table["acc_norm,none"])
    assert found["medmcqa-letters-0-shot"].items[0]["id"] == found["medmcqa-options-2-shot"].items[0]["id"]
    assert any("last 20 rows serve as examples" in note for note in found["medmcqa-letters-0-shot"].notes)


def test_yes_no_maybe(real_data, tmp_path):
    model = random_model(real_data, "bloom")  # whose length has no limit
    asked = options(real_data, "--tasks", "pubmedqa", "--scoring", "letters", "options", "options-normalised", limit=6)
    found = run(tmp_path, model, asked)
    assert set(found) == {"pubmedqa_as_given-words-0-shot", "pubmedqa_as_given-words-normalised-0-shot"}
    result = found["pubmedqa_as_given-words-0-shot"]
    nats, table = stock(model, "biomedgpt_pubmedqa_words", real_data, 6)
    for item, theirs in zip(result.items, nats, strict=True):
        np.testing.assert_allclose(item["log_likelihoods"], theirs, rtol=1e-5)
        assert item["chosen"] == ["yes", "no", "maybe"][int(np.argmax(theirs))]
    normalised = found["pubmedqa_as_given-words-normalised-0-shot"]
    assert normalised.metrics["accuracy"].value == pytest.approx(table["acc_norm,none"])
    assert normalised.metrics["accuracy_raw"] == result.metrics["accuracy"]
    assert result.baselines["majority answer"]["accuracy"].value == max(
        np.mean([item["gold"] == label for item in result.items]) for label in ("yes", "no", "maybe")
    )


def test_examples_are_drawn_by_seed(real_data, tmp_path):
    model = trained(real_data)
    words = ("--tasks", "mmlu_anatomy", "mmlu_medical_genetics", "--shots", "1")
    found = run(tmp_path / "a", model, options(real_data, *words, "--seeds", "1", "2", limit=6))
    result = found["mmlu_anatomy-letters-1-shot-2-seeds"]
    runs = [[item["runs"][place]["chosen"] == item["gold"] for item in result.items] for place in (0, 1)]
    assert result.metrics["accuracy"].value == pytest.approx(np.mean(runs))
    assert result.metrics["accuracy_spread"].value == pytest.approx(np.std(np.mean(runs, axis=1), ddof=1))
    assert [item["score"] for item in result.items] == list(np.mean(runs, axis=0))
    assert len({one["prompt_sha256"] for item in result.items for one in item["runs"]}) == 12
    assert len(result.made_by["prompt_sha256"]) == 2 and result.made_by["example_seeds"] == [1, 2]
    again = run(tmp_path / "b", model, options(real_data, *words, "--seeds", "1", "2", limit=6))
    assert again == found  # the same to the last bit

    [pooled] = [
        task for task in qa_suite.tasks(options(real_data, *words, "--seeds", "1", "2", limit=6)) if task.combine
    ]
    assert pooled.combine(found) == found[pooled.name]  # of kept results, without asking a model

    both = found["mmlu_medical-letters-1-shot-2-seeds"]
    subjects = [result, found["mmlu_medical_genetics-letters-1-shot-2-seeds"]]
    assert both.metrics["accuracy"].value == pytest.approx(np.mean([one.metrics["accuracy"].value for one in subjects]))
    assert [item["id"] for item in both.items] == [item["id"] for one in subjects for item in one.items]
    assert both.notes[0] == "12 items of 2 of the nine subjects"


def test_notes_tell_what_is_scored(real_data, monkeypatch):
    """Under --limit nothing is called the official test, nor the whole file scored."""
    half = read_set("medmcqa", [real_data])
    assert any("1,997 rows are scored; the published file has 4,183" in note for note in half.notes_on(0))
    limited = half.notes_on(20)
    assert any("only the first 20 of 1,997 rows are scored" in note for note in limited)
    assert not any("1,997 rows are scored;" in note for note in limited)
    assert half.notes_on(1997) == half.notes_on(5000) == half.notes
    given = read_set("pubmedqa", [real_data])
    monkeypatch.setattr(pubmedqa, "OFFICIAL_TEST", pubmedqa.digest(question.id for question in given.questions))
    official = read_set("pubmedqa", [real_data])
    assert any("are the official test" in note for note in official.notes_on(0))
    assert not any("official" in note for note in official.notes_on(6))


def test_written_answers(real_data, tmp_path):
    """A model that writes stories gives hardly an answer that can be parsed: the score says so itself."""
    asked = options(real_data, "--tasks", "medmcqa", "pubmedqa", "--scoring", "generate", limit=3)
    for name, result in run(tmp_path, trained(real_data), asked).items():
        unparsed = [item["chosen"] is None for item in result.items]
        assert result.metrics["unparsed"].value == pytest.approx(np.mean(unparsed)), name
        assert all(item["score"] == (item["chosen"] == item["gold"]) for item in result.items)
        assert all(isinstance(item["output"], str) for item in result.items)
        assert np.mean(unparsed) > 0.05 and "could not be parsed (more than 5%)" in result.failed
        assert result.made_by["max_new_tokens"] == prompts.MAX_NEW_TOKENS


def test_scores_equal_scikit_learn():
    draw = np.random.default_rng(0)
    gold, given = draw.integers(0, 4, 200), draw.integers(-1, 4, (1, 200))
    items = [{} for _ in gold]
    found = qa.Scores(gold, given, 4, items).metrics(0, unparsed=True)
    assert found["accuracy"].value == pytest.approx(accuracy_score(gold, given[0]))
    expected = f1_score(gold, given[0], labels=[0, 1, 2, 3], average="macro")
    assert found["macro_f1"].value == pytest.approx(expected)
    assert found["macro_f1"].low < expected < found["macro_f1"].high
    assert found["unparsed"].value == pytest.approx(np.mean(given == -1))
    assert [item["score"] for item in items] == list((gold == given[0]).astype(float))
    assert qa._failure(found).startswith(f"{found['unparsed'].value:.1%} of the answers")
    few = np.where(given < 0, 0, given)
    few[0, :10] = -1  # 5 % are tolerated, more are not
    assert qa._failure(qa.Scores(gold, few, 4).metrics(0, unparsed=True)) is None
    few[0, 10] = -1
    assert qa._failure(qa.Scores(gold, few, 4).metrics(0, unparsed=True)) is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "medqa_5_options"), "no file of medqa_5_options lies under"),
        (("--tasks", "mmlu"), "no file of mmlu_high_school_biology"),
        (("--shots", "65"), "--shots must be from 0 to 64"),
        (("--tasks", "mmlu_anatomy", "--shots", "21"), "--shots 21: mmlu_anatomy has 20 rows that may be shown"),
        (("--seeds", "1", "1"), "--seeds has a seed twice"),
    ],
)
def test_wrong_options(real_data, words, message):
    with pytest.raises(InputError, match=message):
        qa_suite.tasks(options(real_data, *words))


def test_directory_without_question_files(tmp_path):
    with pytest.raises(InputError, match="none of the files of medmcqa"):
        qa_suite.tasks(options(tmp_path))


def test_what_is_not_found_is_named(real_data, capsys):
    names = [task.name for task in qa_suite.tasks(options(real_data))]
    missing = "medqa_5_options, mmlu_high_school_biology, mmlu_nutrition, mmlu_virology"
    assert f"no files, so not scored: {missing}" in capsys.readouterr().err
    assert len(names) == len(OFFICIAL_ROWS) - 4 + 1 and names[-1] == "mmlu_medical-letters-0-shot"


def test_yaml_files_cover_every_set(real_data):
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks, groups = {}, {}
    for path in qa.TASKS.glob("*/*.yaml"):
        content = load_yaml(path)
        groups[content.get("group")] = content
        if "group" not in content:
            tasks[content["task"]] = content
    for name in OFFICIAL_ROWS:
        for scoring in ("words", "generate") if name == "pubmedqa" else ("letters", "options", "generate"):
            content = tasks.pop(f"biomedgpt_{name}_{scoring}")
            assert content["dataset_kwargs"] == {"question_set": name}
            assert str(content["metadata"]["version"]) == qa.VERSION
            assert content["fewshot_delimiter"] == prompts.BETWEEN_EXAMPLES
            assert content["target_delimiter"] == prompts.BEFORE_ANSWER
            if scoring == "generate":
                assert content["generation_kwargs"]["max_gen_toks"] == prompts.MAX_NEW_TOKENS
                assert content["generation_kwargs"]["until"] == list(prompts.STOPS)
    assert not tasks
    assert len(groups["biomedgpt_mmlu_letters"]["task"]) == 9


def test_stock_command_gives_the_same_answers(real_data, tmp_path):
    """`lm_eval --include_path eval/tasks` in a process of its own, on a directory whose tokenizer.json we wrote."""
    source, directory = real_data / "stories260K" / "hf", tmp_path / "model"
    write_hf_tokenizer(source, directory)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copyfile(source / name, directory / name)
    words = [
        *("--model", "hf", "--model_args", f"pretrained={directory},dtype=float32"),
        *("--include_path", str(qa.TASKS), "--device", "cpu", "--batch_size", "4", "--limit", "4"),
        *("--tasks", "biomedgpt_medmcqa_letters,biomedgpt_medmcqa_options,biomedgpt_pubmedqa_generate"),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    ]
    environment = os.environ | {
        "BIOMEDGPT_QA_DATA": str(real_data),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(qa.__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    table = json.loads(results.read_text())["results"]
    assert {"acc,none", "unparsed,none", "macro_f1,none"} <= table["biomedgpt_pubmedqa_generate"].keys()

    model = load(directory, torch.float32, torch.device("cpu"))
    asked = options(real_data, "--tasks", "medmcqa", "--scoring", "letters", "options", limit=4)
    for name, ours in run(tmp_path / "journals", model, asked).items():
        task = f"biomedgpt_medmcqa_{name.split('-')[1]}"
        assert table[task]["acc,none"] == ours.metrics["accuracy"].value
        (file,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        samples = {sample["doc_id"]: sample for sample in map(json.loads, file.open(encoding="utf-8", newline="\n"))}
        assert len(samples) == len(ours.items) == 4
        for number, item in enumerate(ours.items):
            assert samples[number]["doc"]["id"] == item["id"]
            theirs = [float(nats) for nats, _ in samples[number]["filtered_resps"]]
            np.testing.assert_allclose(item["log_likelihoods"], theirs, atol=1e-3)
        assert not any("AutoTokenizer" in note for note in ours.notes)
    # The bare tokenizer.model is read otherwise by AutoTokenizer, and the result says so.
    assert "gives other ids" in stock_tokenizer.note(trained(real_data))
    assert stock_tokenizer.note(random_model(real_data, "bloom")) is None  # of no directory


def test_prompts(real_data):
    """Golden strings."""
    question = read_set("medmcqa", [real_data]).questions[0]
    assert prompts.prompt(question, "letters") == (
        "Question: Which of the following is not true for myelinated nerve fibers:\n"
        "A. Impulse through myelinated fibers is slower than non-myelinated fibers\n"
        "B. Membrane currents are generated at nodes of Ranvier\n"
        "C. Saltatory conduction of impulses is seen\n"
        "D. Local anesthesia is effective only when the nerve is not covered by myelin sheath\n"
        "Answer:"
    )
    assert prompts.prompt(question, "options") == (
        "Question: Which of the following is not true for myelinated nerve fibers:\nAnswer:"
    )
    assert prompts.examples([question], "letters").endswith("myelin sheath\nAnswer: A\n\n")
    decision = read_set("pubmedqa", [real_data]).questions[0]
    assert prompts.prompt(decision, "words").startswith("Abstract: Telephone counseling")
    assert prompts.prompt(decision, "words").endswith("mammography use among HMO women?\nAnswer:")
    assert prompts.prompt(decision, "generate").endswith("women?\nAnswer (yes, no, maybe):")
    assert prompts.examples([decision], "words").endswith("Answer: yes\n\n")
