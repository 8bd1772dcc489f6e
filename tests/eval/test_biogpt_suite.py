"""Suite `biogpt` on the real files: what it refuses, what it counts, and models from end to end."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BioGptConfig, BioGptForCausalLM, LlamaForCausalLM

from align.language_model import load_tokenizer
from eval import run
from eval.biogpt.data import PROMPT_SUFFIX, data_set, prompt, training_rows
from eval.biogpt.documents import FORMATS
from eval.biogpt.measure import Settings, build_prompts
from eval.models import EvalModel, load
from job.errors import InputError

DOCUMENT = {
    "title": "Psoralen and liver injury.",
    "abstract": "Psoralen injured livers.",
    "relations": [{"chemical": "D1", "disease": "D2"}],
    "chemical2id": {"psoralen": "D1"},
    "disease2id": {"liver injury": "D2"},
}
TRIPLE = {"drug": "Psoralen", "target": "MAO-A", "interaction": "inhibitor"}


def write(folder: Path, name: str, content: object) -> Path:
    """Write JSON, or text, under `folder`; gzipped where the name says so."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder


@pytest.mark.real
def test_the_data_are_counted(real_data):
    sizes = {
        name: {split: len(part.documents) for split, part in data_set(name, [real_data]).splits.items()}
        for name in FORMATS
    }
    assert sizes == {
        "bc5cdr": {"train": 500, "valid": 500, "test": 250},
        "kd_dti": {"valid": 999, "test": 579},
        "ddi": {"train": 664 - 195, "valid": 50 - 9, "test": 95},
        "hoc": {"train": 9972, "test": 2473},
        "pubmedqa": {"test": 500},
    }
    notes = data_set("ddi", [real_data]).notes
    assert "train.json.gz: 195 of 664 documents state no relation and are left out" in notes
    assert "train.json.gz and test_open.json.gz share 2 of 95 texts" in notes
    assert data_set("pubmedqa", [real_data]).notes == [
        "ori_pqal_train_dev500.json is the half of PubMedQA's questions that is for training, not the official test"
    ]
    assert sum(len(relation.gold) for relation in data_set("bc5cdr", [real_data]).splits["train"].documents) == 1038


@pytest.mark.real
def test_folders_are_found_by_name(real_data, tmp_path):
    raw = tmp_path / "data" / "KD-DTI" / "raw"
    raw.mkdir(parents=True)
    shutil.copy(real_data / "kd_dti" / "test_open.json.gz", raw / "test.json.gz")
    for directory in (tmp_path / "data", tmp_path / "data" / "KD-DTI", raw):
        assert len(data_set("kd_dti", [directory]).test) == 579
        assert data_set("ddi", [directory]) is None
    (tmp_path / "kd_dti").mkdir()
    with pytest.raises(InputError, match=r"both .* have its files"):
        data_set("kd_dti", [tmp_path, tmp_path / "data"])


@pytest.mark.real
def test_hoc_with_its_test_as_validation_is_refused(real_data, tmp_path):
    """As BioGPT ships it: valid.tsv is test.tsv, blank lines between rows included."""
    folder = tmp_path / "hoc"
    folder.mkdir()
    text = gzip.decompress((real_data / "hoc" / "test_open.tsv.gz").read_bytes()).decode()
    (folder / "test.tsv").write_text("\n" + text.replace("\n", "\n\n"), encoding="utf-8")
    shutil.copy(real_data / "hoc" / "train.tsv.gz", folder)
    assert len(data_set("hoc", [tmp_path]).test) == 2473
    (folder / "valid.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"valid.tsv and test.tsv share 2473 of 2473 texts .*remove valid.tsv"):
        data_set("hoc", [tmp_path])


@pytest.mark.real
def test_a_test_set_inside_the_training_set_is_refused(real_data, tmp_path):
    train = json.loads(gzip.decompress((real_data / "bc5cdr" / "train.json.gz").read_bytes()))
    names = list(train)
    write(tmp_path, "bc5cdr/train.json", train)
    write(tmp_path, "bc5cdr/test.json", {f"other-{name}": train[name] for name in names[:40]})
    with pytest.raises(InputError, match=r"train.json and test.json share 40 of 40 texts"):
        data_set("bc5cdr", [tmp_path])
    write(tmp_path, "bc5cdr/train.json", {name: train[name] for name in names[35:]})
    assert data_set("bc5cdr", [tmp_path]).notes == ["train.json and test.json share 5 of 40 texts"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bc5cdr/test.json", "{", "not valid JSON"),
        ("bc5cdr/test.json", "[]", "not a JSON object"),
        ("bc5cdr/test.json", {"1": {"title": "a"}}, "1 has no abstract, relations, chemical2id, disease2id"),
        ("bc5cdr/test.json", '{"1": {}, "1": {}}', "'1' occurs more than once"),
        ("bc5cdr/test.json", {"1": DOCUMENT | {"chemical2id": {}}}, "relates D1 to D2, but .* has no name"),
        ("bc5cdr/test.json", {"1": DOCUMENT | {"relations": [{"chemical": "D1"}]}}, "disease of 1 is empty"),
        ("bc5cdr/test.json", {"1": DOCUMENT | {"relations": "D1"}}, "not a list of objects"),
        ("bc5cdr/test.json", {"1": DOCUMENT | {"relations": []}}, "no document with an answer"),
        ("bc5cdr/train.json", {"1": DOCUMENT}, "no file of the test split"),
        ("bc5cdr/test.json.gz", "", "not valid JSON"),
        ("ddi/test.json", {"1": {"abstract": "", "triples": [TRIPLE]}}, "abstract of 1 is empty"),
        ("ddi/test.json", {"1": {"abstract": "a", "triples": [TRIPLE | {"drug": " "}]}}, "drug of 1 is empty"),
        ("kd_dti/test.json", {"1": {"abstract": "a", "triples": [TRIPLE]}}, "1 has no title"),
        ("hoc/test.tsv", "A sentence.\tempty\nAnother one\n", "line 2: a sentence, a tab and its labels"),
        ("hoc/test.tsv", "A sentence.\tevading taxes\n", "line 1: 'evading taxes' is none of HoC's labels"),
        ("pubmedqa/test_set.json", {"1": {"QUESTION": "q", "CONTEXTS": ["c"], "final_decision": "so"}}, "is 'so', not"),
        ("pubmedqa/test_set.json", {"1": {"QUESTION": "q", "CONTEXTS": "c", "final_decision": "no"}}, "not a list"),
    ],
)
def test_wrong_files_are_one_sentence(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message):
        data_set(name.split("/")[0], [write(tmp_path, name, content)])


def test_files_that_contradict_each_other(tmp_path):
    question = {"QUESTION": "q", "CONTEXTS": ["c"], "final_decision": "no"}
    write(tmp_path, "pubmedqa/test_set.json", {"1": question})
    assert "not PubMedQA's official test set" in data_set("pubmedqa", [tmp_path]).notes[0]
    write(tmp_path, "pubmedqa/test_ground_truth.json", {"1": "yes"})
    with pytest.raises(InputError, match=r"the answer to 1 is 'no', but test_ground_truth.json says 'yes'"):
        data_set("pubmedqa", [tmp_path])
    write(tmp_path, "bc5cdr/test.json", {"1": DOCUMENT})
    write(tmp_path, "bc5cdr/test_open.json.gz", {"1": DOCUMENT})
    with pytest.raises(InputError, match=r"both test.json and test_open.json.gz are of the test split"):
        data_set("bc5cdr", [tmp_path])
    (tmp_path / "bc5cdr" / "test.json").unlink()
    (tmp_path / "bc5cdr" / "test_open.json.gz").write_bytes(b"\x1f\x8bno")
    with pytest.raises(InputError, match="cannot be read"):
        data_set("bc5cdr", [tmp_path])


@pytest.mark.real
def test_training_rows_are_prompt_and_target(real_data):
    rows = training_rows("hoc", real_data)
    assert len(rows) == 9972
    sentence, _, label = rows[0][0].partition(f" {PROMPT_SUFFIX}")
    assert sentence.startswith("Dendritic cells ( DCs )")
    assert (label, rows[0][1]) == ("", " the type of this document is empty.")
    assert len(training_rows("ddi", real_data, split="valid")) == 41
    with pytest.raises(InputError, match="no file of the train split"):
        training_rows("kd_dti", real_data)


@pytest.fixture(scope="module")
def stories(real_data) -> EvalModel:
    return load(real_data / "stories260K" / "hf", torch.float32, torch.device("cpu"))


def settings(**changes) -> Settings:
    standard = {"shots": 0, "seed": 0, "limit": 0, "max_new_tokens": 100, "token_budget": 4096}
    return Settings(**standard | {"prompt_suffix": PROMPT_SUFFIX} | changes)


@pytest.mark.real
def test_long_documents_are_cut_between_words_and_counted(real_data, stories):
    data = data_set("bc5cdr", [real_data])
    documents = data.test[:8]
    prompts, cut = build_prompts(data, documents, settings(), stories)
    assert set(cut) == {document.identifier for document in documents}  # the model was made for 512 tokens
    for document in documents:
        source = prompts[document.identifier].removesuffix(f" ... {PROMPT_SUFFIX}")
        assert document.source.startswith(source + " ")
        used = len(stories.tokenizer(prompts[document.identifier])["input_ids"])
        assert 412 - 20 < used <= 412
    data = data_set("hoc", [real_data])
    prompts, cut = build_prompts(data, data.test[:50], settings(), stories)
    assert len(cut) < 3
    assert prompts[data.test[0].identifier] == prompt(data.test[0].source)
    with pytest.raises(InputError, match="leave no room"):
        build_prompts(data, data.test[:1], settings(max_new_tokens=490), stories)


@pytest.mark.real
def test_examples_are_of_the_train_split_and_the_same_for_all(real_data, stories):
    data = data_set("hoc", [real_data])
    prompts, _ = build_prompts(data, data.test[:5], settings(shots=2, max_new_tokens=20, seed=1), stories)
    first, second, _ = next(iter(prompts.values())).split("\n\n")
    trained = {prompt(document.source) + " " + document.target for document in data.splits["train"].documents}
    assert first in trained and second in trained
    assert all(text.startswith(f"{first}\n\n{second}\n\n") for text in prompts.values())
    with pytest.raises(InputError, match="leave no room"):
        build_prompts(data, data.test[:5], settings(shots=40), stories)


def evaluate(model: Path, data: Path, out: Path, *options: str) -> tuple[int, dict]:
    words = [str(model), "--suite", "biogpt", "--data", str(data), "--out", str(out), "--device", "cpu", *options]
    status = run.main(words, {})
    return status, json.loads((out / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def random_biogpt(real_data, tmp_path_factory) -> Path:
    """BioGptForCausalLM with random weights; the tokenizer is a Llama one (BioGPT's own needs sacremoses)."""
    directory = tmp_path_factory.mktemp("models") / "biogpt"
    tokenizer = load_tokenizer(real_data / "stories260K" / "hf")
    torch.manual_seed(0)
    config = BioGptConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    BioGptForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.real
def test_a_random_biogpt_runs_every_task_and_is_not_believed(real_data, random_biogpt, tmp_path, capsys):
    options = ("--limit", "3", "--max-new-tokens", "8")
    status, results = evaluate(random_biogpt, real_data, tmp_path / "out", *options)
    assert status == 1
    tasks = results["results"]["biogpt"]
    assert list(tasks) == ["bc5cdr", "kd_dti", "ddi", "hoc", "pubmedqa"]
    for task in tasks.values():
        assert task["metrics"]["unparsed"]["value"] == 1.0
        assert task["failed"].startswith("100.0% of the answers do not have the task's form")
    assert any("3 of 3 documents were cut" in note for note in tasks["bc5cdr"]["notes"])
    assert "not to be used" in capsys.readouterr().err
    first = (tmp_path / "out" / "results.json").read_bytes()
    evaluate(random_biogpt, real_data, tmp_path / "again", *options)
    assert (tmp_path / "again" / "results.json").read_bytes() == first


@pytest.fixture(scope="module")
def trained_model(real_data, tmp_path_factory) -> Path:
    """stories260K after forty steps on HoC's training rows without a hallmark: it has learnt the form, and `empty`."""
    model = LlamaForCausalLM.from_pretrained(real_data / "stories260K" / "hf", dtype=torch.float32)
    tokenizer = load_tokenizer(real_data / "stories260K" / "hf")
    rows = [row for row in training_rows("hoc", real_data) if "empty" in row[1] and len(row[0]) < 160][:240]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    for step in range(40):
        examples = []
        for text, target in rows[step * 6 : step * 6 + 6]:
            whole = tokenizer(text + target)["input_ids"] + [tokenizer.eos_token_id]
            examples.append((whole, len(tokenizer(text)["input_ids"])))
        longest = max(len(whole) for whole, _ in examples)
        ids = torch.tensor([whole + [0] * (longest - len(whole)) for whole, _ in examples])
        labels = torch.tensor(
            [[-100] * start + whole[start:] + [-100] * (longest - len(whole)) for whole, start in examples]
        )
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    directory = tmp_path_factory.mktemp("models") / "trained"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.real
def test_a_trained_model_is_scored(real_data, trained_model, tmp_path):
    out = tmp_path / "out"
    status, results = evaluate(
        trained_model, real_data, out, "--tasks", "hoc", "--limit", "40", "--max-new-tokens", "40"
    )
    task = results["results"]["trained"]["hoc"]
    items = [json.loads(line) for line in (out / "items" / "trained" / "hoc.jsonl").read_text("utf-8").splitlines()]
    assert status == 0, items[:5]
    assert task["metrics"]["unparsed"]["value"] <= 0.05
    assert [item["id"] for item in items] == [f"line-{number}" for number in range(1, 41)]
    gold_empty = sum(item["target"] == "the type of this document is empty." for item in items)
    assert any(note.startswith(f"{gold_empty} of 40 sentences are `empty`") for note in task["notes"])
    said_empty = [item for item in items if item["predicted"] == ["empty"]]
    assert len(said_empty) > 30
    assert task["metrics"]["f1"]["value"] == pytest.approx(task["baselines"]["always `empty`"]["f1"]["value"], abs=0.1)


@pytest.mark.real
def test_what_cannot_be_measured_is_said_before_a_model_is_loaded(real_data, tmp_path):
    model = real_data / "stories260K" / "hf"
    with pytest.raises(InputError, match="no folder named bc5cdr"):
        evaluate(model, tmp_path, tmp_path / "out")
    with pytest.raises(InputError, match="--tasks hoc: no folder of that name"):
        evaluate(model, real_data / "ddi", tmp_path / "out", "--tasks", "hoc")
    with pytest.raises(InputError, match="no file of the train split"):
        evaluate(model, real_data, tmp_path / "out", "--tasks", "kd_dti", "--shots", "1")
    with pytest.raises(InputError, match="--shots must not be negative"):
        evaluate(model, real_data, tmp_path / "out", "--shots", "-1")
