"""Perplexity of the real model on real articles, against a computation written out here."""

import json
import math
import shutil
import sys

import pytest
import torch
from sentencepiece import sentencepiece_model_pb2

from align.language_model import load_tokenizer
from data_shards import build
from eval.__main__ import main
from job.errors import InputError


@pytest.fixture(scope="module")
def shards(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    (folder / "build.toml").write_text(f"""
        tokenizer = "{real_data}/stories260K/hf"
        output = "{folder}/shards"
        workers = 1
        [[sources]]
        name = "pmc"
        format = "pmc"
        paths = ["{real_data}/jats_fulltext/pubchunks.open.tar.gz"]
        [sharding]
        validation_fraction = 0.2
    """)
    build.main([str(folder / "build.toml")])
    return folder / "shards"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["eval", *map(str, words)])
    return main()


def test_equals_a_plain_computation(real_data, shards, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    from data_shards.shards import ShardSet

    model_directory = real_data / "stories260K" / "hf"
    run(
        monkeypatch,
        model_directory,
        "--suite",
        "perplexity",
        "--data",
        shards,
        "--out",
        tmp_path,
        "--sequence-length",
        64,
    )
    results = json.loads((tmp_path / "results.json").read_text())
    task = results["results"]["hf"]["pmc"]
    loss = task["metrics"]["loss"]

    validation = ShardSet(shards, "validation")
    ids = torch.cat([torch.from_numpy(validation[number].astype("int64")) for number in range(len(validation))])
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 64):
            window = ids[start : start + 65]
            log_probabilities = model(window[None, :-1]).logits[0].log_softmax(-1)
            total -= log_probabilities[torch.arange(len(window) - 1), window[1:]].sum().item()
    assert task["made_by"]["tokens"] == len(ids) - 1
    assert loss["value"] == pytest.approx(total / (len(ids) - 1), abs=1e-5)
    assert loss["low"] < loss["value"] < loss["high"]
    assert task["metrics"]["perplexity"]["value"] == pytest.approx(math.exp(loss["value"]))
    tokenizer = load_tokenizer(model_directory)
    texts = [tokenizer.decode(validation[number], skip_special_tokens=True) for number in range(len(validation))]
    written = sum(len(text.encode()) for text in texts)
    bits = total / math.log(2) / written
    # A tokenizer that writes a space before each text counts one byte per document that decoding drops.
    assert task["metrics"]["bits_per_byte"]["value"] == pytest.approx(bits, rel=len(texts) / written + 1e-6)


def test_refuses_what_is_no_model(shards, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        run(monkeypatch, tmp_path, "--suite", "perplexity", "--data", shards, "--out", tmp_path)


def test_refuses_shards_of_another_tokenizer(real_data, shards, tmp_path, monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name, file, rows in (("other", "llama_tokenizer/tokenizer.model", 32000), ("far", "stories260K/hf", 32000)):
        LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes)).save_pretrained(tmp_path / name)
        source = real_data / file
        shutil.copy(source if source.is_file() else source / "tokenizer.model", tmp_path / name)
    words = ["--suite", "perplexity", "--data", shards, "--out", tmp_path / "out", "--sequence-length", 64]
    with pytest.raises(InputError, match=r"is not the tokenizer of .*other \(32,000\); build shards with that one"):
        run(monkeypatch, tmp_path / "other", *words)
    same_size = shutil.copytree(real_data / "stories260K" / "hf", tmp_path / "same", copy_function=shutil.copyfile)
    same_size.chmod(0o755)
    pieces = sentencepiece_model_pb2.ModelProto.FromString((same_size / "tokenizer.model").read_bytes())
    pieces.pieces[300].piece, pieces.pieces[301].piece = pieces.pieces[301].piece, pieces.pieces[300].piece
    (same_size / "tokenizer.model").write_bytes(pieces.SerializeToString())
    with pytest.raises(InputError, match=r"is not the tokenizer of .*same \(512\)"):
        run(monkeypatch, same_size, *words)
    with pytest.raises(InputError, match="embeds 32,000 tokens, but its tokenizer has only 512"):
        run(monkeypatch, tmp_path / "far", *words)


def test_a_window_of_an_end_token_alone_counts_no_bytes(real_data, shards, tmp_path, monkeypatch):
    """With this length, the last window holds one target: the end of the last article."""
    length = next(n for n in range(500, 7, -1) if (targets(shards) - 1) % n == 0)
    words = ["--suite", "perplexity", "--data", shards, "--out", tmp_path / "out", "--sequence-length", length]
    run(monkeypatch, real_data / "stories260K" / "hf", *words)
    lines = (tmp_path / "out" / "items" / "hf" / "pmc.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert (last["tokens"], last["bytes"]) == (1, 0) and last["nats"] > 0
    bits = json.loads((tmp_path / "out" / "results.json").read_text())["results"]["hf"]["pmc"]["metrics"][
        "bits_per_byte"
    ]
    assert bits["low"] < bits["value"] < bits["high"]


def targets(shards):
    from data_shards.shards import ShardSet

    validation = ShardSet(shards, "validation")
    return sum(len(validation[number]) for number in range(len(validation))) - 1


def test_refuses_to_replace_other_results(real_data, shards, tmp_path, monkeypatch):
    model = shutil.copytree(real_data / "stories260K" / "hf", tmp_path / "other", copy_function=shutil.copyfile)
    words = [
        "--suite",
        "perplexity",
        "--data",
        shards,
        "--out",
        tmp_path / "out",
        "--sequence-length",
        64,
        "--limit",
        1,
    ]
    run(monkeypatch, real_data / "stories260K" / "hf", *words)
    with pytest.raises(InputError, match="holds results of model hf, which these would replace"):
        run(monkeypatch, model, *words)
    run(monkeypatch, real_data / "stories260K" / "hf", model, *words)
    with pytest.raises(InputError, match="holds results of suite perplexity, which these would replace"):
        run(monkeypatch, model, "--suite", "qa", "--data", real_data / "medmcqa", "--out", tmp_path / "out")


def test_code_in_a_model_directory_is_not_run(real_data, shards, tmp_path, monkeypatch):
    model = shutil.copytree(real_data / "stories260K" / "hf", tmp_path / "model", copy_function=shutil.copyfile)
    model.chmod(0o755)
    config = json.loads((model / "config.json").read_text())
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (model / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *words: "y")
    with pytest.raises(InputError, match="is not a model that transformers loads"):
        run(monkeypatch, model, "--suite", "perplexity", "--data", shards, "--out", tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_refuses_a_tokenizer_of_another_model(real_data, shards, tmp_path, monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    shutil.copy(real_data / "stories260K" / "hf" / "tokenizer.model", tmp_path / "small")
    with pytest.raises(InputError, match="its tokenizer has 512 tokens, but the model embeds 100"):
        run(monkeypatch, tmp_path / "small", "--suite", "perplexity", "--data", shards, "--out", tmp_path)


def test_a_second_run_measures_nothing_again(real_data, shards, tmp_path, monkeypatch):
    words = [real_data / "stories260K" / "hf", "--suite", "perplexity", "--data", shards, "--out", tmp_path]
    words += ["--sequence-length", 64, "--limit", 5, "--token-budget", 128]
    run(monkeypatch, *words)
    first = (tmp_path / "results.json").read_bytes()
    (tmp_path / "parts" / "hf" / "pmc.json").unlink()  # as if the run had died before the end of the task
    journal = tmp_path / "parts" / "hf" / "pmc.rank-0.jsonl"
    head, *records = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([head, records[0], b"no record", records[1], b'{"id": "window-3\xce']))
    run(monkeypatch, *words)
    assert (tmp_path / "results.json").read_bytes() == first
    (tmp_path / "parts" / "hf" / "pmc.json").write_text("{}")
    run(monkeypatch, *words)
    assert (tmp_path / "results.json").read_bytes() == first
    monkeypatch.setattr("eval.run._load", None)  # nothing is left for a model to do
    run(monkeypatch, *words)
    assert (tmp_path / "results.json").read_bytes() == first
    with pytest.raises(TypeError):
        run(monkeypatch, *words, "--sequence-length", 32)


def test_another_tokenizer_or_other_weights_are_another_model(real_data, shards, tmp_path, monkeypatch):
    model = shutil.copytree(real_data / "stories260K" / "hf", tmp_path / "model", copy_function=shutil.copyfile)
    model.chmod(0o755)
    words = [model, "--suite", "perplexity", "--data", shards, "--out", tmp_path / "out", "--limit", 2]
    words += ["--sequence-length", 64]
    run(monkeypatch, *words)
    before = json.loads((tmp_path / "out" / "results.json").read_text())
    assert before["options"]["dtype"] == "float32" and before["options"]["device"] in ("cpu", "cuda")
    shutil.copyfile(real_data / "llama_tokenizer" / "tokenizer.model", model / "tokenizer.model")
    with pytest.raises(InputError, match="32,000 tokens, but the model embeds 512"):
        run(monkeypatch, *words)
    shutil.copyfile(real_data / "stories260K" / "hf" / "tokenizer.model", model / "tokenizer.model")
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-2] ^= 1  # one bit of one weight
    (model / "model.safetensors").write_bytes(content)
    run(monkeypatch, *words)
    after = json.loads((tmp_path / "out" / "results.json").read_text())
    assert after["models"]["model"]["checksum"] != before["models"]["model"]["checksum"]
    with pytest.raises(InputError, match="device nonsense"):
        run(monkeypatch, *words, "--out", tmp_path / "other", "--device", "nonsense")
