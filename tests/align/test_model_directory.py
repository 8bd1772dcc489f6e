"""A model directory holds all of a model, and says clearly what is wrong with one that does not."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, EsmModel

from align.language_model import is_lora, model_checksum
from align.model import AlignedModel
from align.settings import AlignedSettings, LoraSettings
from job.errors import InputError
from job.tokenizer import PROBES
from tests.align.aligned_models import mixed_questions, small_model, small_settings, stories


@pytest.fixture(scope="module")
def questions(real_data):
    return mixed_questions(real_data)


@pytest.fixture(scope="module")
def language_model(real_data, tmp_path_factory):
    """A copy of the real language model that a test may move."""
    folder = tmp_path_factory.mktemp("language_model") / "stories"
    shutil.copytree(stories(real_data), folder)
    return folder


@pytest.fixture(scope="module")
def saved(real_data, language_model, tmp_path_factory):
    """A model and its directory, which refers to the language model."""
    model = small_model(real_data, small_settings("resampled", "mlp"), seed=5)
    model.language_model_directory = language_model
    directory = tmp_path_factory.mktemp("saved") / "aligned"
    facts = {"steps": 1200, "data": [{"name": "chebi20", "questions": 3300, "licence": "CC BY 4.0"}]}
    model.save_pretrained(directory, training=facts)
    return model, directory


def losses(model, questions):
    batch = model.encoding.collate([model.encoding.example(question) for question in questions])
    with torch.no_grad():
        # whole rows: only some models may read what rows share once, and that rounds otherwise
        return model.eval().row_losses(dataclasses.replace(batch, shared=0))[0]


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("tokens", ["each", "pooled", "resampled"])
def test_loaded_model_is_the_saved_one(real_data, questions, tmp_path, tokens, copied):
    model = small_model(real_data, small_settings(tokens), seed=3)
    model.save_pretrained(tmp_path / "m", copy_language_model=copied)
    assert (tmp_path / "m" / "language_model").is_dir() == copied
    loaded = AlignedModel.from_pretrained(tmp_path / "m")
    assert loaded.settings == model.settings
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(losses(loaded, questions), losses(model, questions))
    if copied:  # by itself, too
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m" / "language_model")
        assert tokenizer("Once")["input_ids"] == model.tokenizer("Once")["input_ids"]
    assert not any(p.requires_grad for p in loaded.parameters())
    assert loaded.generate(questions, max_new_tokens=6) == model.generate(questions, max_new_tokens=6)


def test_parts_are_what_other_programs_read(saved, language_model):
    model, directory = saved
    config = json.loads((directory / "config.json").read_text())
    assert (
        AlignedSettings.from_json({k: config[k] for k in ("molecule", "protein", "prompt", "max_length")}, "x")
        == model.settings
    )
    assert config["language_model"] == {"path": str(language_model), "sha256": model_checksum(language_model)}
    esm = EsmModel.from_pretrained(directory / "protein_encoder", add_pooling_layer=False)
    stored = model.protein_encoder.esm.state_dict()
    assert torch.equal(
        esm.state_dict()["encoder.layer.1.output.dense.weight"], stored["encoder.layer.1.output.dense.weight"]
    )
    assert "gnns.1.mlp.2.weight" in load_file(directory / "molecule_encoder.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert [tokenizer(text)["input_ids"] for text in PROBES] == [model.tokenizer(text)["input_ids"] for text in PROBES]


def test_card_says_what_it_is_made_of(saved):
    card = (saved[1] / "README.md").read_text()
    assert card.startswith("---\n") and "# aligned\n" in card
    for text in ("`stories`: llama", "GIN", "3 tokens, mlp adapter", "| chebi20 | 3,300 | CC BY 4.0 |", "steps: 1,200"):
        assert text in card
    assert str(saved[1].parent) not in card  # cards are published: no paths


def test_licence_of_the_language_model_is_quoted(real_data, language_model, tmp_path):
    source = shutil.copytree(language_model, tmp_path / "base")
    (source / "README.md").write_text("---\nlibrary_name: x\nlicense: llama2\n---\n# base\n")
    model = small_model(real_data)
    model.language_model_directory = source
    model.save_pretrained(tmp_path / "m")
    assert "| llama2 |" in (tmp_path / "m" / "README.md").read_text()


def test_moved_language_model_is_found_by_another_path(saved, questions, language_model, tmp_path):
    model, directory = saved
    elsewhere = shutil.copytree(language_model, tmp_path / "elsewhere")
    copy = shutil.copytree(directory, tmp_path / "m")
    config = json.loads((copy / "config.json").read_text())
    config["language_model"]["path"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"is not at .*gone; say where it is now \(--language-model DIR\)"):
        AlignedModel.from_pretrained(copy)
    loaded = AlignedModel.from_pretrained(copy, language_model=elsewhere)
    assert torch.equal(losses(loaded, questions), losses(model, questions))


def test_another_language_model_is_refused(saved, language_model, tmp_path):
    other = shutil.copytree(language_model, tmp_path / "other")
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match=r"is not the language model that .* was aligned with"):
        AlignedModel.from_pretrained(saved[1], language_model=other)
    AlignedModel.from_pretrained(saved[1], language_model=other, verify=False)


@pytest.mark.parametrize("copied", [False, True])
def test_lora_is_saved_and_loaded(real_data, questions, tmp_path, copied):
    model = small_model(real_data, registered=True)
    model.tune("lora", LoraSettings(rank=2, modules=["q_proj", "down_proj"]))
    before = losses(model, questions)
    with torch.no_grad():
        for name, tensor in model.trainable_state().items():
            if is_lora(name):
                tensor.normal_(std=0.3)
    assert not torch.allclose(before, losses(model, questions))
    model.save_pretrained(tmp_path / "m", copy_language_model=copied)
    loaded = AlignedModel.from_pretrained(tmp_path / "m")
    assert torch.equal(losses(loaded, questions), losses(model, questions))
    assert loaded.generate(questions, max_new_tokens=6) == model.generate(questions, max_new_tokens=6)
    from peft import PeftModel  # and peft itself reads it

    base = AutoModelForCausalLM.from_pretrained(stories(real_data))
    ids = torch.arange(3, 20)[None]
    expected = loaded.language_model(ids).logits
    torch.testing.assert_close(PeftModel.from_pretrained(base, tmp_path / "m" / "lora").eval()(ids).logits, expected)


def test_trained_language_model_is_written_whole(real_data, questions, tmp_path):
    model = small_model(real_data, registered=True)
    trained = {name: tensor + 0.01 for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    fresh = small_model(real_data, registered=True)
    fresh.save_pretrained(tmp_path / "m", state=trained)
    model.load_state_dict(trained, strict=False)
    loaded = AlignedModel.from_pretrained(tmp_path / "m")
    assert torch.equal(losses(loaded, questions), losses(model, questions))
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "m" / "language_model")
    assert torch.equal(alone.model.norm.weight, model.language_model.model.norm.weight)


def test_gathered_state_of_a_sharded_model_is_written(real_data, questions, tmp_path):
    """A sharded model shows no elements; tied weights are gathered under one of their names."""
    model = small_model(real_data, registered=True, seed=7)
    gathered = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    expected, sharded = losses(model, questions), small_model(real_data, registered=True)
    assert "language_model.lm_head.weight" in sharded.state_dict() and "language_model.lm_head.weight" not in gathered
    for parameter in sharded.parameters():
        parameter.data = torch.empty(0)
    sharded.save_pretrained(tmp_path / "m", state=gathered)
    assert torch.equal(losses(AlignedModel.from_pretrained(tmp_path / "m"), questions), expected)
    card = (tmp_path / "m" / "README.md").read_text()
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.molecule_encoder, model.language_model)]
    assert all(f"{size:,} parameters" in card for size in sizes)


def test_tensor_without_elements_is_an_error(real_data, tmp_path):
    """What a sharded parameter looks like before it is gathered."""
    model = small_model(real_data)
    state = {"molecule_adapter.projection.weight": torch.empty(0)}
    with pytest.raises(ValueError, match=r"molecule_adapter\.projection\.weight has no elements"):
        model.save_pretrained(tmp_path / "m", state=state)
    assert not (tmp_path / "m").exists()
    model.molecule_encoder.gnns[0].mlp[0].weight.data = torch.empty(0)
    with pytest.raises(ValueError, match=r"gnns\.0\.mlp\.0\.weight has no elements"):
        model.save_pretrained(tmp_path / "m")


def test_unknown_names_are_an_error(real_data, tmp_path):
    with pytest.raises(ValueError, match="no_such"):
        small_model(real_data).save_pretrained(tmp_path / "m", state={"no_such": torch.ones(1)})


def test_existing_directory_is_written_into(real_data, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    small_model(real_data).save_pretrained(tmp_path)
    assert (tmp_path / "manifest.json").exists() and (tmp_path / "config.json").exists()


def spoil_settings(directory):
    config = json.loads((directory / "config.json").read_text())
    config["molecule"]["layrs"] = 3
    (directory / "config.json").write_text(json.dumps(config))


def spoil_type(directory):
    (directory / "config.json").write_text('{"model_type": "llama"}')


def truncate_adapters(directory):
    content = (directory / "adapters.safetensors").read_bytes()
    (directory / "adapters.safetensors").write_bytes(content[:-100])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_settings, r"config\.json: .*layrs"),
        (spoil_type, "is not an aligned model"),
        (truncate_adapters, r"adapters\.safetensors is damaged"),
        (lambda directory: (directory / "adapters.safetensors").unlink(), r"adapters\.safetensors is missing"),
        (lambda directory: (directory / "molecule_encoder.safetensors").unlink(), "molecule_encoder.safetensors"),
        (lambda directory: shutil.rmtree(directory / "protein_encoder"), "protein_encoder"),
        (lambda directory: (directory / "tokenizer.json").unlink(), "tokenizer"),
        (lambda directory: (directory / "config.json").write_text("{"), "not valid JSON"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_damaged_directory_is_one_clear_sentence(saved, tmp_path, spoil, message):
    copy = shutil.copytree(saved[1], tmp_path / "m")
    spoil(copy)
    with pytest.raises(InputError, match=message):
        AlignedModel.from_pretrained(copy)
