"""Molecules written for descriptions: real ChEBI-20 rows, the real small language model, and one that learnt them."""

import csv
import gzip
import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.language_model import load_tokenizer
from align.questions import MOLECULE_QUESTION, Question
from eval.__main__ import main
from eval.metrics.molecule_metrics import MoleculeScorer
from eval.structures.neighbours import nearest_texts
from eval.structures.text_to_molecule_suite import INSTRUCTION, TEMPLATE, first_word
from job.errors import InputError
from tests.eval.structure_sets import build_set, chebi_file, uniprot_set

pytestmark = pytest.mark.real
TEST_ROWS = 6


@pytest.fixture(scope="module")
def files(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chebi")
    source = real_data / "chebi20"
    return {
        "train": chebi_file(folder / "train.txt", source / "train_open.txt", 80, 150),
        "test": chebi_file(folder / "test.txt", source / "test_open.txt", TEST_ROWS, 150),
    }


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def learnt(real_data, files, tmp_path_factory):
    """The small model after it has learnt the molecules of all but the last of the test descriptions by heart."""
    torch.manual_seed(0)
    source = real_data / "stories260K" / "hf"
    tokenizer = load_tokenizer(source)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    examples = []
    for row in rows(files["test"])[:-1]:
        prompt = f"{INSTRUCTION}\n\n{TEMPLATE.replace('{description}', row['description'])}"
        start = tokenizer(prompt)["input_ids"]
        whole = [*tokenizer(f"{prompt} {row['SMILES']}\n")["input_ids"], tokenizer.eos_token_id]
        assert whole[: len(start)] == start
        examples.append((whole, len(start)))
    longest = max(len(whole) for whole, _ in examples)
    ids = torch.tensor([whole + [0] * (longest - len(whole)) for whole, _ in examples])
    places = torch.arange(longest)
    counted = torch.stack([(places >= start) & (places < len(whole)) for whole, start in examples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(150):
        loss = model(ids, labels=ids.masked_fill(~counted, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.005:
            break
    assert loss < 0.1
    directory = tmp_path_factory.mktemp("models") / "learnt"
    model.save_pretrained(directory)
    for file in source.iterdir():
        if "token" in file.name:
            (directory / file.name).write_bytes(file.read_bytes())
    return directory


def run(monkeypatch, models, data, out, *more):
    words = [*models, "--suite", "text2molecule", "--data", *data, "--out", out, "--max-new-tokens", "60", *more]
    monkeypatch.setattr(sys, "argv", ["eval", *map(str, words)])
    assert main() == 0
    return json.loads((out / "results.json").read_text())["results"]


def items_of(out, model, task):
    return [json.loads(line) for line in (out / "items" / model / f"{task}.jsonl").open()]


def test_a_model_that_learnt_the_molecules_writes_them(real_data, learnt, files, tmp_path, monkeypatch):
    models = [learnt, real_data / "stories260K" / "hf"]
    results = run(monkeypatch, models, [files["test"]], tmp_path, "--training", files["train"])
    right = rows(files["test"])
    task = "text-to-molecule-test"
    items = items_of(tmp_path, "learnt", task)
    assert [item["reference"] for item in items] == [row["SMILES"] for row in right]
    assert [item["answer"] for item in items[:-1]] == [row["SMILES"] for row in right[:-1]]
    assert [item["score"] for item in items] == [1.0] * (TEST_ROWS - 1) + [0.0]
    metrics = {name: metric["value"] for name, metric in results["learnt"][task]["metrics"].items()}
    expected = MoleculeScorer([row["SMILES"] for row in right]).score([item["answer"] for item in items]).to_json()
    assert metrics == pytest.approx({name: expected[name] for name in metrics})
    assert next(iter(metrics)) == "exact" and metrics["exact"] == pytest.approx((TEST_ROWS - 1) / TEST_ROWS)
    stories = results["hf"][task]
    assert stories["metrics"]["exact"]["value"] == 0 and stories["metrics"]["levenshtein"]["value"] > 10
    assert stories["metrics"]["levenshtein"]["higher_is_better"] is False

    training = rows(files["train"])
    places = nearest_texts([row["description"] for row in training], [row["description"] for row in right])
    copied = MoleculeScorer([row["SMILES"] for row in right]).score([training[place]["SMILES"] for place in places])
    for found in results.values():
        baseline = found[task]["baselines"]["nearest training text"]
        assert baseline["maccs"]["value"] == pytest.approx(copied.maccs.mean())
        assert baseline["valid"]["value"] == 1
    made_by = stories["made_by"]
    assert made_by["prompt"] == f"{INSTRUCTION}\n\n{TEMPLATE}" and made_by["shots"] == []


def test_shots_come_from_training(real_data, files, tmp_path, monkeypatch):
    short = ["--training", files["train"], "--shots", "2", "--limit", "3"]
    results = run(monkeypatch, [real_data / "stories260K" / "hf"], [files["test"]], tmp_path, *short)
    [found] = results["hf"].values()
    by_id = {f"chebi20:{row['CID']}": row for row in rows(files["train"])}
    prompt = found["made_by"]["prompt"]
    assert len(found["made_by"]["shots"]) == 2
    for name in found["made_by"]["shots"]:
        assert f"Description: {by_id[name]['description']}\nSMILES: {by_id[name]['SMILES']}\n\n" in prompt
    assert prompt.startswith(INSTRUCTION) and prompt.endswith(TEMPLATE)
    assert any(f"3 of {TEST_ROWS} test items, drawn by seed 0" in note for note in found["notes"])


def test_a_build_gives_the_same_as_its_files(real_data, files, tmp_path, monkeypatch):
    built = build_set(tmp_path / "test", "chebi20", "--train", files["train"], "--test", files["test"])
    model = real_data / "stories260K" / "hf"
    plain = ["--template", r"{description}\nFormula:"]
    from_build = run(monkeypatch, [model], [built], tmp_path / "a", *plain)["hf"]
    from_file = run(monkeypatch, [model], [files["test"]], tmp_path / "b", "--training", files["train"], *plain)["hf"]
    [one], [other] = from_build.values(), from_file.values()
    assert one["metrics"] == other["metrics"] and one["baselines"] == other["baselines"]
    assert one["made_by"]["prompt"] == "{description}\nFormula:"
    task = "text-to-molecule-test"
    assert items_of(tmp_path / "a", "hf", task) == items_of(tmp_path / "b", "hf", task)
    no_training = run(monkeypatch, [model], [files["test"]], tmp_path / "c", "--limit", "2")["hf"][task]
    assert no_training["baselines"] == {} and any("No baseline" in note for note in no_training["notes"])


def test_the_first_word_counts():
    assert first_word(" CCO is ethanol") == "CCO"
    assert first_word("\n C[C@H](N)C(=O)O") == "C[C@H](N)C(=O)O"
    assert first_word(" \t") == ""


def test_the_nearest_text_shares_most_words(real_data):
    training = rows(real_data / "chebi20" / "train_open.txt")[:600]
    texts = [row["description"] for row in training]
    assert nearest_texts(texts, texts[:300]) == [texts.index(text) for text in texts[:300]]
    asked = rows(real_data / "chebi20" / "test_open.txt")[:150]
    places = nearest_texts(texts, [row["description"] for row in asked])
    scorer = MoleculeScorer([row["SMILES"] for row in asked])
    nearest = scorer.score([training[place]["SMILES"] for place in places]).maccs.mean()
    any_one = scorer.score([training[place]["SMILES"] for place in range(150)]).maccs.mean()
    assert nearest > any_one + 0.2  # texts that share words are about molecules alike


def test_bad_input(real_data, files, tmp_path, monkeypatch):
    model = [real_data / "stories260K" / "hf"]
    header, first, *_ = files["test"].read_text(encoding="utf-8").split("\n")
    cases = {
        "columns": (f"CID\tsmiles\ttext\n{first}\n", "has no column or key 'description'"),
        "torn": (f"{header}\n{first}\tmore\n", "line 2: 4 fields, but the header has 3"),
        "twice": (f"{header}\n{first}\n{first}\n", "line 3: its CID occurs before"),
        "unanswered": (f"{header}\n1\tCC\t\n", "line 2: no description or no SMILES"),
        "none": (f"{header}\n", "has a header but no rows"),
        "molecule": (f"{header}\n1\tC1CC\tIt is odd.\n", "reference 1"),
    }
    for name, (text, message) in cases.items():
        file = tmp_path / f"{name}.txt"
        file.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            run(monkeypatch, model, [file], tmp_path / "out")
    with pytest.raises(InputError, match=r"must hold \{description\} exactly once"):
        run(monkeypatch, model, [files["test"]], tmp_path / "out", "--template", "SMILES:")
    with pytest.raises(InputError, match="--shots 1: test has 0 training rows"):
        run(monkeypatch, model, [files["test"]], tmp_path / "out", "--shots", "1")
    with pytest.raises(InputError, match=r"--training .*nowhere.txt does not exist"):
        run(monkeypatch, model, [files["test"]], tmp_path / "out", "--training", tmp_path / "nowhere.txt")
    with pytest.raises(InputError, match=r"rows of .* also lie in --training"):
        run(monkeypatch, model, [files["test"]], tmp_path / "out", "--training", files["train"], files["test"])
    with pytest.raises(InputError, match="does not hold descriptions of molecules alone"):
        run(monkeypatch, model, [uniprot_set(real_data, tmp_path / "proteins")], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_questions_are_read_as_they_are_built(files):
    from eval.structures.text_to_molecule_suite import _rows

    found = _rows(files["test"])
    assert found[0] == Question(found[0].id, MOLECULE_QUESTION, found[0].answer, found[0].molecules)
    with gzip.open(files["test"].with_suffix(".txt.gz"), "wb") as file:
        file.write(files["test"].read_bytes())
    assert _rows(files["test"].with_suffix(".txt.gz")) == found
