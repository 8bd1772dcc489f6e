"""What the aligned model generates: answers of a batch, their ends, and what their prompts must leave room for."""

import dataclasses

import pytest
import torch

from align.prompts import Turn
from align.questions import Question
from job.errors import InputError
from tests.align.aligned_models import (
    asked,
    assembled_by_hand,
    make_batch,
    mixed_questions,
    real_proteins,
    real_smiles,
    small_model,
)


@pytest.fixture(scope="module")
def model(real_data):
    return small_model(real_data)


@pytest.fixture(scope="module")
def questions(real_data):
    return mixed_questions(real_data)


@pytest.mark.parametrize("beams, penalty", [(1, 1.0), (3, 1.0), (1, 1.5), (3, 1.5)])
def test_batched_answers_are_those_one_by_one(model, questions, beams, penalty, recwarn):
    """Defect: the released class pads on the right, so that the shorter rows go on from padding."""
    options = {"max_new_tokens": 24, "num_beams": beams, "repetition_penalty": penalty}
    together = model.generate(questions, **options)
    alone = [model.generate([question], **options)[0] for question in questions]
    assert together == alone
    assert len(set(together)) > 1 and all(together)
    assert not [warning for warning in recwarn if "repetition_penalty" in str(warning.message)]


def test_penalty_makes_repetitions_rarer(model, questions):
    def share_of_new_words(penalty):
        texts = model.generate(questions, max_new_tokens=60, repetition_penalty=penalty)
        ids = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return sum(len(set(row)) for row in ids) / sum(map(len, ids))

    assert share_of_new_words(3.0) > share_of_new_words(1.0) + 0.1


def test_generated_words_are_the_language_models_own(model, questions):
    """Greedy decoding by hand, from embeddings put together by hand."""
    question = dataclasses.replace(questions[2], answer="")
    embedded = assembled_by_hand(model, question)[:-1]  # without the end token
    words, ids = model.language_model.get_input_embeddings(), []
    for _ in range(12):
        with torch.no_grad():
            logits = model.language_model(inputs_embeds=embedded[None]).logits
        ids.append(int(logits[0, -1].argmax()))
        embedded = torch.cat([embedded, words(torch.tensor(ids[-1:]))])
    expected = model.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert model.generate([question], max_new_tokens=12, stop_strings=[]) == [expected]


def test_structure_changes_the_answer(model, real_data):
    turns = [Turn("What is it?", None, (smiles,)) for smiles in real_smiles(real_data, 8)]
    assert len(set(model.generate(turns, max_new_tokens=12))) > 1


def test_stop_string_ends_an_answer(model, questions):
    full = model.generate(questions[:2], max_new_tokens=20, stop_strings=[])
    stop = full[0][5:8]
    stopped = model.generate(questions[:2], max_new_tokens=20, stop_strings=[stop])
    assert stopped[0] == full[0][: full[0].index(stop)].strip() and stop not in stopped[1]


def test_answer_ends_at_the_separator_or_the_end_token(real_data):
    """A model that has learnt to go on with another turn, as the released one does, is cut at the separator."""
    model = small_model(real_data, registered=True)
    smiles, sequence = real_smiles(real_data, 1)[0], real_proteins(real_data, 1)[0]
    taught = [
        Question("a", "What is it?", "A story. ### Human: more", (smiles,)),
        Question("b", "Who is it?", "The end", (), (sequence,)),
    ]
    model.tune("all")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = make_batch(model, taught)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.train()(batch) / batch.answer_tokens
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert model.generate(taught, max_new_tokens=30) == ["A story.", "The end"]
    assert model.generate(taught, max_new_tokens=30, stop_strings=[])[0].startswith("A story. ### Human: more")
    assert model.training  # as it was


def test_sampling_follows_the_seed(model, questions):
    def sample(seed):
        torch.manual_seed(seed)
        return model.generate(questions, max_new_tokens=12, do_sample=True, temperature=1.5)

    assert sample(1) == sample(1) != sample(2)


def test_defect_long_context_was_cut_to_one_column(model, real_data):
    """The released chat keeps one embedding of a context that is too long; here it is refused by its length."""
    long = Turn("word " * 460, None, (real_smiles(real_data, 1)[0],))
    with pytest.raises(InputError, match=r"prompt of \d+ tokens and an answer of up to 64 exceed .* 512"):
        model.generate([long], max_new_tokens=64)


def test_no_questions_have_no_answers(model):
    assert model.generate([]) == []
    assert model.generate(asked([Question("x", "Why?", "")]), max_new_tokens=4)


def test_defect_generation_was_padded_on_the_right(model, questions, monkeypatch):
    """An answer must continue the prompt: nothing may lie between them."""
    seen = []
    generate = model.language_model.generate
    monkeypatch.setattr(
        model.language_model, "generate", lambda **given: seen.append(given["attention_mask"]) or generate(**given)
    )
    together = model.generate(asked(questions), max_new_tokens=8)
    assert (seen[0][:, -1] == 1).all() and (seen[0][:, 0] == 0).any()
    assert together == [model.generate([turns], max_new_tokens=8)[0] for turns in asked(questions)]
