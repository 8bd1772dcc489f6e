"""What adapters standardise by: measured on real structures, the same on any number of ranks, kept to the export."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align.config import SourceConfig
from align.esm import collate_proteins, load_protein_encoder
from align.export import main as export
from align.model import AlignedModel
from align.proteins import tokenise
from align.question_shards import QuestionSet
from align.settings import AdapterSettings
from tests.align.question_sets import chebi_questions, write_set
from tests.align.runs import checkpoint_tensors, final, make_config, quietly
from tests.ranks.fork import run_ranks
from tests.training import metrics_rows

POOLED, EACH = AdapterSettings("pooled", standardise=True), AdapterSettings("each", standardise=True)


def standardised(directory, align_inputs, stage=2, **changes):
    config = make_config(directory, align_inputs, stage, **changes)
    config.molecule = replace(config.molecule, adapter=EACH)
    config.protein = replace(config.protein, adapter=POOLED)
    return config


def pooled_proteins(align_inputs) -> torch.Tensor:
    """What the protein encoder gives for each training protein, in the mean of its residues."""
    encoder = load_protein_encoder(Path(align_inputs.protein_weights))
    with torch.no_grad():
        return torch.stack(
            [
                encoder(collate_proteins([tokenise(question.proteins[0])])).mean(0)
                for question in QuestionSet(align_inputs.yeast, "train")
            ]
        )


@pytest.mark.parametrize("stage, world", [(0, 1), (2, 2), (3, 2)])
def test_statistics_are_those_of_the_training_structures(stage, world, align_inputs, tmp_path):
    config = standardised(tmp_path / "run", align_inputs, stage, steps=2)
    run_ranks(world, quietly, config)
    buffers = load_file(final(tmp_path / "run") / "buffers.safetensors")
    assert set(buffers) == {
        f"{kind}_adapter.{name}" for kind in ("molecule", "protein") for name in ("mean", "deviation")
    }
    proteins = pooled_proteins(align_inputs)
    torch.testing.assert_close(buffers["protein_adapter.mean"], proteins.mean(0), atol=1e-5, rtol=1e-4)
    expected = proteins.std(0, correction=0)
    expected = expected.clamp(min=1e-3 * expected.max())
    torch.testing.assert_close(buffers["protein_adapter.deviation"], expected, atol=1e-5, rtol=1e-3)
    assert (buffers["molecule_adapter.deviation"] > 0).all()


def test_statistics_are_measured_once_and_survive_to_the_exported_model(align_inputs, tmp_path):
    config = standardised(tmp_path / "run", align_inputs, steps=4)
    run_ranks(1, quietly, config)
    first = checkpoint_tensors(final(tmp_path / "run"))
    config.train.steps = 6
    run_ranks(2, quietly, config)
    second = checkpoint_tensors(final(tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("buffers/"))
    assert not all(torch.equal(first[name], second[name]) for name in first if name.startswith("weights/"))

    export([str(tmp_path / "run"), str(tmp_path / "model"), "--copy-language-model"])
    model = AlignedModel.from_pretrained(tmp_path / "model")
    assert torch.equal(model.protein_adapter.mean, second["buffers/protein_adapter.mean"])
    questions = list(QuestionSet(align_inputs.yeast, "validation"))
    batch = model.encoding.collate([model.encoding.example(question) for question in questions[:3]])
    with torch.no_grad():
        loss = model(batch).item() / batch.answer_tokens
    last = [row["val/loss/yeast"] for row in metrics_rows(tmp_path / "run") if "val/loss/yeast" in row][-1]
    assert loss == pytest.approx(last, abs=1e-4)
    assert "standardised" in (tmp_path / "model" / "README.md").read_text()


def test_structures_that_are_all_alike_are_centred_only(align_inputs, real_data, tmp_path):
    """A control whose rows all have the same structure: its deviation is nothing, or what rounding leaves."""
    rows = [replace(question, molecules=("C",), atoms=(1,)) for question in chebi_questions(real_data, 24)]
    write_set(tmp_path / "alike", rows[:20], rows[20:])
    config = standardised(tmp_path / "run", align_inputs, 0, steps=2)
    config.data.sources = [SourceConfig(str(tmp_path / "alike"))]
    run_ranks(1, quietly, config)
    buffers = load_file(final(tmp_path / "run") / "buffers.safetensors")
    assert (buffers["molecule_adapter.deviation"] == 1).all() and buffers["molecule_adapter.mean"].abs().max() > 0.1
