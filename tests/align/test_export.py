"""A run's end as a model directory: the same losses, the same weights, from any ZeRO stage."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from align.config import MoleculeConfig
from align.export import export, main
from align.model import AlignedModel
from align.question_shards import QuestionSet
from job import manifest
from job.errors import InputError
from job.files import sha256_file
from tests.align.runs import final, make_config, quietly
from tests.ranks.fork import run_ranks
from tests.training import metrics_rows


@pytest.fixture(scope="module")
def runs(align_inputs, tmp_path_factory):
    """By (stage, world, mode), a short run."""
    made = {}

    def run(stage, world, mode):
        if (stage, world, mode) not in made:
            directory = tmp_path_factory.mktemp("runs") / "run"
            config = make_config(directory, align_inputs, stage, mode, steps=2, validate_at_start=False)
            config.train.validate_questions = 0
            run_ranks(world, quietly, config)
            made[stage, world, mode] = directory
        return made[stage, world, mode]

    return run


@pytest.mark.parametrize(
    "stage, world, mode",
    [(2, 1, "adapters"), (3, 2, "lora"), (3, 2, "all"), (2, 2, "encoders"), (1, 1, "language_model")],
)
def test_exported_model_has_the_losses_of_the_run(stage, world, mode, runs, align_inputs, tmp_path):
    directory = runs(stage, world, mode)
    main([str(directory), str(tmp_path / "model"), "--copy-language-model"])
    model = AlignedModel.from_pretrained(tmp_path / "model")
    (last,) = [row for row in metrics_rows(directory) if "val/loss/chebi" in row]
    for name, path in (("chebi", align_inputs.chebi), ("yeast", align_inputs.yeast)):
        questions = list(QuestionSet(path, "validation"))
        batch = model.encoding.collate([model.encoding.example(question) for question in questions])
        with torch.no_grad():
            loss = model(batch).item() / batch.answer_tokens
        assert loss == pytest.approx(last[f"val/loss/{name}"], abs=1e-4)
    weights = load_file(final(directory) / "weights.safetensors")
    saved = load_file(tmp_path / "model" / "adapters.safetensors")
    assert saved and all(torch.equal(value, weights[name]) for name, value in saved.items())
    card = (tmp_path / "model" / "README.md").read_text()
    assert "chebi | 60" in card and "yeast | 30" in card


def test_frozen_encoder_of_random_weights_is_the_runs_own(align_inputs, tmp_path):
    molecule = MoleculeConfig(layers=2, width=32)  # no weights: drawn from train.seed
    config = make_config(tmp_path / "run", align_inputs, 2, steps=1, molecule=molecule, validate_questions=0)
    run_ranks(1, quietly, config)
    torch.manual_seed(99)  # another state than training began with
    export(tmp_path / "run", tmp_path / "model")
    model = AlignedModel.from_pretrained(tmp_path / "model")
    questions = list(QuestionSet(align_inputs.chebi, "validation"))
    batch = model.encoding.collate([model.encoding.example(question) for question in questions])
    with torch.no_grad():
        loss = model(batch).item() / batch.answer_tokens
    last = [row for row in metrics_rows(tmp_path / "run") if "val/loss/chebi" in row][-1]
    assert loss == pytest.approx(last["val/loss/chebi"], abs=1e-4)


def rewrite(path, name, tensors):
    """Replace a tensor file of a checkpoint so that its manifest agrees."""
    save_file(tensors, path / name)
    body = manifest.read(path, "align checkpoint")
    body["files"][name] = {"sha256": sha256_file(path / name), "bytes": (path / name).stat().st_size}
    manifest.write(path, body["stage"], body.pop("config"), body.pop("inputs"), body)


def test_tensor_without_elements_is_an_error(runs, tmp_path):
    path = tmp_path / "checkpoint"
    shutil.copytree(final(runs(2, 1, "adapters")), path)
    weights = load_file(path / "weights.safetensors")
    weights["protein_adapter.projection.weight"] = torch.empty(0)  # what a partitioned parameter looks like
    rewrite(path, "weights.safetensors", weights)
    with pytest.raises(InputError, match=r"protein_adapter\.projection\.weight has no elements"):
        export(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_frozen_parts_must_be_those_of_the_run(runs, align_inputs, tmp_path):
    shutil.copytree(align_inputs.language_model, tmp_path / "lm")
    moved = ["--model.language_model", str(tmp_path / "lm")]
    export(runs(2, 1, "adapters"), tmp_path / "model", changes=moved)  # moved, but the same
    file = next((tmp_path / "lm").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="the language model is not the one"):
        export(runs(2, 1, "adapters"), tmp_path / "other", changes=moved)


def test_damaged_checkpoint_and_existing_directory_are_refused(runs, tmp_path):
    path = tmp_path / "checkpoint"
    shutil.copytree(final(runs(2, 1, "adapters")), path)
    with pytest.raises(InputError, match="exists already"):
        export(path, tmp_path)
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.safetensors does not match"):
        export(path, tmp_path / "model")
