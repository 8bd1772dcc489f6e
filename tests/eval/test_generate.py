"""Batches of like length generate what one prompt at a time does, in one run, in two, and over ranks."""

import pytest
import torch
from transformers import GenerationConfig

from align.language_model import cut_at
from eval import generate as module
from eval.generate import generate, too_long
from eval.work import Journal
from job.errors import InputError
from tests.eval.scored_models import Counted, prompt, questions, random_model, trained
from tests.ranks.fork import run_ranks

NEW = 24


def prompts(real_data, count=14):
    rows = questions(real_data)
    return {row["id"]: prompt(row, letters=number % 2 == 0) for number, row in enumerate(rows[:count])}


def one_by_one(model, texts, stops, **options):
    """transformers' generate without padding, and the text before the first stop string."""
    found = {}
    for name, text in texts.items():
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        settings = {"do_sample": False, "num_beams": 1} | options
        config = GenerationConfig(max_new_tokens=NEW, pad_token_id=0, eos_token_id=2, bos_token_id=1, **settings)
        new = model.language_model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        found[name] = cut_at(model.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True), stops)
    return found


@pytest.mark.parametrize("family", ["trained", "biogpt", "bloom", "gpt2", "mamba", "mistral", "opt"])
def test_batched_is_one_by_one(real_data, family):
    model = trained(real_data) if family == "trained" else random_model(real_data, family)
    texts = prompts(real_data)
    stops = ["\n", "he"]
    found = generate(model, texts, None, max_new_tokens=NEW, stops=stops, token_budget=1500)
    assert found == one_by_one(model, texts, stops)
    assert list(found) == list(texts) and len(set(found.values())) > 5
    assert not any(stop in text for text in found.values() for stop in stops)


@pytest.mark.parametrize("family", ["trained", "biogpt", "bloom", "gpt2"])
def test_examples_before_every_prompt_are_computed_once(real_data, family, monkeypatch):
    model = trained(real_data) if family == "trained" else random_model(real_data, family)
    shots = "\n\n".join(f"{text} A" for text in list(prompts(real_data, 20).values())[-3:])
    texts = {name: f"{shots}\n\n{text}" for name, text in prompts(real_data, 12).items()}
    texts = {name: texts[name] for name in texts.keys() - too_long(model, texts, NEW)}
    counted = Counted(model, monkeypatch)
    found = generate(model, texts, None, max_new_tokens=NEW, stops=["\n"])
    fed = counted.tokens
    assert found == one_by_one(model, texts, ["\n"])
    whole = sum(len(model.tokenizer.encode(text)) for text in texts.values())
    assert whole > 1000
    assert (fed < 0.7 * whole) is (family != "bloom")


def test_prompts_of_a_batch_are_read_almost_without_padding(real_data, monkeypatch):
    model = trained(real_data)
    texts = {
        name: text for name, text in prompts(real_data, 40).items() if name not in too_long(model, {name: text}, NEW)
    }
    lengths = [len(model.tokenizer.encode(text)) for text in texts.values()]
    assert max(lengths) > 3 * min(lengths)
    monkeypatch.setattr(module, "CPU_TOKENS", 10**9)
    counted = Counted(model, monkeypatch)
    generate(model, texts, None, max_new_tokens=NEW, token_budget=10**9)
    assert counted.tokens < 1.05 * sum(lengths) + NEW * len(texts)


def test_beams(real_data):
    model, texts = trained(real_data), prompts(real_data, 6)
    found = generate(model, texts, None, max_new_tokens=NEW, num_beams=3)
    assert found == one_by_one(model, texts, (), num_beams=3)
    assert found != one_by_one(model, texts, ())


def test_what_a_model_brings_along_changes_nothing(real_data):
    model, texts = trained(real_data), prompts(real_data, 3)
    before = generate(model, texts, None, max_new_tokens=NEW)
    own = model.language_model.generation_config
    model.language_model.generation_config = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=5.0)
    try:
        assert generate(model, texts, None, max_new_tokens=NEW) == before
        assert model.language_model.generation_config.repetition_penalty == 5.0
    finally:
        model.language_model.generation_config = own


def test_a_long_prompt_loses_its_beginning(real_data):
    model = trained(real_data)
    text = " ".join(prompts(real_data, 8).values())
    ids = model.tokenizer.encode(text)
    assert len(ids) > model.max_length
    found = generate(model, {"whole": text, "short": "Once upon a time"}, None, max_new_tokens=NEW)
    ids = torch.tensor([ids[-(model.max_length - NEW) :]])
    new = model.language_model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    assert found["whole"] == model.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
    assert too_long(model, {"whole": text, "short": "Once upon a time"}, NEW) == ["whole"]


def test_wrong_input_is_one_sentence(real_data):
    model = trained(real_data)
    with pytest.raises(InputError, match="made for 512 tokens: 512 new ones"):
        generate(model, {"a": "Once"}, None, max_new_tokens=512)
    assert generate(model, {}, None, max_new_tokens=4) == {}


def test_a_killed_run_goes_on_where_it_stopped(real_data, tmp_path, monkeypatch):
    model, texts = trained(real_data), prompts(real_data)
    settings = {"max_new_tokens": NEW, "stops": ["\n"], "token_budget": 600}
    whole = generate(model, texts, None, **settings)
    run, done = module._generate, []

    def dying(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return run(*arguments)

    monkeypatch.setattr(module, "_generate", dying)
    journal = Journal(tmp_path, "task", "made by")
    with pytest.raises(KeyboardInterrupt):
        generate(model, texts, journal, **settings)
    journal.close()
    batches = []
    monkeypatch.setattr(module, "_generate", lambda *given: batches.append(given) or run(*given))
    assert generate(model, texts, Journal(tmp_path, "task", "made by"), **settings) == whole
    resumed = len(batches)
    assert generate(model, texts, None, **settings) == whole
    assert 0 < resumed == (len(batches) - resumed) - 2


def generate_in_a_rank(real_data):
    torch.distributed.init_process_group("gloo")
    return generate(trained(real_data), prompts(real_data), None, max_new_tokens=NEW, stops=["\n"], token_budget=900)


def test_two_ranks_share_the_work(real_data):
    alone = generate(trained(real_data), prompts(real_data), None, max_new_tokens=NEW, stops=["\n"], token_budget=900)
    assert run_ranks(2, generate_in_a_rank, real_data) == [alone, alone]
