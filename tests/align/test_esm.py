"""ESM-2 over packed chains, against fair-esm and transformers' own padded forward."""

import argparse
import copy
import gzip
import json
import warnings

import esm
import numpy as np
import pytest
import torch
from esm.model.esm2 import ESM2
from transformers import EsmModel

from align.esm import (
    ProteinBatch,
    collate_proteins,
    create_protein_encoder,
    from_fair_esm_names,
    load_protein_encoder,
    to_fair_esm_names,
)
from align.proteins import MASK, TOKENS, tokenise
from job.errors import InputError

LAYERS, WIDTH, HEADS = 4, 64, 4
ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")
UNUSUAL = "ACDEFGHIKLMNPQRSTVWYXBZUO"


def fair_esm(seed=0):
    torch.manual_seed(seed)
    model = ESM2(LAYERS, WIDTH, HEADS, ALPHABET, token_dropout=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from ones and zeros, so that a swapped weight shows
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def save_fair_esm(model, path, **settings):
    """As the public files are: settings in a Namespace, names with the encoder's prefixes, no contact regression."""
    names = {
        "encoder_layers": LAYERS,
        "encoder_embed_dim": WIDTH,
        "encoder_attention_heads": HEADS,
        "token_dropout": True,
        "arch": "esm2",
    }
    state = {
        ("encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder.") + name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("contact_head.")
    }
    torch.save({"cfg": {"model": argparse.Namespace(**names | settings)}, "model": state}, path)


def last_hidden(model, chains):
    """fair-esm's own forward, one chain at a time."""
    with torch.no_grad():
        outputs = [model(torch.from_numpy(chain)[None], repr_layers=[LAYERS]) for chain in chains]
    return torch.cat([output["representations"][LAYERS][0] for output in outputs])


@pytest.fixture(scope="module")
def sequences(real_data):
    """Real yeast proteins of 50 to 400 residues, and every letter of the alphabet."""
    with gzip.open(real_data / "yeast_protein_text" / "yeast_sgd.open.jsonl.gz", "rt") as lines:
        found = [json.loads(next(lines))["sequence"] for _ in range(60)]
    return [*[sequence for sequence in found if 50 <= len(sequence) <= 400][:6], UNUSUAL]


@pytest.fixture(scope="module")
def chains(sequences):
    return [tokenise(sequence) for sequence in sequences]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("esm") / "esm2_t4_tiny.pt"
    save_fair_esm(fair_esm(), path)
    return path


def test_fair_esm_reads_the_same_file(checkpoint):
    """What we write for these tests is what fair-esm's own loader takes."""
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = torch.load(checkpoint, weights_only=True)
        model, alphabet = esm.pretrained.load_model_and_alphabet_core("esm2_t4_tiny", data)
    assert alphabet.all_toks == list(TOKENS)
    assert torch.equal(model.embed_tokens.weight, fair_esm().embed_tokens.weight)


def test_packed_equals_fair_esm(checkpoint, sequences, chains):
    encoder = load_protein_encoder(checkpoint)
    _, _, ids = ALPHABET.get_batch_converter()([("", sequence) for sequence in sequences])
    with torch.no_grad():
        padded = fair_esm()(ids, repr_layers=[LAYERS])["representations"][LAYERS]
    expected = torch.cat([row[: len(chain)] for row, chain in zip(padded, chains)])
    assert torch.equal(
        torch.cat([row[: len(c)] for row, c in zip(ids, chains)]), torch.from_numpy(np.concatenate(chains))
    )
    with torch.no_grad():
        packed = encoder(collate_proteins(chains))
    assert packed.shape == (sum(map(len, chains)), WIDTH) == (len(expected), encoder.width)
    assert (packed - expected).abs().max() <= 1e-5 < 0.1 < expected.abs().mean()


def test_packed_equals_single_and_padded(checkpoint, chains):
    encoder = load_protein_encoder(checkpoint)
    with torch.no_grad():
        packed = encoder(collate_proteins(chains))
        single = torch.cat([encoder(collate_proteins([chain])) for chain in chains])
        ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(c) for c in chains], batch_first=True, padding_value=1)
        hugging_face = EsmModel(copy.deepcopy(encoder.esm.config), add_pooling_layer=False).eval()
        hugging_face.load_state_dict(encoder.esm.state_dict(), strict=False)
        hugging_face.set_attn_implementation("sdpa")
        padded = hugging_face(ids, attention_mask=(ids != 1).long()).last_hidden_state
    assert (packed - single).abs().max() <= 1e-5
    assert (packed - torch.cat([row[: len(c)] for row, c in zip(padded, chains)])).abs().max() <= 1e-5


def test_chains_do_not_see_each_other(checkpoint, chains):
    encoder = load_protein_encoder(checkpoint)
    other = chains[0].copy()
    other[5] = 4 if other[5] != 4 else 5
    with torch.no_grad():
        before, after = encoder(collate_proteins(chains[:3])), encoder(collate_proteins([other, *chains[1:3]]))
    first = len(chains[0])
    assert (before[first:] - after[first:]).abs().max() <= 1e-6
    assert (before[:first] - after[:first]).abs().max() > 1e-3


def test_hugging_face_directory_equals_fair_esm_file(checkpoint, chains, tmp_path):
    encoder = load_protein_encoder(checkpoint)
    encoder.esm.save_pretrained(tmp_path / "hf")
    reloaded = load_protein_encoder(tmp_path / "hf")
    assert reloaded.esm.config.num_attention_heads == HEADS
    with torch.no_grad():
        batch = collate_proteins(chains)
        assert torch.equal(encoder(batch), reloaded(batch))


def test_names_convert_both_ways():
    state = fair_esm().state_dict()
    converted = from_fair_esm_names(state)
    encoder = create_protein_encoder(LAYERS, WIDTH, HEADS, seed=0)
    assert converted.keys() == {name for name in encoder.esm.state_dict() if not name.startswith("rotary")}
    back = to_fair_esm_names(converted)
    kept = {name for name in state if not name.startswith(("lm_head.", "contact_head.")) and "inv_freq" not in name}
    assert back.keys() == kept
    assert all(torch.equal(back[name], state[name]) for name in kept)


def test_half_precision_checkpoint(checkpoint, chains, tmp_path):
    save_fair_esm(fair_esm().half(), tmp_path / "half.pt")
    encoder = load_protein_encoder(tmp_path / "half.pt")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    with torch.no_grad():
        difference = encoder(collate_proteins(chains)) - load_protein_encoder(checkpoint)(collate_proteins(chains))
    assert 0 < difference.abs().max() < 0.02


def test_bfloat16(checkpoint, real_data):
    """Also far into a long chain, where rotary angles rounded to bfloat16 would be off by whole turns."""
    with gzip.open(real_data / "yeast_protein_text" / "yeast_sgd.open.jsonl.gz", "rt") as lines:
        long = next(s for s in (json.loads(line)["sequence"] for line in lines) if len(s) >= 1022)
    batch = collate_proteins([tokenise(long)])
    with torch.no_grad():
        exact = load_protein_encoder(checkpoint)(batch)
        rounded = load_protein_encoder(checkpoint, torch.bfloat16)(batch)
    assert rounded.dtype == torch.bfloat16
    error = (rounded.float() - exact).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < 0.02


def test_gradients_reach_everything(chains):
    encoder = create_protein_encoder(2, 32, 2, seed=1).train()
    weights = torch.randn(sum(map(len, chains[:2])), 32)  # a plain sum would be blind: the last norm's rows sum to 0
    gradients = []
    for checkpointing in (False, True):
        encoder.zero_grad()
        encoder.gradient_checkpointing = checkpointing
        (encoder(collate_proteins(chains[:2])) * weights).sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        # A bias of all keys alike cancels in the softmax.
        assert gradient.abs().max() > 0 or name.endswith("key.bias"), name
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_no_chains_is_an_empty_batch_with_zero_gradients():
    encoder = create_protein_encoder(2, 32, 2, seed=1)
    output = encoder(collate_proteins([]))
    assert output.shape == (0, 32)
    output.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in encoder.parameters())


def test_created_encoder_depends_on_the_seed_alone():
    torch.manual_seed(7)
    first = create_protein_encoder(1, 16, 2, seed=3).state_dict()
    before = torch.rand(1)
    second, other = (create_protein_encoder(1, 16, 2, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    name = "esm.embeddings.word_embeddings.weight"
    assert not torch.equal(first[name], other[name])
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), before), "the global random state was used"


def test_masks_cannot_be_packed():
    chain = tokenise("MKTV")
    chain[2] = MASK
    with pytest.raises(ValueError, match="<mask>"):
        collate_proteins([chain])


def test_batch_moves():
    batch = collate_proteins([tokenise("MK")]).to("meta")
    assert isinstance(batch, ProteinBatch) and batch.ids.device.type == "meta" and batch.lengths == (4,)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda data: data["model"].pop("encoder.sentence_encoder.layers.1.fc1.weight"),
            r"lacks encoder\.layer\.1\.inter",
        ),
        (lambda data: data["model"].update(extra=torch.zeros(1)), "a weight that no ESM-2 has: extra"),
        (lambda data: setattr(data["cfg"]["model"], "encoder_layers", 3), "too many"),
        (
            lambda data: setattr(data["cfg"]["model"], "encoder_embed_dim", 32),
            r"shape \[33, 64\] instead of \[33, 32\]",
        ),
        (lambda data: data.pop("cfg"), "not a fair-esm checkpoint of an ESM-2"),
        (lambda data: data.update(args=data.pop("cfg")), "older ESM models"),
        (lambda data: data.update(evil=Evil()), "not a fair-esm checkpoint"),
    ],
)
def test_wrong_fair_esm_files_are_refused(checkpoint, tmp_path, damage, message, capsys):
    with torch.serialization.safe_globals([argparse.Namespace]):
        data = torch.load(checkpoint, weights_only=True)
    damage(data)
    torch.save(data, tmp_path / "damaged.pt")
    with pytest.raises(InputError, match=message) as error:
        load_protein_encoder(tmp_path / "damaged.pt")
    assert "\n" not in str(error.value)
    assert "code ran" not in capsys.readouterr().out


def test_truncated_and_absent_files_are_refused(checkpoint, tmp_path):
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(InputError, match="copy it again"):
        load_protein_encoder(tmp_path / "cut.pt")
    with pytest.raises(InputError, match="does not exist"):
        load_protein_encoder(tmp_path / "none.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type is 'absolute'"),
        ({"vocab_size": 40}, "vocab_size is 40"),
        ({"hidden_size": 32}, "cannot be loaded"),
    ],
)
def test_wrong_hugging_face_directories_are_refused(checkpoint, tmp_path, change, message):
    load_protein_encoder(checkpoint).esm.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        load_protein_encoder(tmp_path)


def test_hugging_face_directory_with_a_missing_weight_is_refused(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    load_protein_encoder(checkpoint).esm.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("encoder.layer.2.output.dense.bias")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lacks encoder\.layer\.2\.output\.dense\.bias"):
        load_protein_encoder(tmp_path)
