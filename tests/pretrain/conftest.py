"""Real articles as shards and a real trained model as a checkpoint, made once per test session by the real commands."""

import dataclasses
import json

import pytest

from data_shards import build
from parallel import convert


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the tests of this folder train on."""

    shards: str
    """built from real PubMed, PMC and S2ORC files with the model's tokenizer"""
    base: str
    """stories260K (five layers, tied embeddings), imported"""
    hugging_face: str
    """the same as it was downloaded"""


@pytest.fixture(scope="session")
def inputs(real_data, tmp_path_factory) -> Inputs:
    folder = tmp_path_factory.mktemp("inputs")
    config = folder / "build.toml"
    config.write_text(f"""
        tokenizer = "{real_data}/stories260K/hf"
        output = "{folder}/shards"
        workers = 1
        [[sources]]
        name = "pubmed"
        format = "pubmed"
        paths = ["{real_data}/pubmed_xml/pubmed20n0014.open.xml.gz"]
        [[sources]]
        name = "pmc"
        format = "pmc"
        paths = ["{real_data}/jats_fulltext/pubchunks.open.tar.gz"]
        [[sources]]
        name = "s2orc"
        format = "s2orc"
        paths = ["{real_data}/s2orc/s2orc_v2_bulk_257292514.jsonl"]
        [sharding]
        validation_fraction = 0.2
        block_tokens = 100000
    """)
    build.main([str(config)])
    hugging_face = str(real_data / "stories260K" / "hf")
    convert.import_main([hugging_face, str(folder / "base")])
    return Inputs(str(folder / "shards"), str(folder / "base"), hugging_face)


@pytest.fixture(scope="session")
def read_metrics():
    """Rows of a run's metrics.jsonl as written, redone steps included."""

    def read(directory):
        with open(directory / "metrics.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    return read
