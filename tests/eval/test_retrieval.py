"""Retrieval: ranking against a plain count, likelihoods against the model's own losses, on real texts."""

import csv
import itertools
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from align.controls import answer_losses, with_structures_of
from align.prompts import Turn
from align.question_shards import QuestionSet
from align.questions import MOLECULE_QUESTION, Question
from eval.__main__ import main
from eval.models import load
from eval.structures import retrieval, retrieval_scores
from eval.structures.neighbours import pair_scores
from eval.work import Memory
from job.errors import InputError
from tests.align.aligned_models import small_model, small_settings
from tests.eval.structure_sets import aligned_directory, build_set, chebi_file, chebi_set, uniprot_set, yeast_set

real = pytest.mark.real


# Ranking.


def test_ranks_are_those_of_a_plain_count():
    random_numbers = np.random.default_rng(0)
    scores = random_numbers.normal(size=(23, 23))
    found = retrieval.rank(scores)
    for query in range(23):
        order = sorted(range(23), key=lambda candidate: -scores[query, candidate])
        place = order.index(query) + 1
        assert found.rank[query] == place
        assert found.reciprocal_rank[query] == pytest.approx(1 / place)
        assert {cutoff: found.recall[cutoff][query] for cutoff in (1, 5, 10)} == {
            cutoff: float(place <= cutoff) for cutoff in (1, 5, 10)
        }


def test_ties_are_the_mean_over_all_orders():
    scores = np.array([[2, 2, 2, 5, 1, 1], [0, 3, 3, 3, 3, 3]] + [[9, 9, 9, 9, 9, 9]] * 4, float)
    found = retrieval.rank(scores)
    for query in range(6):
        places = []
        for order in itertools.permutations(range(6)):
            places.append(sorted(order, key=lambda candidate: -scores[query, candidate]).index(query) + 1)  # stable
        assert found.rank[query] == pytest.approx(np.mean(places))
        assert found.reciprocal_rank[query] == pytest.approx(np.mean(1 / np.array(places)))
        for cutoff in (1, 5, 10):
            assert found.recall[cutoff][query] == pytest.approx(np.mean(np.array(places) <= cutoff))


def test_scores_without_meaning_give_chance():
    constant, chance = retrieval.rank(np.zeros((40, 40))), retrieval.by_chance(40)
    harmonic = sum(1 / place for place in range(1, 41)) / 40
    assert constant.reciprocal_rank == pytest.approx(harmonic)
    assert constant.recall[5] == pytest.approx(5 / 40)
    for name, values in constant.of_each().items():
        assert values == pytest.approx(chance.of_each()[name])
    noise = [retrieval.rank(np.random.default_rng(seed).normal(size=(40, 40))) for seed in range(60)]
    assert np.mean([one.reciprocal_rank.mean() for one in noise]) == pytest.approx(harmonic, abs=0.01)


def test_candidates_that_are_as_right_are_left_out():
    structures, texts = ["CC", "CO", "CC", "CN"], ["It is a.", "it  is b.", "It is c.", "It is B."]
    ignored = retrieval.equally_right(structures, texts)
    assert np.argwhere(ignored).tolist() == [[0, 2], [1, 3], [2, 0], [3, 1]]
    scores = np.array([[1, 0, 2, 0], [3, 1, 0, 2], [0, 0, 1, 0], [0, 0, 0, 1]], float)
    assert retrieval.rank(scores).rank.tolist() == [2, 3, 1, 1]
    assert retrieval.rank(scores, ignored).rank.tolist() == [1, 2, 1, 1]
    assert retrieval.by_chance(4, ignored).recall[1].tolist() == [1 / 3] * 4
    for wrong in (np.zeros((2, 3)), np.zeros(3), np.zeros((0, 0)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match=r"scores of queries|not a number"):
            retrieval.rank(wrong)


@real
def test_sentences_are_those_of_molfm(real_data):
    with open(real_data / "chebi20" / "test_open.txt", encoding="utf-8", newline="") as file:
        texts = [row["description"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)][:300]
    state, differ = 42, 0
    for number, text in enumerate(texts):
        sentences = [sentence for sentence in text.split(".") if not len(sentence.split(" ")) < 5]
        assert retrieval.one_sentence(text, number) == sentences[state % len(sentences)].strip()
        differ += state % len(sentences) > 0
        state = state * 16807 % ((1 << 31) - 1)
    assert differ > 50
    assert retrieval.one_sentence("Too short. So is this.", 3) == "Too short. So is this."


@real
def test_training_pairs_retrieve(real_data):
    def rows(name, count):
        with open(real_data / "chebi20" / name, encoding="utf-8", newline="") as file:
            read = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:count]
        return [Question(row["CID"], MOLECULE_QUESTION, row["description"], (row["SMILES"],)) for row in read]

    training, asked = rows("train_open.txt", 1500), rows("test_open.txt", 100)
    chance = retrieval.by_chance(100).reciprocal_rank.mean()
    for scores in pair_scores(training, asked):
        assert scores.shape == (100, 100)
        assert retrieval.rank(scores).reciprocal_rank.mean() > 4 * chance
    for scores in pair_scores(asked, asked):
        assert retrieval.rank(scores).recall[1].mean() > 0.9  # a row is nearest to itself


# Scores of a model.


@pytest.fixture(scope="module")
def sets(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    makers = {"chebi20": chebi_set, "yeast": yeast_set, "uniprotqa": uniprot_set}
    return {name: make(real_data, folder / name) for name, make in makers.items()}


@real
@pytest.mark.parametrize("tokens", ["each", "pooled"])
def test_likelihoods_are_the_model_s_own_losses(tokens, real_data, sets):
    model = small_model(real_data, small_settings(tokens=tokens))
    for name, count in (("chebi20", 6), ("yeast", 4)):
        rows = [*QuestionSet(sets[name], "test")][:count]
        texts, cut = retrieval_scores.answer_ids(model, rows)
        assert cut == 0
        pairs = [with_structures_of(text, structure) for structure in rows for text in rows]
        losses, _ = answer_losses(model, pairs, 4096)
        expected = -losses.reshape(count, count)
        for budget in (300, 8192):
            found = retrieval_scores.log_likelihoods(model, rows, texts, Memory(), budget)
            np.testing.assert_allclose(found, expected, atol=2e-3)
        assert np.abs(np.diff(expected, axis=0)).max() > 0.05  # the structure does matter


@real
def test_texts_are_cut_alike_for_all_structures(real_data, sets):
    rows = [*QuestionSet(sets["chebi20"], "test")][:5]
    settings = small_settings(tokens="each")
    lengths = [small_model(real_data, settings).encoding.length(replace(row, answer="")) - 1 for row in rows]
    model = small_model(real_data, replace(settings, max_length=max(lengths) + 20))
    texts, cut = retrieval_scores.answer_ids(model, rows)
    assert cut == 5 and {len(ids) for ids in texts} == {20}
    found = retrieval_scores.log_likelihoods(model, rows, texts, Memory(), 4096)
    longest, shortest = int(np.argmax(lengths)), int(np.argmin(lengths))
    assert lengths[longest] > lengths[shortest]
    for structure in (longest, shortest):
        example = model.encoding.example(with_structures_of(rows[0], rows[structure]))
        example = replace(
            example, ids=example.ids[: lengths[structure] + 20], labels=example.labels[: lengths[structure] + 20]
        )
        with torch.no_grad():
            losses, _ = model.row_losses(model.encoding.collate([example]))
        assert found[structure, 0] == pytest.approx(-float(losses[0]), abs=1e-3)


@real
@pytest.mark.parametrize("hidden", [False, True])
def test_embeddings_are_means_one_by_one(hidden, real_data, sets):
    model = small_model(real_data, small_settings(tokens="each"))
    rows = [*QuestionSet(sets["chebi20"], "test")][:5]
    structures, texts = retrieval_scores.embeddings(model, rows, 2048, hidden)
    assert structures.shape == texts.shape == (5, 64)
    for row, structure, text in zip(rows, structures, texts):
        batch = model.encoding.collate([model.encoding.prompt([Turn.asking(row)])])
        start = [1]  # Llama's BOS
        ids = torch.tensor([start + model.tokenizer(row.answer, add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            if hidden:
                states = model.language_model.model(inputs_embeds=model.embed(batch)).last_hidden_state[0]
                words = model.language_model.model(input_ids=ids).last_hidden_state[0, 1:]
            else:
                states = model.embed(batch)[0]
                words = model.language_model.get_input_embeddings()(ids)[0, 1:]
        places = batch.ids[0] == -1
        assert int(places.sum()) == row.atoms[0]
        np.testing.assert_allclose(structure, states[places].mean(dim=0).numpy(), atol=1e-5)
        np.testing.assert_allclose(text, words.mean(dim=0).numpy(), atol=1e-5)


# The suite.


@pytest.fixture(scope="module")
def model(real_data, tmp_path_factory):
    return aligned_directory(real_data, tmp_path_factory.mktemp("models") / "aligned")


@pytest.fixture(scope="module")
def short(real_data, tmp_path_factory):
    """ChEBI-20 rows of few words: eight to learn by heart, others as training split for the baseline."""
    folder = tmp_path_factory.mktemp("short")
    whole = chebi_file(folder / "whole.txt", real_data / "chebi20" / "train_open.txt", 60, 150)
    header, *rows = whole.read_text(encoding="utf-8").splitlines()
    assert len(rows) > 40
    for name, some in (("test", rows[:8]), ("train", rows[8:])):
        (folder / f"{name}.txt").write_text("\n".join([header, *some, ""]), encoding="utf-8")
    return build_set(folder / "chebi20", "chebi20", "--train", folder / "train.txt", "--test", folder / "test.txt")


@pytest.fixture(scope="module")
def trained(real_data, short, tmp_path_factory):
    """The same after it has seen the test rows many times, all its weights trained."""
    torch.manual_seed(0)
    aligned = small_model(real_data, small_settings(tokens="pooled"), registered=True)
    aligned.tune("all")
    rows = [*QuestionSet(short, "test")]
    batch = aligned.encoding.collate([aligned.encoding.example(row) for row in rows])
    optimizer = torch.optim.Adam([p for p in aligned.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(60):
        loss = aligned(batch) / batch.answer_tokens
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    directory = tmp_path_factory.mktemp("models") / "trained"
    aligned.eval().save_pretrained(directory, copy_language_model=True)
    return directory


def run(monkeypatch, models, data, out, *more):
    words = [*models, "--suite", "retrieval", "--data", *data, "--out", out, *more]
    monkeypatch.setattr(sys, "argv", ["eval", *map(str, words)])
    assert main() == 0
    return json.loads((out / "results.json").read_text())["results"]


@real
def test_a_model_that_learnt_the_pairs_finds_them(model, trained, short, tmp_path, monkeypatch):
    data = [short]
    results = run(monkeypatch, [model, trained], data, tmp_path, "--methods", "likelihood", "--modes", "paragraph")
    task = "retrieval-chebi20-paragraph-likelihood"
    values = {
        name: {metric: one["value"] for metric, one in found[task]["metrics"].items()}
        for name, found in results.items()
    }
    for way in ("text_to_molecule", "molecule_to_text"):
        assert values["trained"][f"{way}: mrr"] > 0.6
        assert values["trained"][f"{way}: recall_5"] > 0.8
    chance = results["trained"][task]["baselines"]["chance"]
    assert chance["mrr"]["value"] == pytest.approx(sum(1 / place for place in range(1, 9)) / 8)
    assert values["trained"]["mrr"] > 1.7 * chance["mrr"]["value"]
    assert abs(values["aligned"]["mrr"] - chance["mrr"]["value"]) < 0.2  # untrained encoders
    assert chance["text_to_molecule: recall_5"]["value"] == pytest.approx(5 / 8)
    assert results["aligned"][task]["baselines"]["nearest training pair"]["mrr"]["value"] > chance["mrr"]["value"]

    # From the model's own losses, pair by pair.
    aligned = load(trained, torch.float32, torch.device("cpu")).aligned
    rows = [*QuestionSet(short, "test")]
    losses, _ = answer_losses(aligned, [with_structures_of(text, one) for one in rows for text in rows], 4096)
    nats = -losses.reshape(8, 8)
    by_text = np.array([(nats[:, text] > nats[text, text]).sum() + 1 for text in range(8)])
    assert values["trained"]["text_to_molecule: mrr"] == pytest.approx((1 / by_text).mean())
    normal = nats - np.log(np.mean(np.exp(np.longdouble(nats)), axis=0)).astype(float)
    by_molecule = np.array([(normal[one] > normal[one, one]).sum() + 1 for one in range(8)])
    assert values["trained"]["molecule_to_text: mrr"] == pytest.approx((1 / by_molecule).mean())
    plain = np.array([(nats[one] > nats[one, one]).sum() + 1 for one in range(8)])
    assert values["trained"]["molecule_to_text, unnormalised: mrr"] == pytest.approx((1 / plain).mean())
    items = [json.loads(line) for line in (tmp_path / "items" / "trained" / f"{task}.jsonl").open()]
    assert [item["id"] for item in items] == [row.id for row in rows]
    assert np.mean([item["score"] for item in items]) == pytest.approx(values["trained"]["mrr"])


@real
def test_every_mode_and_method(model, sets, tmp_path, monkeypatch):
    words = ["--limit", "6"]
    found = run(monkeypatch, [model], [sets["chebi20"], sets["yeast"]], tmp_path, *words)["aligned"]
    assert set(found) == {
        f"retrieval-{name}-{mode}-{method}"
        for name in ("chebi20", "yeast")
        for mode in ("paragraph", "sentence")
        for method in ("likelihood", "embeddings", "hidden-states")
    }
    result = found["retrieval-chebi20-sentence-embeddings"]
    assert any("6 of 12 test items, drawn by seed 0. Fewer candidates are easier" in note for note in result["notes"])
    assert any("near chance is what to expect" in note for note in result["notes"])
    protein = found["retrieval-yeast-paragraph-likelihood"]
    assert {"text_to_protein: mrr", "protein_to_text: recall_10"} <= protein["metrics"].keys()
    assert list(protein["baselines"]) == ["chance"]
    assert any("36 pairs were scored" in note for note in protein["notes"])
    again = tmp_path / "again"
    task = "retrieval-chebi20-paragraph-likelihood"
    few = [*words, "--methods", "likelihood", "--modes", "paragraph"]
    assert run(monkeypatch, [model], [sets["chebi20"]], again, *few)["aligned"] == {task: found[task]}
    sentences = [json.loads(line)["text"] for line in items(tmp_path, "retrieval-chebi20-sentence-likelihood")]
    paragraphs = [json.loads(line)["text"] for line in items(tmp_path, "retrieval-chebi20-paragraph-likelihood")]
    assert all(one in other for one, other in zip(sentences, paragraphs)) and sentences != paragraphs


def items(out: Path, task: str):
    return (out / "items" / "aligned" / f"{task}.jsonl").open()


@real
def test_a_killed_run_goes_on(model, sets, tmp_path, monkeypatch):
    words = ["--methods", "likelihood", "--modes", "paragraph"]
    whole = run(monkeypatch, [model], [sets["chebi20"]], tmp_path / "whole", *words)
    follow, calls = retrieval_scores._follow, []

    def dying(*arguments):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(1)
        return follow(*arguments)

    monkeypatch.setattr(retrieval_scores, "_follow", dying)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, [model], [sets["chebi20"]], tmp_path / "killed", *words)
    calls.clear()
    monkeypatch.setattr(retrieval_scores, "_follow", lambda *arguments: calls.append(1) or follow(*arguments))
    assert run(monkeypatch, [model], [sets["chebi20"]], tmp_path / "killed", *words) == whole
    assert len(calls) == 12 - 5


@real
def test_questions_of_several_texts(model, sets, tmp_path, monkeypatch, real_data):
    with pytest.raises(InputError, match=r"asks 4 questions, such as .*; say with --question"):
        run(monkeypatch, [model], [sets["uniprotqa"]], tmp_path / "a")
    more = ["--question", "function", "--methods", "embeddings", "--modes", "paragraph"]
    found = run(monkeypatch, [model], [sets["uniprotqa"]], tmp_path / "b", *more)["aligned"]
    [result] = found.values()
    rows = [row for row in QuestionSet(sets["uniprotqa"], "test") if row.id.endswith(":function")]
    assert result["made_by"]["data"]["questions"] == len(rows) >= 3
    with pytest.raises(InputError, match="fewer than two test questions"):
        run(monkeypatch, [model], [sets["chebi20"]], tmp_path / "c", "--question", "What is it?")
    with pytest.raises(InputError, match="is a plain language model, which cannot read structures"):
        run(monkeypatch, [real_data / "stories260K" / "hf"], [sets["chebi20"]], tmp_path / "d")


def test_equally_right_is_symmetric_at_random():
    chance = random.Random(0)
    structures = [chance.choice("abcdef") for _ in range(40)]
    texts = [chance.choice(["x y", "X  y", "z", "w", "v"]) for _ in range(40)]
    same = retrieval.equally_right(structures, texts)
    for one, other in itertools.product(range(40), repeat=2):
        alike = structures[one] == structures[other] or texts[one].lower().split() == texts[other].lower().split()
        assert same[one, other] == (alike and one != other)
