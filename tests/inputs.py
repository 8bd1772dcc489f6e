"""Real articles as shards and a real trained model as a checkpoint, made once per test session by the real commands."""

import dataclasses
from pathlib import Path

from data_shards import build
from parallel import convert


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What training tests train on."""

    shards: str
    """built from real PubMed, PMC and S2ORC files with the model's tokenizer"""
    base: str
    """stories260K (five layers, tied embeddings), imported"""
    hugging_face: str
    """the same as it was downloaded"""


def make_inputs(real_data: Path, folder: Path) -> Inputs:
    """Real articles as shards and a real trained model as a checkpoint, made by the real commands."""
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
