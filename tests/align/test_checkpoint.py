"""Runs continue as if nothing had happened: on the same ranks bit for bit, at any other number of ranks and stage."""

import dataclasses
import shutil

import pytest
import torch

from job.directory import RunDirectory
from tests.align.runs import STEPS, assert_equal_checkpoints, checkpoint_tensors, final, make_config, quietly
from tests.ranks.fork import RankFailed, run_ranks
from tests.training import losses, metrics_rows

DROPOUT = 0.1  # of LoRA: random states must continue too


@pytest.fixture(scope="module")
def undisturbed(align_inputs, tmp_path_factory):
    """By (stage, world, mode), the directory of a run that nobody disturbed."""
    made = {}

    def run(stage, world, mode="adapters"):
        if (stage, world, mode) not in made:
            directory = tmp_path_factory.mktemp("undisturbed") / "run"
            run_ranks(world, quietly, make_config(directory, align_inputs, stage, mode, dropout=DROPOUT))
            made[stage, world, mode] = directory
        return made[stage, world, mode]

    return run


@pytest.fixture(scope="module")
def no_dropout(align_inputs, tmp_path_factory):
    """The losses of a run whose computation does not depend on which rank computes what."""
    directory = tmp_path_factory.mktemp("no-dropout") / "run"
    run_ranks(1, quietly, make_config(directory, align_inputs, 0, "lora", validate_at_start=False))
    return losses(metrics_rows(directory))


def forget_end(directory, copy):
    """A copy of a run as it would be had the job died after its first checkpoint."""
    shutil.copytree(directory, copy)
    shutil.rmtree(RunDirectory(copy).checkpoint(STEPS))
    return copy


@pytest.mark.parametrize(
    "stage, world, mode", [(0, 1, "adapters"), (1, 2, "adapters"), (2, 2, "encoders"), (2, 2, "lora"), (3, 2, "all")]
)
def test_continuing_changes_no_bit(stage, world, mode, undisturbed, align_inputs, tmp_path):
    whole = undisturbed(stage, world, mode)
    directory = forget_end(whole, tmp_path / "run")
    run_ranks(world, quietly, make_config(directory, align_inputs, stage, mode, dropout=DROPOUT))
    assert_equal_checkpoints(final(whole), final(directory))
    redone = losses([row for row in metrics_rows(directory) if row["attempt"] == 2])
    assert redone == losses(metrics_rows(whole))[2:]


@pytest.mark.parametrize(
    "path", [[(2, 2), (2, 1), (2, 2)], [(2, 1), (3, 2), (0, 1)]], ids=["2-1-2 ranks", "stage 2-3-0"]
)
def test_continuing_elsewhere_follows_the_same_curve(path, no_dropout, align_inputs, tmp_path):
    for (stage, world), steps in zip(path, (1, 2, STEPS)):
        config = make_config(tmp_path / "run", align_inputs, stage, "lora", steps=steps, validate_at_start=False)
        run_ranks(world, quietly, config)
    rows = metrics_rows(tmp_path / "run")
    assert [row["attempt"] for row in rows if "train/loss" in row] == [1, 2, 3, 3]
    assert losses(rows) == pytest.approx(no_dropout, abs=1e-4)


def test_checkpoint_holds_what_is_trained_and_proves_the_rest(undisturbed):
    found = checkpoint_tensors(final(undisturbed(2, 2, "encoders")))
    assert not any("language_model" in name for name in found)
    assert {name.split("/")[0] for name in found} == {"weights", "exp_avg", "exp_avg_sq", "buffers"}
    statistics = {name: value for name, value in found.items() if "running_var" in name}
    assert statistics and all((value != 1).any() for value in statistics.values())  # they have been trained, too
    for name, value in found.items():
        if name.startswith("exp_avg_sq/") and "adapter" in name:
            assert value.abs().sum() > 0, name
    assert all(value.dtype == torch.float32 for name, value in found.items() if not name.startswith("buffers/"))


def other_language_model(config, folder):
    shutil.copytree(config.model.language_model, folder / "lm")
    file = next((folder / "lm").glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    config.model.language_model = str(folder / "lm")


def other_encoder(config, folder):
    weights = torch.load(config.molecule.weights, map_location="cpu", weights_only=True)
    weights["x_embedding1.weight"][0, 0] += 1
    torch.save(weights, folder / "encoder.pth")
    config.molecule = dataclasses.replace(config.molecule, weights=str(folder / "encoder.pth"))


def other_data(config, folder):
    config.data.sources.pop()


def other_batch(config, folder):
    config.train.global_batch += 1


def other_mode(config, folder):
    config.tune.mode = "lora"


def other_adapter(config, folder):
    config.prompt = dataclasses.replace(config.prompt, human="USER")


@pytest.mark.parametrize(
    "change, expected",
    [
        (other_language_model, "another language model"),
        (other_encoder, "another molecule encoder"),
        (other_data, "other data"),
        (other_batch, "global_batch"),
        (other_mode, "lora_A"),
        (other_adapter, "USER"),
    ],
)
def test_continuing_with_something_else_is_refused(change, expected, undisturbed, align_inputs, tmp_path):
    directory = forget_end(undisturbed(0, 1), tmp_path / "run")
    config = make_config(directory, align_inputs, 0)
    change(config, tmp_path)
    with pytest.raises(RankFailed) as caught:
        run_ranks(1, quietly, config)
    message = str(caught.value).strip().splitlines()[-1]
    assert message.startswith("job.errors.InputError") and expected in message, message
    assert [row["attempt"] for row in metrics_rows(directory)] == [1] * len(metrics_rows(directory))


def test_continuing_with_other_lora_settings_is_refused(undisturbed, align_inputs, tmp_path):
    directory = forget_end(undisturbed(2, 2, "lora"), tmp_path / "run")
    config = make_config(directory, align_inputs, 2, "lora")
    config.tune.lora = dataclasses.replace(config.tune.lora, alpha=3200)
    with pytest.raises(RankFailed, match=r"tune\.lora.*alpha"):
        run_ranks(2, quietly, config)


def test_files_can_be_read_by_whoever_can_read_their_directory(undisturbed):
    directory = final(undisturbed(0, 1))
    modes = {path.name: path.stat().st_mode & 0o777 for path in directory.rglob("*.safetensors")}
    assert len(modes) > 2 and set(modes.values()) == {directory.stat().st_mode & 0o666}


def test_damaged_checkpoint_is_set_aside(undisturbed, align_inputs, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(undisturbed(0, 1), directory)
    file = final(directory) / "exp_avg.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    run_ranks(1, quietly, make_config(directory, align_inputs, 0))
    assert (directory / "checkpoints" / f"damaged-{file.parent.name}").is_dir()
    assert_equal_checkpoints(final(undisturbed(0, 1)), final(directory))
