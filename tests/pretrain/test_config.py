"""Every mistake in a config, a model or a corpus is one sentence that names it, before any weight is read."""

import dataclasses
import re
import shutil
import subprocess
import sys
import typing

import pytest

from data_shards import build
from job import config as configs
from job.errors import InputError
from parallel import convert
from parallel.layout import Layout
from pretrain.config import PretrainConfig
from pretrain.dry_run import describe
from pretrain.inputs import open_inputs
from tests.faults.jobs import run_job
from tests.training import make_config


def parse(tmp_path, text, *words):
    file = tmp_path / "pretrain.toml"
    file.write_text(text)
    return configs.parse(PretrainConfig, [str(file), *words], "python -m pretrain", "")


GOOD = """
directory = "run"
[model]
path = "base"
[[data.sources]]
path = "shards"
[train]
steps = 3
"""

MISTAKES = {
    "unknown key": (GOOD + "micro_bach = 2\n", ["micro_bach", "did you mean 'train.micro_batch'"]),
    "unknown section": (GOOD + "[optimiser]\nlr = 1e-3\n", ["unknown key 'optimiser'", "did you mean 'optimizer'"]),
    "unknown empty section": (GOOD + "[trian]\n", ["unknown key 'trian'", "did you mean 'train'"]),
    "wrong type": (GOOD + 'global_batch = "many"\n', ["train.global_batch", "many"]),
    "not a choice": (GOOD + 'precision = "fp8"\n', ["train.precision", "fp8"]),
    "no directory": (GOOD.replace('directory = "run"', ""), ["'directory' is missing"]),
    "no model": (GOOD.replace('path = "base"', ""), ["'model.path' is missing"]),
    "no sources": (GOOD.replace('[[data.sources]]\npath = "shards"', ""), ["'data.sources' is missing"]),
    "no length": (GOOD.replace("steps = 3", ""), ["exactly one of train.tokens, train.epochs and train.steps"]),
    "two lengths": (GOOD + "epochs = 2.0\n", ["exactly one of"]),
    "zero batch": (GOOD + "global_batch = 0\n", ["train.global_batch is 0; it must be at least 1"]),
    "part of a token": (GOOD.replace("steps = 3", "tokens = 10.5"), ["train.tokens", "10.5"]),
    "not TOML": (GOOD + "=", ["pretrain.toml is not valid TOML"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_in_the_file(name, tmp_path):
    text, words = MISTAKES[name]
    with pytest.raises(InputError) as caught:
        parse(tmp_path, text)
    assert all(word in str(caught.value) for word in ["pretrain.toml", *words]), caught.value
    assert "\n" not in str(caught.value)


def test_mistake_on_the_command_line(tmp_path):
    with pytest.raises(InputError, match=r"micro_bach.*did you mean 'train.micro_batch'"):
        parse(tmp_path, GOOD, "--train.micro_bach", "2")


def test_overrides_and_saved_config_reload_equal(tmp_path):
    config = parse(tmp_path, GOOD, "--train.steps=null", "--train.tokens", "26e9", "--parallel.tensor", "2")
    assert config.train.tokens == 26_000_000_000 and config.parallel == Layout(tensor=2)
    configs.save(config, tmp_path / "saved.toml")
    assert configs.parse(PretrainConfig, [str(tmp_path / "saved.toml")], "pretrain", "") == config


def cut_a_shard(shards):
    file = sorted((shards / "train").glob("*.tar"))[0]
    file.write_bytes(file.read_bytes()[:-1024])
    return file.name


def lose_a_shard(shards):
    file = sorted((shards / "train").glob("*.tar"))[0]
    file.unlink()
    return file.name


def flip_the_index(shards):
    file = sorted((shards / "train").glob("*.index.npy"))[0]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    return file.name


def refusal(config):
    """What the dry run says, which training must say too."""
    with pytest.raises(InputError) as caught:
        describe(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


LAYOUTS = {
    "heads": (Layout(tensor=16), "tensor 16 does not divide the model's 8 attention heads"),
    "key/value heads": (Layout(tensor=8), "tensor 8 does not divide the model's 4 key/value heads"),
    "stages": (Layout(pipeline=6), "6 stages, but the model has only 5 layers"),
    "virtual stages": (Layout(virtual_pipeline=2), "virtual_pipeline needs parallel.pipeline of at least 2"),
    "context": (Layout(context=3), "context 3: twice that does not divide the sequence length 128"),
    "nothing": (Layout(tensor=0), "parallel.tensor must be at least 1, not 0"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_impossible_layout(name, inputs, tmp_path):
    layout, words = LAYOUTS[name]
    assert words in refusal(make_config(tmp_path / "run", inputs, layout))


def test_batch_that_ranks_do_not_divide(inputs, tmp_path):
    told = refusal(make_config(tmp_path / "run", inputs, micro_batch=3))
    assert "train.global_batch 8 is not a multiple of train.micro_batch 3" in told


def test_hugging_face_directory_instead_of_a_checkpoint(inputs, tmp_path):
    config = make_config(tmp_path / "run", inputs, base=inputs.hugging_face)
    told = refusal(config)
    assert f"python -m parallel import {inputs.hugging_face}" in told
    codes, output = run_job(2, config)
    assert codes == [2, 2] and [line for line in output.splitlines() if line] == [f"error: {told}"]


def test_exported_directory_instead_of_a_checkpoint(inputs, tmp_path):
    convert.export_main([inputs.base, str(tmp_path / "hf")])
    assert "python -m parallel import" in refusal(make_config(tmp_path / "run", inputs, base=str(tmp_path / "hf")))


def test_absent_model_and_absent_shards(inputs, tmp_path):
    assert "nowhere does not exist" in refusal(make_config(tmp_path / "run", inputs, base=str(tmp_path / "nowhere")))
    told = refusal(make_config(tmp_path / "run", dataclasses.replace(inputs, shards=str(tmp_path / "unbuilt"))))
    assert "unbuilt" in told and "data_shards build" in told


def test_sequence_longer_than_the_model(inputs, tmp_path):
    config = make_config(tmp_path / "run", inputs)
    config.data.sequence_length = 1024
    assert "data.sequence_length 1024 is more than the model's 512 positions" in refusal(config)


def test_tokenizer_larger_than_the_model(inputs, real_data, tmp_path):
    """Shards made with the real Llama-2 tokenizer (32,000 ids) for a model of 512."""
    config = tmp_path / "build.toml"
    config.write_text(f"""
        tokenizer = "{real_data}/llama_tokenizer/tokenizer.model"
        output = "{tmp_path}/shards"
        workers = 1
        [[sources]]
        name = "s2orc"
        format = "s2orc"
        paths = ["{real_data}/s2orc/s2orc_v2_bulk_257292514.jsonl"]
    """)
    build.main([str(config)])
    config = make_config(tmp_path / "run", dataclasses.replace(inputs, shards=str(tmp_path / "shards")))
    told = refusal(config)
    assert "32000" in told and "512" in told and "build the shards with the model's own tokenizer" in told
    codes, output = run_job(1, config)
    assert codes == [2] and output.strip().endswith(told)


@pytest.mark.parametrize("damage", [cut_a_shard, lose_a_shard, flip_the_index])
def test_damaged_shard_is_noticed_at_the_start(damage, inputs, tmp_path):
    shards = shutil.copytree(inputs.shards, tmp_path / "shards")
    named = damage(shards)
    config = make_config(tmp_path / "run", dataclasses.replace(inputs, shards=str(shards)))
    told = refusal(config)
    assert named in told
    codes, output = run_job(2, config)
    assert codes == [2, 2] and [line for line in output.splitlines() if line] == [f"error: {told}"]


def test_run_directory_that_cannot_be_written(inputs, tmp_path):
    (tmp_path / "run").write_text("a file in its place")
    codes, output = run_job(2, make_config(tmp_path / "run", inputs))
    assert codes == [2, 2] and output.count("error") == 1, output
    assert f"run directory {tmp_path / 'run'} cannot be written (File exists)" in output


def sections(config_class, prefix=""):
    """Every key of the config, dotted."""
    hints = typing.get_type_hints(config_class)
    for name in config_class.__dataclass_fields__:
        if dataclasses.is_dataclass(hints[name]):
            yield from sections(hints[name], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_help_explains_every_key():
    """`--help` is the reference: a key without a sentence is a hole in it."""
    command = [sys.executable, "-m", "pretrain", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    keys = list(sections(PretrainConfig))
    assert len(keys) > 40
    for key in keys:
        option = re.search(rf"^  --{re.escape(key)} .*\n?(.*)", text, re.MULTILINE)
        assert option, f"{key} is not in --help"
        assert re.search(r"[a-z]{3,} [a-z]{2,}", option[0].replace(key, "")), f"{key} has no explanation: {option[0]}"


def test_shards_of_another_tokenizer_are_refused(inputs, real_data, tmp_path):
    """The same size of vocabulary, other pieces: training would run, and learn nonsense."""
    from data_shards import build, tokenizer

    abstracts = real_data / "pubmed_abstracts" / "pubmed21n1298_abstracts.open.jsonl.gz"
    words = ["--format", "jsonl", "--input", str(abstracts), "--vocab-size", "512", "--max-bytes", "1e6"]
    tokenizer.main([*words, "--output", str(tmp_path / "tokenizer")])
    (tmp_path / "build.toml").write_text(f"""
        tokenizer = "{tmp_path}/tokenizer"
        output = "{tmp_path}/shards"
        workers = 1
        sources = [{{ name = "s2orc", format = "s2orc", paths = ["{real_data}/s2orc/s2orc_v2_bulk_257292514.jsonl"] }}]
    """)
    build.main([str(tmp_path / "build.toml")])
    config = make_config(tmp_path / "run", inputs)
    config.data.sources[0].path = str(tmp_path / "shards")
    with pytest.raises(InputError, match="which is not the model's tokenizer"):
        open_inputs(config, 1)
    codes, output = run_job(1, config)
    assert codes == [2] and "which is not the model's tokenizer" in output
    assert not (tmp_path / "run").exists()  # a refused start leaves nothing behind


@pytest.mark.parametrize(
    "words",
    [
        ("train.steps", "0"),
        ("train.steps", "-5"),
        ("train.validate_samples", "-3"),
        ("optimizer.beta1", "2"),
        ("optimizer.lr", "-1"),
        ("schedule.warmup", "-3"),
        ("checkpoint.keep", "-1"),
    ],
    ids=" ".join,
)
def test_values_out_of_range_are_refused_by_key(words, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('directory = "run"\nmodel.path = "m"\ndata.sources = [{ path = "d" }]\n[train]\nsteps = 3\n')
    key, value = words
    with pytest.raises(InputError, match=f"{key} is {value}.*at least"):
        configs.parse(PretrainConfig, [str(file), f"--{key}={value}"], "test", "")


def test_a_list_on_the_command_line_replaces_the_files(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'directory = "run"\nmodel.path = "m"\ndata.sources = [{ path = "d", name = "first", weight = 3 }]\n'
        "[train]\nsteps = 3\n"
    )
    config = configs.parse(PretrainConfig, [str(file), "--data.sources", '[{"path": "other"}]'], "test", "")
    assert [(s.path, s.name, s.weight) for s in config.data.sources] == [("other", "", None)]
