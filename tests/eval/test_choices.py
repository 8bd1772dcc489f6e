"""Shared prefixes and questions give the answers of lm-eval's own backend, on every family, and compute far less."""

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from eval.models import EvalModel
from eval.qa.choices import SharedPrefixLM
from eval.qa.shared_prefix import Scorer, find_prefixes
from eval.work import Journal
from job.errors import InputError
from tests.eval.scored_models import FAMILIES, Counted, questions, random_model, requests, trained
from tests.ranks.fork import run_ranks

TOLERANCE = 1e-4
CASES = [(True, 0), (False, 0), (True, 3), (False, 3)]


def peer(model: EvalModel, max_length=None):
    return HFLM(pretrained=model.language_model, tokenizer=model.tokenizer, batch_size=8, max_length=max_length)


def assert_same(ours, theirs, options=4):
    assert len(ours) == len(theirs) > 0
    assert max(abs(one[0] - other[0]) for one, other in zip(ours, theirs)) < TOLERANCE
    assert [one[1] for one in ours] == [other[1] for other in theirs]
    assert choices(ours, options) == choices(theirs, options)


def choices(scores, options=4):
    nats = torch.tensor([score[0] for score in scores], dtype=torch.float64).view(-1, options)
    return nats.argmax(-1).tolist()


@pytest.mark.parametrize(("letters", "shots"), CASES)
def test_a_trained_model_chooses_as_in_lm_eval(real_data, letters, shots):
    asked = requests(real_data, 16, letters, shots)
    model = trained(real_data)
    scorer = SharedPrefixLM(model)
    theirs = peer(model).loglikelihood(asked, disable_tqdm=True)
    ours = scorer.loglikelihood(asked)
    assert not scorer.notes
    assert_same(ours, theirs)
    assert len(set(choices(ours))) > 1  # it does not always choose the same
    assert_same(SharedPrefixLM(model, share=False).loglikelihood(asked), theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(real_data, family):
    model = random_model(real_data, family)
    scorer = SharedPrefixLM(model, token_budget=4000)
    assert bool(scorer.notes) is (family in ("bloom", "mamba"))  # no masks of four dimensions, no keys and values
    for letters in (True, False):
        asked = requests(real_data, 8, letters, 2)
        assert_same(scorer.loglikelihood(asked), peer(model, model.max_length).loglikelihood(asked, disable_tqdm=True))


def test_the_prefix_is_computed_once_and_the_question_once(real_data, monkeypatch):
    model = trained(real_data)
    asked = requests(real_data, 12, False, 3)
    scorer = SharedPrefixLM(model, token_budget=1)  # every question alone: no padding
    counted = Counted(model, monkeypatch)
    scorer.loglikelihood(asked)
    contexts = {request.args[0]: model.tokenizer.encode(request.args[0]) for request in asked}
    shared = min(map(len, contexts.values())) - 1
    shared = next((place for place in range(shared) if len({ids[place] for ids in contexts.values()}) > 1), shared)
    tails = {}
    for context, answer in (request.args for request in asked):
        tail = model.tokenizer.encode(context + answer)[len(contexts[context]) : -1]
        tails.setdefault(context, set()).add(tuple(tail))
    own = sum(len(contexts[context]) - shared + sum(map(len, found)) for context, found in tails.items())
    assert shared > 100
    assert counted.tokens == shared + own


def test_a_model_that_ignores_the_mask_is_noticed(real_data, monkeypatch):
    model = random_model(real_data, "gpt2")
    forward = model.language_model.forward
    monkeypatch.setattr(
        model.language_model, "forward", lambda *given, attention_mask=None, **options: forward(*given, **options)
    )
    assert "plain rows" in (Scorer(model.language_model).refusal or "")


def test_a_model_that_ignores_positions_is_noticed(real_data, monkeypatch):
    model = random_model(real_data, "gpt2")
    forward = model.language_model.forward
    monkeypatch.setattr(
        model.language_model, "forward", lambda *given, position_ids=None, **options: forward(*given, **options)
    )
    assert "plain rows" in (Scorer(model.language_model).refusal or "")


def test_in_half_precision_a_tree_is_noticed_too(real_data):
    model = random_model(real_data, "gpt2").language_model
    assert Scorer(model.to(torch.bfloat16)).refusal is None
    model.to(torch.float32)


def test_prompts_that_are_too_long_are_cut_as_in_lm_eval_and_counted(real_data):
    model = trained(real_data)
    asked = requests(real_data, 10, False, 14)
    scorer = SharedPrefixLM(model)
    assert_same(scorer.loglikelihood(asked), peer(model).loglikelihood(asked, disable_tqdm=True))
    ids = {request.args: len(model.tokenizer.encode("".join(request.args))) for request in asked}
    assert scorer.truncated == len({context for (context, _), count in ids.items() if count > 513}) > 0


def test_what_ends_in_blanks_begins_with_nothing_or_repeats(real_data):
    model = trained(real_data)
    pairs = [
        ("The answer: ", "A"),
        ("Answer:\n", "B"),
        ("", "a girl"),
        ("<s>Once", " upon"),
        ("Once", " upon"),
        ("Once", " upon"),
    ]
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    assert_same(SharedPrefixLM(model).loglikelihood(asked), peer(model).loglikelihood(asked, disable_tqdm=True), 1)


def test_an_empty_answer_is_one_sentence(real_data):
    with pytest.raises(InputError, match="an answer is empty"):
        SharedPrefixLM(trained(real_data)).loglikelihood([Instance("loglikelihood", {}, ("Once", ""), 0)])


def test_whole_texts(real_data):
    model = trained(real_data)
    texts = ["\n".join(row["exp"] or "" for row in questions(real_data)[:count]) for count in (3, 12)]
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    theirs = peer(model).loglikelihood_rolling(asked, disable_tqdm=True)
    assert SharedPrefixLM(model).loglikelihood_rolling(asked) == pytest.approx(theirs, abs=0.02)
    assert len(model.tokenizer.encode(texts[1])) > model.max_length


def test_generation_is_lm_evals(real_data):
    model = trained(real_data)
    options = {"until": ["\n", "."], "max_gen_toks": 20, "do_sample": False, "temperature": 0.0}
    asked = [
        Instance("generate_until", row, (f"Question: {row['question']}\nAnswer:", options), 0)
        for row in questions(real_data)[:12]
    ]
    found = SharedPrefixLM(model).generate_until(asked)
    assert found == peer(model).generate_until(asked, disable_tqdm=True)
    assert any(found)


def test_a_killed_run_goes_on_where_it_stopped(real_data, tmp_path, monkeypatch):
    model = trained(real_data)
    asked = requests(real_data, 30, False, 2)
    whole = SharedPrefixLM(model, Journal(tmp_path / "whole", "task", "made by"), 1000).loglikelihood(asked)
    score, done = Scorer.score, []

    def dying(self, *arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(score(self, *arguments))
        return done[-1]

    monkeypatch.setattr(Scorer, "score", dying)
    journal = Journal(tmp_path / "killed", "task", "made by")
    with pytest.raises(KeyboardInterrupt):
        SharedPrefixLM(model, journal, 1000).loglikelihood(asked)
    journal.close()
    monkeypatch.setattr(Scorer, "score", score)
    counted = Counted(model, monkeypatch)
    again = SharedPrefixLM(model, Journal(tmp_path / "killed", "task", "made by"), 1000).loglikelihood(asked)
    resumed = counted.tokens
    assert again == whole
    SharedPrefixLM(model, None, 1000).loglikelihood(asked)
    assert resumed < counted.tokens - resumed
    before = counted.tokens
    lm = SharedPrefixLM(model, Journal(tmp_path / "killed", "task", "made by"), 1000)
    probed = counted.tokens - before
    assert lm.loglikelihood(asked) == whole and counted.tokens - before == probed  # nothing is left to compute


def score_in_a_rank(real_data):
    torch.distributed.init_process_group("gloo")
    asked = requests(real_data, 30, False, 2)
    lm = SharedPrefixLM(trained(real_data), token_budget=2000)
    assert (lm.rank, lm.world_size) == (0, 1)
    return lm.loglikelihood(asked)


def test_two_ranks_share_the_work_and_each_gets_all(real_data):
    asked = requests(real_data, 30, False, 2)
    alone = SharedPrefixLM(trained(real_data), token_budget=2000).loglikelihood(asked)
    first, second = run_ranks(2, score_in_a_rank, real_data)
    assert first == second
    assert_same(first, alone)


def test_prefixes_are_found_in_mixed_requests():
    shots = [tuple(range(base, base + 100)) for base in (0, 1000)]
    contexts = [(*shots[number % 2], 5000 + number, 7) for number in range(40)]
    contexts += [(9000 + number, 8, 9) for number in range(5)]
    first, second, rest = find_prefixes(contexts)
    assert first == (100, list(range(0, 40, 2)))
    assert second == (100, list(range(1, 40, 2)))
    assert rest == (0, list(range(40, 45)))


def test_a_context_that_is_the_whole_prefix_keeps_a_token():
    shots = tuple(range(100))
    assert list(find_prefixes([shots, *((*shots, number) for number in range(20))])) == [(99, list(range(21))), (0, [])]
