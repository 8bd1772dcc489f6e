"""A real trained Llama, through import, training layouts and export, and its tokenizer beside it."""

from pathlib import Path

import pytest
import sentencepiece
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from job import manifest
from parallel import checkpoint, convert, mesh
from parallel import model as models
from parallel.layout import Layout
from parallel.optimizer import build as build_optimizer
from parallel.optimizer import prime, wrap
from parallel.shape import read_shape
from tests.ranks.fork import run_ranks

# The beginning of what llama2.c's documentation publishes as this model's greedy output.
STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
TEXTS = ["Aspirin inhibits cyclooxygenase.", "two  spaces, TNF-α ≥ 5 μM\nβ-sheets", "<s> is text", "👩‍🔬 日本語", ""]


def save_from_training(layout, source, destination, inputs=()):
    """Load a checkpoint into ranks with an optimizer, and write another, as a training run does."""
    mesh.initialize(layout, seed=1)
    shape = read_shape(source / "hf")
    config = models.transformer_config(shape, layout, torch.float32)
    chunks = wrap(config, models.build(shape, config, 64), overlap=False)
    optimizer = build_optimizer(config, chunks, betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.1, overlap=False)
    model = checkpoint.Model(chunks, optimizer)
    checkpoint.load(source, model, layout)
    prime(optimizer)  # the states that a first step would make
    checkpoint.save(destination, model, layout, source / "hf", {"step": 7, "optimizer": True, "inputs": list(inputs)})


def greedy(directory, count):
    """Text of `count` tokens generated greedily from BOS, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokens = torch.tensor([[tokenizer.bos_token_id]])
    generated = model.generate(tokens, max_new_tokens=count, do_sample=False)
    return tokenizer.decode(generated[0], skip_special_tokens=True)


@pytest.mark.real
def test_a_real_model_comes_back_from_every_stage(real_data, tmp_path):
    source = real_data / "stories260K" / "hf"
    convert.import_model(source, tmp_path / "imported", tensor=2, pipeline=2)
    convert.export_model(tmp_path / "imported", tmp_path / "exported")
    # five layers, so 3 + 2 over two stages, with the optimizer's states beside the weights
    layout = Layout(tensor=2, pipeline=2)
    run_ranks(4, save_from_training, layout, tmp_path / "imported", tmp_path / "trained")
    convert.export_model(tmp_path / "trained", tmp_path / "exported-from-training")
    original = load_file(source / "model.safetensors")
    for name in ("exported", "exported-from-training"):
        exported = load_file(tmp_path / name / "model.safetensors")
        assert set(exported) == set(original)
        for key, tensor in original.items():
            assert torch.equal(exported[key], tensor), (name, key)
        assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / name), LlamaForCausalLM)
        assert greedy(tmp_path / name, 40).startswith(STORY)
    card = (tmp_path / "exported-from-training" / "README.md").read_text()
    assert "| checkpoint | step 7 |" in card


@pytest.mark.real
def test_the_exported_tokenizer_gives_sentencepieces_ids(real_data, tmp_path):
    """The source has a bare tokenizer.model, of which transformers makes other ids by itself."""
    source = real_data / "stories260K" / "hf"
    convert.import_model(source, tmp_path / "imported")
    convert.export_model(tmp_path / "imported", tmp_path / "exported")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    expected = [[processor.bos_id(), *processor.encode(text)] for text in TEXTS]
    exported = AutoTokenizer.from_pretrained(tmp_path / "exported")
    found = [exported(text, split_special_tokens=True)["input_ids"] for text in TEXTS]
    assert found == expected
    naive = AutoTokenizer.from_pretrained(source)
    assert [naive(text, split_special_tokens=True)["input_ids"] for text in TEXTS] != expected
    assert exported.model_max_length == read_shape(source).positions == 512  # transformers' own idea is 10^30


def test_the_card_names_the_corpora(inputs, tmp_path):
    given = [manifest.reference(inputs.shards), manifest.reference(inputs.base)]
    run_ranks(1, save_from_training, Layout(), Path(inputs.base), tmp_path / "trained", given)
    convert.export_model(tmp_path / "trained", tmp_path / "exported")
    card = ModelCard.load(tmp_path / "exported" / "README.md")
    assert (card.data.language, card.data.base_model, card.data.license) == (["en"], "hf", "other")
    funnels = manifest.read(Path(inputs.shards), "data_shards build")["sources"]
    for funnel in funnels:
        documents, tokens = funnel["documents"]["train"], funnel["tokens"]["train"]
        assert f"| {funnel['name']} | {funnel['format']} | {documents:,} | {tokens:,} | all |" in card.text
    assert len(funnels) >= 2 and "keep their own licences" in card.text and str(tmp_path) not in card.text
