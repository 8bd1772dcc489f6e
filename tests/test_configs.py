"""Every committed recipe parses, and its layout is legal for the model and the devices it names."""

from pathlib import Path

import pytest

from data_shards.config import BuildConfig
from job.config import as_dict, dump, parse
from parallel.shape import shape_of
from pretrain.config import PretrainConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LLAMA2 = {"model_type": "llama", "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
SIZES = {  # hidden, feed-forward, layers, heads, key/value heads: the config.json of the three Llama-2 models
    "7b": (4096, 11008, 32, 32, 32),
    "13b": (5120, 13824, 40, 40, 40),
    "70b": (8192, 28672, 80, 64, 8),
}
DEVICES = {"llama2-7b": 8, "llama2-7b-64gpu": 64, "llama2-13b": 8, "llama2-70b": 64}
KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


@pytest.mark.parametrize("name", DEVICES)
def test_recipe_is_legal(name):
    config = parse(PretrainConfig, [str(CONFIGS / f"{name}.toml")], "test", "")
    shape = shape_of(LLAMA2 | dict(zip(KEYS, SIZES[name.split("-")[1]])), name)
    config.parallel.check(shape, config.data.sequence_length)
    assert config.parallel.micro_batches(config.train.global_batch, config.train.micro_batch, DEVICES[name]) >= 1
    assert sum(config.parallel.stages(shape.layers)) == shape.layers


def test_7b_has_the_published_constants():
    config = parse(PretrainConfig, [str(CONFIGS / "llama2-7b.toml")], "test", "")
    assert (config.train.global_batch, config.data.sequence_length, config.optimizer.lr) == (192, 2048, 2e-5)
    assert config.train.epochs == 5
    assert config.tokens_per_step == 393_216
    assert config.steps(26_000_000_000) == 330_608  # 5 x 26e9 / 393,216, rounded up
    shape = shape_of(LLAMA2 | dict(zip(KEYS, SIZES["7b"])), "7b")
    assert shape.parameters == 6_738_415_616  # Llama-2-7B's own count


@pytest.mark.parametrize("name", ["llama2-7b", "llama2-70b", "demo/pretrain"])
def test_recipe_survives_its_own_dump(name, tmp_path):
    config = parse(PretrainConfig, [str(CONFIGS / f"{name}.toml")], "test", "")
    (tmp_path / "again.toml").write_text(dump(config))
    assert as_dict(parse(PretrainConfig, [str(tmp_path / "again.toml")], "test", "")) == as_dict(config)


@pytest.mark.parametrize("name", ["corpus", "demo/build"])
def test_build_config_parses(name):
    config = parse(BuildConfig, [str(CONFIGS / f"{name}.toml")], "test", "")
    assert {source.format for source in config.sources} >= {"pmc", "s2orc", "pubmed"}


# Published rows (tokens/s per device, TFLOP/s per device, non-causal or causal count) pin the FLOPs formula: NeMo 24.12
# counts attention without the causal half, Megatron-Bridge since 25.09 with it.
LLAMA3_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA3_70B = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
PUBLISHED = [
    ("NeMo 24.12 Llama-2-7B", dict(zip(KEYS, SIZES["7b"])), 4096, 16_934, 780, False),
    ("NeMo 24.12 Llama-2-13B", dict(zip(KEYS, SIZES["13b"])), 4096, 8_715, 760, False),
    ("NeMo 24.12 Llama-2-70B", dict(zip(KEYS, SIZES["70b"])), 4096, 1_728, 768, False),
    ("NeMo 24.12 Llama-3-8B", LLAMA3_8B | {"num_key_value_heads": 8, "vocab_size": 128256}, 8192, 12_273, 711, False),
    ("Bridge 25.09 Llama-3-8B", LLAMA3_8B | {"num_key_value_heads": 8, "vocab_size": 128256}, 8192, 14_079, 725, True),
    ("Bridge 25.11 Llama-3-8B", LLAMA3_8B | {"num_key_value_heads": 8, "vocab_size": 128256}, 8192, 14_451, 744, True),
    ("Bridge 25.11 Llama-3-70B", LLAMA3_70B | {"num_key_value_heads": 8, "vocab_size": 128256}, 8192, 1_602, 719, True),
]


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row[0])
def test_flops_reproduce_published_rows(row):
    _, sizes, sequence, rate, teraflops, causal = row
    flops = shape_of(LLAMA2 | sizes, "row").flops_per_token(sequence, causal)
    assert rate * flops / 1e12 == pytest.approx(teraflops, rel=1.5e-3)
