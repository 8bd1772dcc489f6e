"""The fine-tuned protocol on real questions: what is learnt is what is asked, and the whole path runs and resumes."""

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest
import torch

from align.language_model import load_tokenizer
from data_shards import verify
from data_shards.order import TrainingWindows
from data_shards.shards import ShardSet
from eval.biogpt.data import data_set
from eval.finetuning import finetune
from eval.finetuning.instruction_shards import Row, encode, pack, write
from eval.finetuning.instructions import read
from eval.qa.choices import SharedPrefixLM
from eval.qa.questions import read_set
from job.errors import InputError
from job.training import ScheduleConfig
from parallel import convert
from tests.eval.scored_models import trained
from tests.ranks.fork import run_ranks
from tests.training import losses, make_config, metrics_rows, quietly


@pytest.fixture(scope="module")
def model(real_data):
    return real_data / "stories260K" / "hf"


@pytest.fixture(scope="module")
def medmcqa(real_data, tmp_path_factory):
    """Half of the real MedMCQA rows to learn from, the other half to be scored."""
    return read("medmcqa", [real_data / "medmcqa"], "letters", None, 0.5, 0, tmp_path_factory.mktemp("rows"))


def test_ids_are_those_that_lm_eval_scores(medmcqa, model, real_data):
    """The loss of training is the log-likelihood that evaluation takes, and that of EOS."""
    scorer = SharedPrefixLM(trained(real_data), None, 4096)
    for one in encode(medmcqa.rows[:200], model, 2000):
        context, continuation = scorer._encode_pair(one.row.prompt, one.row.answer)
        assert one.ids.tolist() == [*context, *continuation, 2] and one.prompt_tokens == len(context)
        assert not one.cut and context[0] == 1


def test_long_prompts_lose_their_beginning_and_never_the_answer(medmcqa, model):
    whole = encode(medmcqa.rows[:100], model, 2000)
    for one, before in zip(encode(medmcqa.rows[:100], model, 160), whole, strict=True):
        assert len(one.ids) == min(160, len(before.ids)) and one.ids[0] == 1
        answer = before.ids[before.prompt_tokens :]
        assert np.array_equal(one.ids[one.prompt_tokens :], answer)
        assert one.cut == (len(before.ids) > 160)
        assert np.array_equal(one.ids[1:], before.ids[-len(one.ids) + 1 :])
    with pytest.raises(InputError, match="rows have more than 60 tokens"):
        encode(medmcqa.rows, model, 60)
    endless = Row("endless", "Question:", " " + "word " * 200)
    assert len(encode([*medmcqa.rows[:10], endless], model, 300)) == 10


def test_packing_is_close_to_the_fewest_windows():
    generator = np.random.default_rng(0)
    for capacity in (64, 2048):
        lengths = generator.integers(1, capacity + 1, 3000).tolist() + [capacity] * 3
        bins = pack(lengths, capacity)
        assert sorted(item for items in bins for item in items) == list(range(len(lengths)))
        assert max(sum(lengths[item] for item in items) for items in bins) <= capacity
        assert len(bins) <= 1.05 * sum(lengths) / capacity + 1


@pytest.mark.parametrize("packed", [True, False])
def test_windows_hold_whole_rows_and_count_their_answers(packed, medmcqa, model, tmp_path):
    encoded = encode(medmcqa.rows[:300], model, 512)
    sizes = [write(tmp_path / name, encoded, model, 512, packed, 0, {}, []) for name in ("a", "b")]
    assert sizes[0] == sizes[1] and ((packed and sizes[0].filled > 0.9) or (not packed and sizes[0].documents == 300))
    files = [(tmp_path / name / "train" / "instructions-000000.tar").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]
    assert not [damage for _, found in verify.verify(tmp_path / "a") for damage in found]
    windows = TrainingWindows(ShardSet(tmp_path / "a"), 512, 3)
    tokenizer = load_tokenizer(model)
    seen = []
    for number in range(sizes[0].documents):
        tokens, [mask] = windows[number], windows.target_masks(number, 1)
        assert tokens[0] == 1 and not mask[-1]
        ends = np.flatnonzero(tokens[1:][mask] == 2)
        answers = np.split(tokens[1:][mask], ends + 1)[:-1]
        prompts = np.split(tokens[:-1], np.flatnonzero(tokens[:-1] == 1))[1:]
        assert len(answers) == len(prompts)
        seen += [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        for answer, text in zip(answers, seen[-len(prompts) :], strict=True):
            assert f"Answer: {tokenizer.decode(answer[:-1])}" in text
    wanted = [tokenizer.decode(one.ids, skip_special_tokens=True) for one in encoded]
    assert sorted(seen) == sorted(wanted)


@pytest.mark.parametrize(
    "task, folder",
    [
        ("medmcqa", "medmcqa"),
        ("medqa_4_options", "medqa_us_4options"),
        ("mmlu_anatomy", "mmlu_med"),
        ("pubmedqa", "pubmedqa"),
    ],
)
def test_rows_held_out_are_the_same_rows(task, folder, real_data, tmp_path):
    """Written as files and read back: nothing is lost, and no row is both learnt and scored."""
    whole = read_set(task, [real_data / folder])
    found = read(task, [real_data / folder], "letters", None, 0.25, 5, tmp_path)
    divided = read_set(task, [tmp_path])
    assert len(divided.examples) == round(0.25 * len(whole.questions))

    def content(questions):
        return sorted((q.context, q.question, q.options, q.gold, sorted(q.meta.items())) for q in questions)

    assert content([*divided.questions, *divided.examples]) == content(whole.questions)
    assert len(found.rows) >= len(divided.examples) - 1 and len(found.notes) >= 1  # but for those that are asked twice
    assert str(tmp_path) in found.scoring and "not comparable" in found.notes[0]
    again = read(task, [real_data / folder], "letters", None, 0.25, 6, tmp_path / "other seed")
    assert {row.prompt for row in again.rows} != {row.prompt for row in found.rows}


def test_rows_that_are_scored_are_never_learnt(real_data, tmp_path):
    source = real_data / "medmcqa" / "dev_sample_open.json"
    lines = list(islice(source.open(encoding="utf-8"), 50))
    (tmp_path / "medmcqa").mkdir()
    (tmp_path / "medmcqa" / "dev.json").write_text("".join(lines[:30]), encoding="utf-8")
    renamed = [json.dumps(json.loads(line) | {"id": f"new-{number}"}) + "\n" for number, line in enumerate(lines)]
    train = tmp_path / "train.json"
    train.write_text("".join(renamed), encoding="utf-8")
    found = read("medmcqa", [tmp_path / "medmcqa"], "letters", train, 0.0, 0, tmp_path / "unused")
    assert [row.id for row in found.rows] == [f"new-{number}" for number in range(30, 50)]
    assert "30 training rows that are also scored were left out" in found.notes
    train.write_text("".join(renamed[:30]), encoding="utf-8")
    with pytest.raises(InputError, match="every training row is also among the rows that are scored"):
        read("medmcqa", [tmp_path / "medmcqa"], "letters", train, 0.0, 0, tmp_path / "unused")


def test_answers_are_worded_as_the_scoring_asks(real_data, tmp_path):
    for scoring in ("letters", "options", "options-normalised", "generate"):
        rows = read("medmcqa", [real_data / "medmcqa"], scoring, None, 0.5, 0, tmp_path / scoring).rows
        listed = scoring in ("letters", "generate")
        assert all(("\nA. " in row.prompt) == listed and row.prompt.endswith("Answer:") for row in rows)
        assert ({row.answer for row in rows} == {" A", " B", " C", " D"}) == listed
    for scoring in ("letters", "generate"):
        rows = read("pubmedqa", [real_data / "pubmedqa"], scoring, None, 0.5, 0, tmp_path / f"p {scoring}").rows
        assert {row.answer for row in rows} == {" yes", " no", " maybe"}
        assert all(row.prompt.endswith("(yes, no, maybe):") == (scoring == "generate") for row in rows)


def test_biogpt_tasks_are_learnt_from_their_train_split(real_data, tmp_path):
    found = read("biogpt-bc5cdr", [real_data], "letters", None, 0.0, 0, tmp_path)
    documents = data_set("bc5cdr", [real_data]).splits["train"].documents
    assert len(found.rows) == len(documents) > 400
    assert found.rows[0].answer == " " + documents[0].target and documents[0].source in found.rows[0].prompt
    assert found.scoring[:4] == ["--suite", "biogpt", "--tasks", "bc5cdr"]
    assert found.inputs[0]["path"].endswith("train.json.gz")


def test_an_answer_can_be_learnt(medmcqa, model, tmp_path):
    """32 questions by heart: greedy decoding of the exported model gives every letter and then stops."""
    encoded = [one for one in encode(medmcqa.rows, model, 512) if len(one.ids) <= 96][:32]
    write(tmp_path / "shards", encoded, model, 96, False, 0, {}, [])
    convert.import_main([str(model), str(tmp_path / "base")])

    @dataclasses.dataclass
    class Made:
        shards: str = str(tmp_path / "shards")
        base: str = str(tmp_path / "base")

    config = make_config(tmp_path / "run", Made(), micro_batch=32, steps=40)
    config.data.sequence_length, config.train.global_batch = 96, 32
    config.optimizer.lr, config.optimizer.weight_decay = 1e-2, 0.0
    config.schedule = ScheduleConfig("cosine", warmup=0.1)
    run_ranks(1, quietly, config)
    curve = losses(metrics_rows(tmp_path / "run"))
    assert curve[0] > 5 and curve[-1] < 0.1
    convert.export_main([str(tmp_path / "run"), str(tmp_path / "hf")])
    from transformers import AutoModelForCausalLM

    learnt = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    given = []
    with torch.no_grad():
        for one in encoded:
            prompt = torch.from_numpy(one.ids[None, : one.prompt_tokens])
            written = learnt.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=2)
            given.append(written[0, one.prompt_tokens :].tolist() == one.ids[one.prompt_tokens :].tolist())
    assert np.mean(given) > 0.9


@pytest.fixture(scope="module")
def words(real_data, model, tmp_path_factory):
    """A run of one seed over a few rows."""
    out = tmp_path_factory.mktemp("finetuned") / "medmcqa"
    data = ["--data", real_data / "medmcqa", "--hold-out", "0.5", "--train-rows", "100", "--limit", "20"]
    settings = [
        "--seeds",
        "3",
        "--epochs",
        "2",
        "--lr",
        "3e-3",
        "--batch",
        "32",
        "--micro-batch",
        "4",
        "--precision",
        "fp32",
    ]
    return [str(word) for word in ["medmcqa", "--model", model, "--out", out, *data, *settings]], out


def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(words, capsys):
    arguments, out = words
    assert finetune.main([*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "medmcqa: 100 rows in " in said and "1 seeds, " in said and "--suite qa --tasks medmcqa" in said
    assert not out.exists()


def test_the_whole_path_resumes_where_a_stage_failed(words, capsys):
    arguments, out = words
    obstacle = out / "models" / "seed-3"
    obstacle.mkdir(parents=True)
    with pytest.raises(InputError, match=r"stage export-seed-3 failed .*exists already.*export-seed-3\.log"):
        finetune.main(arguments)
    obstacle.rmdir()
    made = {path: path.stat().st_mtime_ns for path in (out / "base", out / "shards" / "manifest.json")}
    assert finetune.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert len(list((out / "runs" / "seed-3" / "logs").iterdir())) == 1  # complete: nothing was trained again
    assert not (out / "runs" / "seed-3" / "checkpoints").exists()

    results = json.loads((out / "results.json").read_text())
    assert results["training"]["3"]["last_loss"] < results["training"]["3"]["first_loss"] - 1
    [(task, found)] = results["tasks"].items()
    assert task == "medmcqa-letters-0-shot"
    scored = json.loads((out / "scores" / "results.json").read_text())["results"]
    assert found["untuned"] == scored["hf"][task]["metrics"]
    assert found["seeds"]["3"] == scored["seed-3"][task]["metrics"] and found["spread"]["accuracy"] is None
    assert found["mean"]["accuracy"] == found["seeds"]["3"]["accuracy"]["value"]
    assert results["models"]["untuned"] != results["models"]["seed 3"]
    assert any(row["model"] == "BioMedGPT-LM-7B" for row in found["published"])
    with (out / "scores" / "items" / "seed-3" / f"{task}.jsonl").open(encoding="utf-8") as lines:
        items = [json.loads(line) for line in lines]
    assert len(items) == 20
    learnt = {json.loads(line)["id"] for line in (out / "rows" / "medmcqa" / "train.jsonl").open(encoding="utf-8")}
    assert not learnt & {item["id"] for item in items}
    assert "published: BioMedGPT-LM-7B" in capsys.readouterr().out

    with pytest.raises(InputError, match=r"begun with other settings: lr was 0.003, is now 0.1; choose another --out"):
        finetune.main([*arguments, "--lr", "0.1"])


def test_user_mistakes_are_one_sentence(real_data, model, tmp_path, monkeypatch):
    def run(*changed, task="medmcqa", data=real_data / "medmcqa"):
        words = [task, "--model", model, "--data", data, "--out", tmp_path / "out", *changed]
        finetune.main([str(word) for word in words])

    for message, changed in {
        "has no training rows; put the published training file there, .* by --hold-out 0.5": [],
        "--train-file .*absent.json does not exist": ["--train-file", tmp_path / "absent.json"],
        "give --train-file or --hold-out, not both": ["--train-file", tmp_path / "a", "--hold-out", "0.5"],
        "--hold-out 1 of 1997 rows leaves none to learn": ["--hold-out", "1"],
        "--batch must be at least 1, not 0": ["--batch", "0"],
        "--train-rows must be at least 0, not -5": ["--train-rows", "-5"],
        "--epochs must be more than 0, not 0": ["--epochs", "0"],
        "--seeds must be at least 0, not -1": ["--seeds", "-1"],
        "--sequence-length 4096 is more than the model's 512 positions": [
            "--hold-out",
            "0.5",
            "--sequence-length",
            "4096",
        ],
        "parallel.tensor 3 does not divide the model's 8 attention heads": ["--hold-out", "0.5", "--tensor", "3"],
        "--seeds has a seed twice": ["--seeds", "1", "1"],
    }.items():
        with pytest.raises(InputError, match=message):
            run(*changed, "--dry-run")
    with pytest.raises(InputError, match="learnt from its published train split"):
        run("--hold-out", "0.5", task="biogpt-bc5cdr", data=real_data)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="finetune starts its own processes"):
        run("--hold-out", "0.5")
