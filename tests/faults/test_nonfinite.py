"""A loss or gradient that is not a number stops the step before it reaches the weights."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from parallel import convert
from tests.faults.jobs import run_job
from tests.faults.runs import LAYOUTS, config_of
from tests.training import losses, metrics_rows


@pytest.fixture(scope="module")
def poisoned(inputs, tmp_path_factory):
    """The real model with one weight that is not a number."""
    folder = tmp_path_factory.mktemp("poisoned")
    shutil.copytree(inputs.hugging_face, folder / "hf")
    weights = load_file(folder / "hf" / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][5, 7] = torch.nan
    save_file(weights, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    convert.import_main([str(folder / "hf"), str(folder / "base")])
    return str(folder / "base")


@pytest.mark.parametrize("name", ["data2", "pipeline2"])
def test_stops_before_the_weights_and_names_the_samples(name, poisoned, inputs, tmp_path):
    world, layout = LAYOUTS[name]
    codes, output = run_job(world, config_of(tmp_path / "run", inputs, layout, base=poisoned))
    assert codes == [2] * world, output
    told = [line for line in output.splitlines() if line.startswith("error")]
    assert len(told) == 1 and "step 1" in told[0] and "nan" in told[0] and "samples 0 to 7" in told[0], output
    assert "Traceback" not in output
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))
    rows = metrics_rows(tmp_path / "run")
    assert not losses(rows)
    [event] = [row for row in rows if "health/nonfinite" in row]
    assert (event["step"], event["first_sample"], event["last_sample"]) == (1, 0, 7)


def test_later_step_leaves_the_last_checkpoint(inputs, tmp_path):
    """A weight turns infinite during the fifth step: the checkpoint of the fourth stays the newest."""

    def poison_after_step_4(rank):
        from pretrain.trainer import Trainer

        step = Trainer.step

        def instead(self):
            if self.progress.step == 4:
                parameter = next(self.parts.chunks[0].parameters())
                with torch.no_grad():
                    parameter.view(-1)[0] = torch.inf
            return step(self)

        Trainer.step = instead

    world, layout = LAYOUTS["data2"]
    codes, output = run_job(world, config_of(tmp_path / "run", inputs, layout), poison_after_step_4)
    assert codes == [2, 2], output
    assert "step 5" in output and "samples 32 to 39" in output
    assert (tmp_path / "run" / "latest").read_text() == "step-00000004\n"
    body = json.loads((tmp_path / "run" / "checkpoints" / "step-00000004" / "manifest.json").read_text())
    assert body["consumed_samples"] == 32


def test_validation_that_is_not_finite_saves_nothing(poisoned, inputs, tmp_path):
    config = config_of(tmp_path / "run", inputs, LAYOUTS["one"][1], base=poisoned)
    config.train.validate_at_start = True
    codes, output = run_job(1, config)
    assert codes == [2] and "val/loss/" in output and "is nan" in output, output
    assert not metrics_rows(tmp_path / "run")
