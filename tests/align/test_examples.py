"""Ids, places and labels of real questions; batches of them."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sentencepiece
import torch
from rdkit import Chem
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from align.examples import IGNORED, Encoding, ExampleError, collate
from align.language_model import load_tokenizer
from align.molecules import MoleculeError
from align.prompts import Turn, build_prompt
from align.questions import Question
from align.settings import AlignedSettings
from job.errors import InputError
from job.tokenizer import write_hf_tokenizer
from tests.align.aligned_models import mixed_questions, real_proteins, real_smiles, small_settings, stories

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture(scope="module")
def llama(real_data, tmp_path_factory):
    """Llama-2's real tokenizer, as transformers reads it and as sentencepiece does."""
    folder = tmp_path_factory.mktemp("llama")
    write_hf_tokenizer(real_data / "llama_tokenizer" / "tokenizer.model", folder)
    processor = sentencepiece.SentencePieceProcessor(str(real_data / "llama_tokenizer" / "tokenizer.model"))
    return load_tokenizer(folder), processor


@pytest.fixture(scope="module")
def encoding(real_data):
    return Encoding(load_tokenizer(stories(real_data)), small_settings())


def test_pieces_are_tokenised_one_by_one_and_only_the_first_has_bos(llama):
    tokenizer, processor = llama
    turn = Turn("Please describe this molecule.", molecules=(ASPIRIN,))
    ids = Encoding(tokenizer, AlignedSettings()).prompt([turn]).ids
    before, after = build_prompt(AlignedSettings().prompt, [turn]).pieces
    assert ids.tolist() == [1, *processor.encode(before), *[-1] * 13, *processor.encode(after)]
    assert ids[:5].tolist() == [1, 887, 526, 1985, 408]  # <s> You are working as
    assert ids[-5:].tolist() == [835, 4007, 22137, 29901, 29871]  # ### Ass istant : and a space
    whole = processor.encode(before + after)
    assert [1, *processor.encode(before), *processor.encode(after)] != [1, *whole]  # that is not the same
    assert (ids == 1).sum() == 1


def test_tokenizer_without_bos_gets_none():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    backend.train_from_iterator(["once upon a time"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    encoding = Encoding(tokenizer, small_settings())
    question = Question("x", "Why?", "So.")
    example = encoding.example(question)
    assert tokenizer.decode(example.ids) == "Answer. ### Human: Why? ### Assistant: So.<|end|>"
    assert len(example) == encoding.length(question)


def test_special_token_spelt_out_in_a_question_is_text(llama):
    tokenizer, processor = llama
    example = Encoding(tokenizer, AlignedSettings()).example(Question("x", "Is </s> the <s> end?", "</s> is."))
    assert (example.ids == tokenizer.eos_token_id).sum() == 1 and example.ids[-1] == tokenizer.eos_token_id
    assert (example.ids == tokenizer.bos_token_id).sum() == 1
    assert example.labels[example.labels != IGNORED].tolist() == [*processor.encode("</s> is."), 2]


def test_only_answer_and_end_token_are_trained(encoding, real_data):
    for question in mixed_questions(real_data):
        example = encoding.example(question)
        trained = example.labels != IGNORED
        assert encoding.tokenizer.decode(example.labels[trained]) == question.answer + "</s>"
        assert trained.nonzero()[0].tolist() == list(range(len(example) - trained.sum(), len(example)))
        assert (example.labels[trained] == example.ids[trained]).all()


def test_defect_end_token_was_masked_where_it_is_the_padding(encoding, real_data):
    """Llama-2 has no pad token. The released class masked every pad id in the targets; its fix was a new token."""
    assert encoding.tokenizer.pad_token_id is None and encoding.pad_id == encoding.end_id == 2
    batch = encoding.collate([encoding.example(question) for question in mixed_questions(real_data)])
    assert ((batch.labels == encoding.end_id).sum(1) == 1).all()
    assert (batch.labels[batch.attention_mask == 0] == IGNORED).all()
    assert len(encoding.tokenizer) == 512  # nothing added, so no embedding has to grow


@pytest.mark.parametrize("tokens", ["each", "pooled", "resampled"])
def test_places_are_counted_without_featurising(real_data, tokens):
    encoding = Encoding(load_tokenizer(stories(real_data)), small_settings(tokens))
    for smiles in real_smiles(real_data, 50):
        atoms = Chem.MolFromSmiles(smiles).GetNumAtoms()
        expected = {"each": atoms, "pooled": 1, "resampled": 3}[tokens]
        question = Question("x", "What is it?", "A molecule.", (smiles,))
        example = encoding.example(question)
        assert (example.ids == -1).sum() == expected
        known = dataclasses.replace(question, atoms=(atoms,))
        assert len(example) == encoding.length(question) == encoding.length(known)
    for sequence in real_proteins(real_data, 20):
        question = Question("x", "What is it?", "A protein.", (), (sequence,))
        example = encoding.example(question)
        residues = min(len(sequence.rstrip("*")), 60) + 2  # <cls> and <eos> are positions too
        assert (example.ids == -2).sum() == {"each": residues, "pooled": 1, "resampled": 3}[tokens]
        assert len(example) == encoding.length(question)


def test_long_answer_is_cut_and_then_has_no_end(real_data):
    encoding = Encoding(load_tokenizer(stories(real_data)), small_settings(max_length=64))
    question = Question("x", "Tell me all.", "word " * 100)
    example = encoding.example(question)
    assert len(example) == encoding.length(question) == 64 and example.ids[-1] != encoding.end_id


def test_prompt_without_room_for_an_answer_is_refused(real_data):
    encoding = Encoding(load_tokenizer(stories(real_data)), small_settings(max_length=64))
    question = Question("row 7", "What is it?", "A protein.", (), (real_proteins(real_data, 1)[0],))
    for use in (encoding.example, encoding.length):
        with pytest.raises(ExampleError, match=r"'row 7' has \d+ tokens.*max_length = 64") as caught:
            use(question)
        assert caught.value.reason == "prompt too long"


def test_structure_that_cannot_be_read_is_refused(encoding, real_data):
    settings = dataclasses.replace(small_settings(), protein=None)
    without = Encoding(encoding.tokenizer, settings)
    question = Question("x", "What?", "That.", (), ("MKV",))
    for use in (without.example, without.length):
        with pytest.raises(ExampleError, match="no protein encoder"):
            use(question)
    large = Question("x", "What?", "That.", ("C" * 300,))
    for use in (encoding.example, encoding.length):
        with pytest.raises(MoleculeError, match="300 atoms"):
            use(large)
    with pytest.raises(InputError, match="not a molecule"):
        encoding.example(Question("x", "What?", "That.", ("C1CC",)))


@pytest.mark.parametrize("side", ["right", "left"])
def test_defect_mask_covered_the_last_piece_only(encoding, real_data, side):
    examples = [encoding.example(question) for question in mixed_questions(real_data)]
    batch = encoding.collate(examples, side)
    assert batch.ids.shape == batch.attention_mask.shape == batch.labels.shape
    assert batch.attention_mask.sum(1).tolist() == [len(example) for example in examples]
    for row, example in enumerate(examples):
        real = batch.attention_mask[row].bool()
        assert batch.ids[row, real].tolist() == example.ids.tolist()
        assert batch.labels[row, real].tolist() == example.labels.tolist()
        assert real.long().diff().abs().sum() <= 1 and bool(real[-1 if side == "left" else 0])
    assert batch.answer_tokens == sum((example.labels != IGNORED).sum() for example in examples)


def test_defect_rows_were_counted_by_atoms(encoding, real_data):
    """One row per question, whatever structures it has; structures lie in row order."""
    questions = mixed_questions(real_data)
    batch = encoding.collate([encoding.example(question) for question in questions])
    assert len(batch.ids) == len(questions)
    smiles = [smiles for question in questions for smiles in question.molecules]
    assert batch.molecules.lengths == tuple(Chem.MolFromSmiles(text).GetNumAtoms() for text in smiles)
    assert len(batch.proteins.lengths) == 3
    assert (batch.ids == -1).sum() == sum(batch.molecules.lengths)
    assert (batch.ids == -2).sum() == sum(batch.proteins.lengths)


def test_no_examples_are_one_row_without_labels(encoding):
    batch = encoding.collate([])
    assert batch.ids.shape == (1, 1) and batch.answer_tokens == 0 and (batch.labels == IGNORED).all()
    assert batch.molecules.lengths == () and batch.proteins.lengths == ()


class StoredFeatures:
    """Encoder outputs by structure, as `align.features.FeatureCache` hands them out."""

    def __init__(self, features, width):
        self.features, self.width = features, width

    def lookup(self, structure):
        return self.features[structure]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_cached_features_take_the_place_of_structures(encoding, real_data, stored):
    smiles = real_smiles(real_data, 3)
    tensors = {text: torch.randn(Chem.MolFromSmiles(text).GetNumAtoms(), 8).to(stored) for text in smiles}
    arrays = {k: (v.view(torch.uint16) if stored == torch.bfloat16 else v).numpy() for k, v in tensors.items()}
    cached = Encoding(encoding.tokenizer, encoding.settings, molecule_cache=StoredFeatures(arrays, 8))
    questions = [Question("x", "What?", "That.", (text,)) for text in smiles]
    examples = [cached.example(question) for question in questions]
    assert [e.ids.tolist() for e in examples] == [encoding.example(question).ids.tolist() for question in questions]
    batch = cached.collate(examples)
    assert batch.molecules.values.dtype == stored
    assert torch.equal(batch.molecules.values, torch.cat([tensors[text] for text in smiles]))
    assert cached.collate([]).molecules.values.shape == (0, 8)  # the same kind of batch, whatever is in it
    assert cached.collate([]).proteins.lengths == ()


def test_collate_alone_is_what_encoding_uses(encoding, real_data):
    examples = [encoding.example(question) for question in mixed_questions(real_data)]
    ours, bare = encoding.collate(examples), collate(examples, encoding.pad_id)
    assert torch.equal(ours.ids, bare.ids) and torch.equal(ours.labels, bare.labels)


def test_two_threads_share_an_encoding(encoding, real_data):
    questions = [dataclasses.replace(q, id=str(n)) for n in range(20) for q in mixed_questions(real_data)]
    expected = [encoding.example(question).ids for question in questions]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda question: encoding.example(question).ids, questions))
    assert all(np.array_equal(a, b) for a, b in zip(expected, found))
