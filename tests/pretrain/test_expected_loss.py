"""Losses of a tiny recipe, kept in full precision: a change that moves them has to say so.

`pytest tests/pretrain/test_expected_loss.py --write-losses` writes the files anew; commit them with the reason.
"""

import dataclasses
from pathlib import Path

import pytest

from data_shards import tokens
from data_shards.shards import TokenizerInfo
from tests.data_shards.shard_sets import abstracts, text_of, write_build
from tests.faults.jobs import complete_job
from tests.training import losses, make_config, metrics_rows

ASSETS = Path(__file__).parent.parent / "assets" / "losses"
RECIPES = {
    "stories260k-fp32": {},
    "stories260k-fp32-weight-decay-cosine": {"style": "cosine", "decay": 1.0, "clip": 0.5},
}


@pytest.fixture(scope="module")
def fixed(inputs, real_data, tmp_path_factory):
    """Inputs whose shards hold 120 real abstracts as they are: better cleaning must not move these losses."""
    tokenizer = tokens.load(Path(inputs.hugging_face))
    documents = tokenizer.encode_batch([text_of(row) for row in abstracts(real_data, 120)])
    described = TokenizerInfo(
        str(tokenizer.path), tokenizer.sha256, tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id
    )
    shards = tmp_path_factory.mktemp("fixed") / "shards"
    write_build(shards, {"train": documents[10:], "validation": documents[:10]}, tokenizer=described)
    return dataclasses.replace(inputs, shards=str(shards))


def run(name, inputs, directory):
    """The losses of a recipe, on one rank: that layouts agree is test_training's matter."""
    changes = RECIPES[name]
    config = make_config(directory, inputs, steps=10)
    if changes:
        config.schedule.style, config.schedule.minimum = changes["style"], 0.0
        config.optimizer.weight_decay, config.optimizer.clip = changes["decay"], changes["clip"]
    complete_job(1, config)
    return losses(metrics_rows(directory))


@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_the_expected_ones(name, fixed, tmp_path, request):
    found = run(name, fixed, tmp_path / "run")
    file = ASSETS / f"{name}.txt"
    if request.config.getoption("--write-losses"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{step} {loss!r}\n" for step, loss in enumerate(found, 1)))
    lines = [line.split() for line in file.read_text().splitlines()]
    assert [int(step) for step, _ in lines] == list(range(1, 11))
    assert found == pytest.approx([float(loss) for _, loss in lines], abs=1e-5)
