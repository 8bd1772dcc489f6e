"""Every native format of real articles, with the real Llama tokenizer, through every stage by its own command."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_shards import build, verify
from data_shards.shards import ShardSet
from job import tokenizer
from parallel import convert, create
from parallel.layout import Layout
from pretrain.config import SourceConfig
from tests.ranks.fork import run_ranks
from tests.training import losses, make_config, metrics_rows, quietly

MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}


@pytest.mark.real
def test_articles_to_hugging_face_model(real_data, tmp_path):
    (tmp_path / "build.toml").write_text(f"""
        tokenizer = "{real_data}/llama_tokenizer"
        output = "{tmp_path}/shards"
        workers = 1
        [[sources]]
        name = "pubmed"
        format = "pubmed"
        paths = ["{real_data}/pubmed_xml/pubmed20n0014.open.xml.gz"]
        [[sources]]
        name = "pmc"
        format = "pmc"
        paths = ["{real_data}/jats_fulltext/doc2json.open.tar.gz", "{real_data}/jats_fulltext/pubmed_p*.tar.gz"]
        [[sources]]
        name = "s2orc-2020"
        format = "s2orc"
        paths = ["{real_data}/s2orc/pdf_parses_20200705.jsonl", "{real_data}/s2orc/20200705_*.json"]
        metadata = ["{real_data}/s2orc/metadata_sample.v20200705.jsonl.gz"]
        [[sources]]
        name = "s2orc-bulk"
        format = "s2orc"
        paths = ["{real_data}/s2orc/s2orc_v2_bulk_257292514.jsonl"]
        [[sources]]
        name = "abstracts"
        format = "jsonl"
        paths = ["{real_data}/pubmed_abstracts/*.jsonl.gz"]
        [sharding]
        validation_fraction = 0.01
    """)
    assert build.main([str(tmp_path / "build.toml")]) == 0
    assert verify.main([str(tmp_path / "shards")]) == 0
    funnels = {
        entry["name"]: entry for entry in json.loads((tmp_path / "shards" / "manifest.json").read_text())["sources"]
    }
    assert all(funnels[name]["kept"] for name in ("pubmed", "pmc", "s2orc-bulk", "abstracts"))
    assert funnels["s2orc-2020"]["read"] == 4

    tokenizer.write_hf_tokenizer(real_data / "llama_tokenizer", tmp_path / "tokenizer")
    (tmp_path / "model.json").write_text(json.dumps(MODEL))
    create.create_main([str(tmp_path / "model.json"), str(tmp_path / "tokenizer"), str(tmp_path / "hf")])
    convert.import_main([str(tmp_path / "hf"), str(tmp_path / "base"), "--tensor", "2"])

    config = make_config(tmp_path / "run", None, Layout(tensor=2), 4, steps=6, base=str(tmp_path / "base"))
    config.data.sources = [SourceConfig(str(tmp_path / "shards"))]
    run_ranks(2, quietly, config)
    curve = losses(metrics_rows(tmp_path / "run"))
    assert curve[-1] < curve[0]

    convert.export_main([str(tmp_path / "run"), str(tmp_path / "exported")])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    assert model.config.vocab_size == 32000
    words = AutoTokenizer.from_pretrained(tmp_path / "exported")
    shards = ShardSet(tmp_path / "shards", "train")
    document = shards[0].tolist()
    assert words(words.decode(document[1:-1]))["input_ids"] == document[:-1]  # all but the end that training adds
