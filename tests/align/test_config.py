"""Every mistake in an alignment config, its models or its data sets is one sentence that names it, before training."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from align.config import AlignConfig
from align.dry_run import describe
from align.inputs import open_inputs
from job.config import as_dict, dump, parse
from job.errors import InputError
from tests.align.runs import make_config
from tests.conftest import REPOSITORY

RECIPE = REPOSITORY / "configs" / "biomedgpt-10b.toml"
GOOD = """
directory = "run"
[model]
language_model = "lm"
[protein]
use = false
[[data.sources]]
path = "shards"
[train]
steps = 3
"""
MISTAKES = {
    "no directory": ('directory = "run"', "", "'directory' is missing"),
    "no language model": ('language_model = "lm"', "", "model.language_model"),
    "no data": ('[[data.sources]]\npath = "shards"', "", "data.sources"),
    "no length": ("steps = 3", "", "exactly one of train.questions, train.epochs and train.steps"),
    "two lengths": ("steps = 3", "steps = 3\nepochs = 1", "exactly one of"),
    "unknown key": ("steps = 3", "stepps = 3", "did you mean 'train.steps'"),
    "protein encoder missing": ("use = false", "", "protein.weights"),
    "nothing to align": ("[protein]", "[molecule]\nuse = false\n[protein]", "nothing to align"),
    "no such stage": ("[train]", "[parallel]\nstage = 4\n[train]", "parallel.stage is 4"),
    "offload without sharding": (
        "[train]",
        '[parallel]\nstage = 2\noffload = "parameters"\n[train]',
        "needs parallel.stage = 3",
    ),
    "cache of what is trained": (
        '[[data.sources]]\npath = "shards"',
        '[tune]\nmode = "encoders"\n[data]\ncache_directory = "c"\nsources = [{path = "shards"}]',
        "data.cache_directory",
    ),
    "statistics of what changes": (
        "[train]",
        '[molecule.adapter]\nstandardise = true\n[tune]\nmode = "encoders"\n[train]',
        "adapter.standardise",
    ),
    "batch of nothing": ("steps = 3", "steps = 3\nglobal_batch = 0", "train.global_batch is 0"),
    "misspelt mode": ("[train]", '[tune]\nmode = "adaptors"\n[train]', "tune.mode"),
}


def read(tmp_path, text, *words):
    (tmp_path / "align.toml").write_text(text)
    return parse(AlignConfig, [str(tmp_path / "align.toml"), *words], "python -m align train", "")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name, tmp_path):
    old, new, expected = MISTAKES[name]
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert expected in str(caught.value)


def test_config_survives_its_own_dump_and_overrides(tmp_path):
    text = GOOD.replace("steps = 3", "questions = 1e6")
    config = read(tmp_path, text, "--tune.mode", "lora", "--molecule.adapter.tokens", "pooled")
    assert config.train.questions == 1_000_000
    again = read(tmp_path, dump(config))
    assert as_dict(again) == as_dict(config)
    assert again.settings().molecule.adapter.tokens == "pooled" and again.settings().protein is None


def test_recipe_has_the_published_constants():
    config = parse(AlignConfig, [str(RECIPE)], "test", "")
    molecule, protein = config.settings().molecule, config.settings().protein
    assert (molecule.kind, molecule.layers, molecule.width, molecule.dropout) == ("gin", 5, 300, 0.0)
    assert (molecule.max_atoms, protein.max_residues) == (256, 1022)
    for settings in (molecule, protein):
        assert (settings.adapter.tokens, settings.adapter.projection) == ("each", "linear")
    assert config.tune.mode == "adapters" and config.parallel.stage == 2
    assert config.prompt == type(config.prompt)()  # the released prompt is the default
    assert config.model.max_length >= 1024 + 256


def break_language_model(config, folder):
    config.model.language_model = str(folder)


def break_weights(config, folder):
    config.molecule = type(config.molecule)(kind="gcn", weights=str(folder / "gone.pth"))


def break_data(config, folder):
    config.data.sources[0].path = str(folder)


def same_names(config, folder):
    config.data.sources[1].name = config.data.sources[0].name


def damage_index(config, folder):
    shutil.copytree(config.data.sources[0].path, folder / "damaged")
    next((folder / "damaged" / "train").glob("*.index.npy")).write_bytes(b"")
    config.data.sources[0].path = str(folder / "damaged")


@pytest.mark.parametrize(
    "spoil, expected",
    [
        (break_language_model, "config.json"),
        (break_weights, "gone.pth does not exist"),
        (break_data, "manifest.json"),
        (same_names, "are called 'chebi'"),
        (damage_index, "index"),
    ],
)
def test_missing_or_damaged_input_is_named(spoil, expected, align_inputs, tmp_path):
    config = make_config(tmp_path / "run", align_inputs)
    spoil(config, tmp_path)
    with pytest.raises(InputError) as caught:
        open_inputs(config)
    assert expected in str(caught.value)


def test_dry_run_says_what_would_happen(align_inputs, tmp_path):
    text = describe(make_config(tmp_path / "run", align_inputs, stage=3))
    assert "260,032 parameters of the language model, frozen" in text
    assert "GCN 5 x 300" in text and "ZeRO stage 3 on 1 process, language model registered" in text
    assert "4 steps, 24 questions" in text and "chebi: 60 questions" in text and "would start" in text
    assert not (tmp_path / "run").exists()


def test_help_and_dry_run_need_no_torch(align_inputs, tmp_path):
    (tmp_path / "align.toml").write_text(dump(make_config(tmp_path / "run", align_inputs)))
    program = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from align.train import main
assert main([{str(tmp_path / "align.toml")!r}, "--dry-run"]) == 0
assert "torch" not in sys.modules
try:
    main(["--help"])
except SystemExit as leaving:
    assert not leaving.code
assert "torch" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "token_budget" in result.stdout and "would start" in result.stdout


def test_command_line_shows_one_sentence(tmp_path):
    (tmp_path / "align.toml").write_text(GOOD)
    command = [sys.executable, "-m", "align", "train", str(tmp_path / "align.toml"), "--train.steps", "-1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=60)
    assert result.returncode == 2
    assert (
        result.stderr.startswith("error: ")
        and "train.steps is -1" in result.stderr
        and "Traceback" not in result.stderr
    )


def test_recipe_stays_what_it_says():
    text = Path(RECIPE).read_text()
    assert text.count("published") >= 10 and text.count("ours") >= 8
