"""A damaged checkpoint is named and set aside and the one before it used; with none left, a run does not start over."""

import json
import shutil

import pytest

from parallel import convert
from tests.faults.jobs import complete_job, run_job, samples_in_order
from tests.faults.runs import IN_ORDER, LAYOUTS, config_of, final
from tests.training import assert_equal_checkpoints


def flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def largest_tensors(checkpoint):
    return max(checkpoint.glob("*.distcp"), key=lambda file: file.stat().st_size)


def flipped_tensor(checkpoint):
    flip_a_byte(largest_tensors(checkpoint))
    return largest_tensors(checkpoint).name


def cut_file(checkpoint):
    file = checkpoint / "common.pt"
    file.write_bytes(file.read_bytes()[:-100])
    return file.name


def missing_random_state(checkpoint):
    (checkpoint / "random" / "rank-00001.pt").unlink()
    return "rank-00001.pt"


def garbage_manifest(checkpoint):
    (checkpoint / "manifest.json").write_bytes(b"\x00\xffnot json")
    return "manifest.json"


def missing_manifest(checkpoint):
    (checkpoint / "manifest.json").unlink()
    return "manifest.json"


def another_number_in_the_manifest(checkpoint):
    """Still JSON, still the right keys: only the manifest's own checksum tells."""
    text = (checkpoint / "manifest.json").read_text()
    assert '"consumed_samples": 64' in text
    (checkpoint / "manifest.json").write_text(text.replace('"consumed_samples": 64', '"consumed_samples": 74'))
    return "manifest.json"


DAMAGES = [
    flipped_tensor,
    cut_file,
    missing_random_state,
    garbage_manifest,
    missing_manifest,
    another_number_in_the_manifest,
]


@pytest.fixture
def run_copy(undisturbed, tmp_path):
    """A copy of a complete run, which the test may damage."""
    return shutil.copytree(undisturbed("data2"), tmp_path / "run")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named_and_the_checkpoint_before_is_used(damage, inputs, undisturbed, run_copy):
    named = damage(final(run_copy))
    world, layout = LAYOUTS["data2"]
    output = complete_job(world, config_of(run_copy, inputs, layout))
    warned = [line for line in output.splitlines() if "trying the checkpoint before it" in line]
    assert len(warned) == 1 and str(final(run_copy)) in warned[0] and named in warned[0], output
    assert f"continuing from {run_copy / 'checkpoints' / 'step-00000006'}" in output
    assert_equal_checkpoints(final(run_copy), final(undisturbed("data2")))
    assert samples_in_order(run_copy) == IN_ORDER
    assert (run_copy / "checkpoints" / "damaged-step-00000008").is_dir()
    assert (run_copy / "latest").read_text() == "step-00000008\n"


@pytest.mark.parametrize("left", ["damaged", "nothing"])
def test_without_a_whole_checkpoint_a_run_does_not_start_over(left, inputs, run_copy):
    for checkpoint in (run_copy / "checkpoints").iterdir():
        if left == "damaged":
            flipped_tensor(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    world, layout = LAYOUTS["data2"]
    before = (run_copy / "metrics.jsonl").read_bytes()
    codes, output = run_job(world, config_of(run_copy, inputs, layout))
    assert codes == [2, 2], output
    told = [line for line in output.splitlines() if line.startswith("error")]
    assert len(told) == 1 and "no checkpoint in" in told[0] and "is whole" in told[0], output
    assert (run_copy / "metrics.jsonl").read_bytes() == before


def test_damaged_start_is_refused(inputs, tmp_path):
    base = shutil.copytree(inputs.base, tmp_path / "base")
    named = flipped_tensor(base)
    codes, output = run_job(2, config_of(tmp_path / "run", inputs, LAYOUTS["data2"][1], base=str(base)))
    assert codes == [2, 2] and "Traceback" not in output
    assert [named in line for line in output.splitlines() if line.startswith("error")] == [True], output


def test_checkpoint_of_another_model_is_refused(inputs, run_copy, tmp_path):
    """Weights would load, every shape fits; only the config says that they belong to another model."""
    shutil.copytree(inputs.hugging_face, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    convert.import_main([str(tmp_path / "hf"), str(tmp_path / "base")])
    codes, output = run_job(2, config_of(run_copy, inputs, LAYOUTS["data2"][1], base=str(tmp_path / "base")))
    assert codes == [2, 2], output
    told = [line for line in output.splitlines() if line.startswith("error")]
    assert len(told) == 1 and "holds another model than model.path" in told[0], output
