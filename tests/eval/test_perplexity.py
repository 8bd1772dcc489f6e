"""Perplexity of the real model on real articles, against a computation written out here."""

import json
import math
import sys

import pytest
import torch

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
    score = results["results"][str(model_directory)]["pmc"]

    validation = ShardSet(shards, "validation")
    ids = torch.cat([torch.from_numpy(validation[number].astype("int64")) for number in range(len(validation))])
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32)
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 64):
            window = ids[start : start + 65]
            log_probabilities = model(window[None, :-1]).logits[0].log_softmax(-1)
            total -= log_probabilities[torch.arange(len(window) - 1), window[1:]].sum().item()
    assert score["tokens"] == len(ids) - 1
    assert score["loss"] == pytest.approx(total / (len(ids) - 1), abs=1e-5)
    assert score["perplexity"] == pytest.approx(math.exp(score["loss"]))


def test_refuses_what_is_no_model(shards, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"config\.json does not exist"):
        run(monkeypatch, tmp_path, "--suite", "perplexity", "--data", shards, "--out", tmp_path)


def test_refuses_shards_of_a_larger_vocabulary(real_data, shards, tmp_path, monkeypatch):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="512 tokens"):
        run(monkeypatch, tmp_path / "small", "--suite", "perplexity", "--data", shards, "--out", tmp_path)
