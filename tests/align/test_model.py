"""The aligned model: every structure reaches its own place, and what is trained is what was asked for."""

import dataclasses

import pytest
import torch
import transformers

from align.examples import PLACES
from align.gnn import collate_graphs
from align.language_model import is_lora, load_language_model, load_tokenizer
from align.model import AlignedModel
from align.molecules import featurise
from align.proteins import tokenise
from align.questions import Question
from align.settings import LoraSettings
from job.errors import InputError
from tests.align.aligned_models import (
    assembled_by_hand,
    make_batch,
    mixed_questions,
    real_smiles,
    small_model,
    small_settings,
    stories,
)
from tests.parallel.models import save_model

TOKENS = ("each", "pooled", "resampled")


@pytest.fixture(scope="module")
def model(real_data):
    return small_model(real_data)


@pytest.fixture(scope="module")
def questions(real_data):
    return mixed_questions(real_data)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tokens", TOKENS)
def test_each_structure_reaches_its_own_place(real_data, questions, tokens, side):
    model = small_model(real_data, small_settings(tokens))
    for order in (range(5), (3, 1, 4, 0, 2), (1,), (2,), (3,)):  # mixed rows, protein-only, molecule-only, text-only
        chosen = [questions[number] for number in order]
        batch = make_batch(model, chosen, side)
        embedded = model.embed(batch)
        for row, question in enumerate(chosen):
            real = batch.attention_mask[row].bool()
            torch.testing.assert_close(embedded[row, real], assembled_by_hand(model, question), atol=1e-5, rtol=1e-5)


def test_swapped_structures_change_their_places_only(model, real_data):
    smiles = [s for s in real_smiles(real_data, 60) if len(featurise(s).atoms) == 12][:2]
    assert len(smiles) == 2
    rows = [Question("x", "What?", "That.", pair) for pair in (tuple(smiles), tuple(reversed(smiles)))]
    batch = make_batch(model, rows)
    one, two = model.embed(batch)
    places = (batch.ids[0] == PLACES["molecule"]).nonzero()[:, 0]
    first, second = places[:12], places[12:]
    assert torch.allclose(one[first], two[second]) and torch.allclose(one[second], two[first])
    assert not torch.allclose(one[first], two[first])
    assert torch.equal(one[batch.ids[0] >= 0], two[batch.ids[0] >= 0])


def test_loss_is_that_of_transformers_on_the_whole_row(model, questions):
    batch = make_batch(model, questions)
    sums, counts = model.row_losses(batch)
    for row, question in enumerate(questions):
        example = model.encoding.example(question)
        labels = torch.from_numpy(example.labels)[None]
        embedded = assembled_by_hand(model, question)[None]
        mean = model.language_model(inputs_embeds=embedded, labels=labels).loss  # one row by itself: no padding
        assert counts[row] == (labels[:, 1:] != -100).sum()
        torch.testing.assert_close(sums[row] / counts[row], mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model(batch), sums.sum())
    assert model(batch).dtype == torch.float32 and model(batch).shape == ()


@pytest.mark.parametrize("name", ["llama-gqa", "llama3-tied", "qwen2", "mistral"])
def test_other_families_are_read_alike(real_data, questions, tmp_path, name):
    save_model(name, tmp_path, vocab_size=512, max_position_embeddings=512)
    lm, tokenizer = load_language_model(tmp_path, torch.float32), load_tokenizer(stories(real_data))
    like = small_model(real_data)
    model = AlignedModel(lm, tokenizer, like.settings, like.molecule_encoder, like.protein_encoder, True)
    model.tune("lora")
    sums, counts = model.row_losses(make_batch(model, questions))
    for row, question in enumerate(questions):
        labels = torch.from_numpy(model.encoding.example(question).labels)[None]
        mean = lm(inputs_embeds=assembled_by_hand(model, question)[None], labels=labels).loss
        torch.testing.assert_close(sums[row] / counts[row], mean, atol=1e-4, rtol=1e-4)
    assert model.generate(questions, max_new_tokens=5) == [model.generate([q], max_new_tokens=5)[0] for q in questions]


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Llama", SIZES),
        ("Mistral", SIZES | {"sliding_window": 8, "num_key_value_heads": 2}),
        ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
        ("GPTNeoX", SIZES),
        ("Mamba", SIZES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text_that_rows_begin_with_is_read_once(real_data, questions, name, changes):
    """Losses and gradients are those of rows that were read whole; a model with a state reads whole rows."""
    config = getattr(transformers, f"{name}Config")(vocab_size=512, max_position_embeddings=512, **changes)
    torch.manual_seed(0)
    lm = transformers.AutoModelForCausalLM.from_config(config)
    like = small_model(real_data, small_settings(system="Answer questions about molecules. "))
    model = AlignedModel(
        lm, load_tokenizer(stories(real_data)), like.settings, like.molecule_encoder, like.protein_encoder
    )
    model.tune("adapters")
    batch = make_batch(model, questions[:3])
    widths = []
    lm.get_decoder().register_forward_pre_hook(
        lambda module, words, named: widths.append(tuple(named["inputs_embeds"].shape[:2])), with_kwargs=True
    )

    def measured(batch):
        model.zero_grad()
        model.train()(batch).backward()
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        return model.row_losses(batch)[0].detach(), {name: value.grad.clone() for name, value in trained.items()}

    losses, found = measured(batch)
    once = widths[:]
    widths.clear()
    whole_losses, whole = measured(dataclasses.replace(batch, shared=0))
    torch.testing.assert_close(losses, whole_losses, atol=1e-4, rtol=1e-5)
    for parameter, gradient in whole.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-4, rtol=1e-4)
    rows, length = batch.ids.shape
    assert widths == [(rows, length)] * 2
    shared = batch.shared
    assert shared > 10
    assert once == ([(rows, length)] * 2 if name == "Mamba" else [(1, shared), (rows, length - shared)] * 2)


def test_shared_text_ends_before_an_answer(model):
    """Also where rows are the same question without a structure, whose answers are alike."""
    same = [Question("a", "What is it?", "It is a molecule.")] * 3
    batch = make_batch(model, same)
    answer = int((batch.labels[0] >= 0).nonzero()[0])
    assert batch.shared == answer - 1
    losses, _ = model.row_losses(batch)
    alone, _ = model.row_losses(make_batch(model, same[:1]))
    torch.testing.assert_close(losses, alone.expand(3), atol=1e-5, rtol=1e-5)
    assert make_batch(model, [same[0], Question("b", "What is it?", "No.")], side="left").shared == 0


def test_logits_changed_after_the_output_layer_are_refused(tmp_path):
    config = transformers.GraniteConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        logits_scaling=2.0,
    )
    transformers.GraniteForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"granite change their logits .*\(logits_scaling\)"):
        load_language_model(tmp_path, torch.float32)


def test_padding_changes_no_loss(model, questions):
    right, left = (model.row_losses(make_batch(model, questions, side))[0] for side in ("right", "left"))
    alone = torch.cat([model.row_losses(make_batch(model, [question]))[0] for question in questions])
    torch.testing.assert_close(right, alone, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(left, alone, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("tokens", TOKENS)
def test_defect_forward_ran_for_no_kind_of_batch(real_data, questions, tokens):
    """The released forward subscripts a method, and needs molecules to have proteins and the reverse."""
    model = small_model(real_data, small_settings(tokens))
    model.tune("encoders")
    for number in range(5):
        model.zero_grad()
        loss = model.train()(make_batch(model, [questions[number]]))
        loss.backward()
        assert torch.isfinite(loss) and loss > 0
        # Every part ran, whatever the row holds, so that ranks never wait for each other.
        assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("tokens", TOKENS)
def test_empty_batch_has_loss_and_gradients_of_exactly_zero(real_data, tokens):
    model = small_model(real_data, small_settings(tokens, "mlp"), registered=True)
    model.tune("all")
    loss = model.train()(model.encoding.collate([]))
    loss.backward()
    assert loss.item() == 0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)


def gradients(model, questions):
    model.zero_grad(set_to_none=True)
    model.language_model.zero_grad(set_to_none=True)
    model.train()(make_batch(model, questions)).backward()
    named = {**dict(model.named_parameters()), **dict(model.language_model.named_parameters(prefix="language_model"))}
    return {name: parameter.grad for name, parameter in named.items()}


PARTS = ("molecule_adapter", "protein_adapter", "molecule_encoder", "protein_encoder", "language_model")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("adapters", PARTS[:2]),
        ("encoders", PARTS[:4]),
        ("lora", (*PARTS[:2], PARTS[4])),
        ("language_model", (*PARTS[:2], PARTS[4])),
        ("all", PARTS),
    ],
)
def test_gradients_reach_what_is_tuned_and_nothing_else(real_data, questions, mode, expected):
    model = small_model(real_data, registered=True)
    model.tune(mode)
    found = gradients(model, questions)
    for part in PARTS:
        norms = [grad.norm() for name, grad in found.items() if name.startswith(part) and grad is not None]
        assert bool(norms) == (part in expected), part
        assert not norms or max(norms) > 0, part
    trained = {name for name, grad in found.items() if grad is not None}
    state = model.trainable_state()
    assert trained <= state.keys()
    assert all("running" in name or "num_batches" in name for name in state.keys() - trained)
    assert any("running_mean" in name for name in state) == ("molecule_encoder" in expected)
    if mode == "lora":
        assert {is_lora(name) for name in trained if name.startswith("language_model")} == {True}
    if "molecule_encoder" in expected:  # every layer of the graph network learns
        weights = [grad for name, grad in found.items() if "gnns" in name and name.endswith("weight")]
        assert weights and all(grad.norm() > 0 for grad in weights)


def test_language_model_outside_the_module_tree_is_neither_listed_nor_trained(real_data, questions):
    model = small_model(real_data)
    assert not any(name.startswith("language_model") for name in model.state_dict())
    assert model.train().language_model.training and not model.eval().language_model.training
    for mode in ("lora", "language_model", "all"):
        with pytest.raises(ValueError, match="register_language_model"):
            model.tune(mode)
    model.tune("adapters")
    assert all(grad is None for name, grad in gradients(model, questions).items() if name.startswith("language_model"))


def test_frozen_encoders_stay_in_evaluation_mode(real_data):
    model = small_model(real_data)
    model.tune("adapters")
    model.train()
    assert (
        model.molecule_adapter.training and not model.molecule_encoder.training and not model.protein_encoder.training
    )
    model.tune("encoders")
    assert model.molecule_encoder.training and model.protein_encoder.training


def test_new_lora_changes_nothing_and_unknown_layers_are_refused(real_data, questions):
    model = small_model(real_data, registered=True)
    batch = make_batch(model, questions)
    before = model(batch)
    model.tune("lora", LoraSettings(rank=2, modules=["q_proj", "down_proj"]))
    assert torch.equal(model.eval()(batch), before)
    names = {name.split(".lora_")[0].split(".")[-1] for name in model.trainable_state() if is_lora(name)}
    assert names == {"q_proj", "down_proj"}
    with pytest.raises(InputError, match="LoRA cannot be added"):
        small_model(real_data, registered=True).tune("lora", LoraSettings(modules=["no_such_layer"]))


def test_language_model_in_bfloat16_leaves_the_graph_network_in_float32(real_data, questions, model):
    half = small_model(real_data, dtype=torch.bfloat16)
    half.tune("encoders")
    assert (
        half.language_model.dtype == torch.bfloat16 and half.molecule_encoder.x_embedding1.weight.dtype == torch.float32
    )
    batch = make_batch(half, questions)
    loss = half(batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model(batch), rtol=0.02, atol=0)
    loss.backward()
    assert half.molecule_adapter.projection.weight.grad.dtype == torch.float32


def test_autocast_computes_the_language_model_in_bfloat16_and_trains_float32(real_data, questions, model):
    mixed = small_model(real_data, registered=True)
    mixed.tune("all")
    mixed.compute_dtype = torch.bfloat16
    seen = {}
    mixed.language_model.get_output_embeddings().register_forward_hook(lambda m, i, o: seen.update(head=o.dtype))
    mixed.molecule_encoder.register_forward_hook(lambda m, i, o: seen.update(molecules=o.dtype))
    batch = make_batch(mixed, questions)
    loss = mixed(batch)
    loss.backward()
    assert seen == {"head": torch.bfloat16, "molecules": torch.float32}
    assert {p.grad.dtype for p in mixed.parameters() if p.grad is not None} == {torch.float32}
    torch.testing.assert_close(loss, model(batch), rtol=0.02, atol=0)


def test_gradient_checkpointing_changes_no_gradient(real_data, questions):
    def adapter_gradient(checkpointing):
        model = small_model(real_data, registered=True)  # or else what rows share is read once, without checkpointing
        model.tune("adapters")
        if checkpointing:
            model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        return gradients(model, questions)["molecule_adapter.projection.weight"]

    assert torch.equal(adapter_gradient(True), adapter_gradient(False))


def test_cached_features_give_the_loss_of_the_encoder(model, questions):
    from align.esm import collate_proteins
    from align.examples import Encoding

    class Stored:
        def __init__(self, width, encode):
            self.width, self.encode = width, encode

        @torch.no_grad()
        def lookup(self, structure):
            return self.encode(structure).numpy()

    molecules = Stored(24, lambda smiles: model.molecule_encoder(collate_graphs([featurise(smiles)])))
    proteins = Stored(32, lambda chain: model.protein_encoder(collate_proteins([tokenise(chain, 60)])))
    cached = Encoding(model.tokenizer, model.settings, molecules, proteins)
    batch = cached.collate([cached.example(question) for question in questions])
    torch.testing.assert_close(model(batch), model(make_batch(model, questions)), atol=1e-3, rtol=1e-5)


def test_max_length_beyond_the_language_model_is_refused(real_data):
    with pytest.raises(InputError, match="max_length is 513, but the language model reads 512"):
        small_model(real_data, small_settings(max_length=513))


@torch.no_grad()
def test_defect_beginning_was_an_id_among_embeddings(model, questions):
    batch = make_batch(model, questions)
    words = model.language_model.get_input_embeddings().weight
    assert (batch.ids[:, 0] == model.tokenizer.bos_token_id).all()
    assert torch.equal(model.embed(batch)[:, 0], words[model.tokenizer.bos_token_id].expand(len(questions), -1))


@torch.no_grad()
def test_defect_molecules_were_projected_twice(model, questions):
    batch = make_batch(model, questions[:1])
    atoms = model.molecule_encoder(batch.molecules)
    projected = torch.nn.functional.linear(
        atoms, model.molecule_adapter.projection.weight, model.molecule_adapter.projection.bias
    )
    assert torch.equal(model.embed(batch)[batch.ids == PLACES["molecule"]], projected)


def test_defect_rewrite_forgot_the_special_positions_of_proteins(model, questions):
    """The released rewrite counts residues, the features have <cls> and <eos> too, and its training cannot run."""
    batch = make_batch(model, questions[2:4])
    chains = [chain for question in questions[2:4] for chain in question.proteins]
    lengths = [min(len(chain.rstrip("*")), model.settings.protein.max_residues) + 2 for chain in chains]
    assert list(batch.proteins.lengths) == lengths
    assert (batch.ids == PLACES["protein"]).sum() == sum(lengths) == len(model.protein_encoder(batch.proteins))
    model.tune("adapters")
    model(batch).backward()
    assert model.protein_adapter.projection.weight.grad.norm() > 0
