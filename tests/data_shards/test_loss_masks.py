"""Loss masks are read like the tokens: the mask of sample n is a pure function of n."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from data_shards import inspect, order
from data_shards.mixture import Source, TrainingOrder
from data_shards.shards import ShardSet
from job.errors import InputError
from tests.data_shards.shard_sets import build_abstracts, build_questions, write_build


@pytest.fixture(scope="module")
def questions(real_data, tmp_path_factory):
    """Real questions whose answers alone count, tokenised with Llama's tokenizer."""
    directory = tmp_path_factory.mktemp("questions")
    return build_questions(directory, real_data, real_data / "llama_tokenizer" / "tokenizer.model", 300)


def reference(shards, seed, epochs):
    """Tokens and masks of the stream, by the definition."""
    numbers = [int(n) for e in range(epochs) for n in order.permutation(len(shards), seed, e)]
    located = [shards.locate(n) for n in numbers]
    return np.concatenate([shards[n] for n in numbers]), np.concatenate([s.loss_mask(n) for s, n in located]) == 1


@pytest.mark.real
@pytest.mark.parametrize("sequence_length", [1, 7, 128, 30_000])
def test_masks_are_the_streams_masks_of_the_targets(questions, sequence_length):
    """Over more than two epochs, borders included; 30,000 is more than an epoch in one window."""
    tokens, mask = reference(questions, 11, 4)
    windows = order.TrainingWindows(questions, sequence_length, 11)
    last = (len(tokens) - 1) // sequence_length
    for sample in range(last) if sequence_length > 100 else [*range(300), *range(0, last, 97), last - 1]:
        start = sample * sequence_length
        wanted = mask[start + 1 : start + sequence_length + 1]
        [found] = windows.target_masks(sample, 1)
        assert found.dtype == bool and np.array_equal(found, wanted)
    neighbours = min(5, last)
    joined = mask[1 : neighbours * sequence_length + 1].reshape(neighbours, -1)
    assert np.array_equal(windows.target_masks(0, neighbours), joined)


@pytest.mark.real
def test_only_answers_and_their_ends_count(questions, real_data):
    """Seen from the outside: the counted targets of an epoch spell the answers, each followed by EOS."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(str(real_data / "llama_tokenizer" / "tokenizer.model"))
    windows = order.TrainingWindows(questions, 64, 0)
    count = questions.tokens // 64
    targets = np.concatenate([windows[n][1:][windows.target_masks(n, 1)[0]] for n in range(count)])
    answers = [pieces.decode(part.tolist()) for part in np.split(targets, np.flatnonzero(targets == 2) + 1)]
    asked = (real_data / "medmcqa" / "dev_sample_open.json").read_text(encoding="utf-8")
    assert len(answers) > 200
    assert sum(answer in asked for answer in answers[:-1]) > 0.98 * len(answers)  # but for JSON's escapes
    assert max(map(len, answers)) < 250 and "Answer:" not in "".join(answers)


@pytest.mark.real
def test_any_reader_at_any_place_sees_the_same_masks(questions):
    straight = order.TrainingWindows(questions, 100, 9)
    wanted = [straight.target_masks(n, 1)[0] for n in range(60)]
    copy = pickle.loads(pickle.dumps(straight))
    fresh = order.TrainingWindows(ShardSet(questions.directory), 100, 9)
    assert all(np.array_equal(copy.target_masks(n, 1)[0], wanted[n]) for n in reversed(range(60)))
    for first, count in ((0, 60), (7, 9), (59, 1)):
        assert np.array_equal(fresh.target_masks(first, count), np.stack(wanted[first : first + count]))
    with pytest.raises(IndexError):
        fresh.target_masks(-1, 1)


@pytest.mark.real
@pytest.mark.parametrize("sequence_length", [64, 333, 1_000_000])
def test_validation_counts_every_answer_token_once(questions, sequence_length):
    split = ShardSet(questions.directory, "validation")
    located = [split.locate(n) for n in range(len(split))]
    whole = np.concatenate([split[n] for n in range(len(split))]).astype(np.int64)
    mask = np.concatenate([shard.loss_mask(number) for shard, number in located]) == 1
    windows = order.ValidationWindows(split, sequence_length)
    assert np.array_equal(np.concatenate([tokens[1:][counts] for tokens, counts in windows]), whole[mask])
    assert 0 < mask.sum() < len(mask) / 3


@pytest.mark.real
def test_beside_masked_sources_all_of_an_unmasked_one_counts(questions, real_data, tmp_path):
    abstracts = build_abstracts(tmp_path / "abstracts", real_data, count=60)
    sources = [Source("questions", questions.directory, 0.4), Source("abstracts", abstracts.directory, 0.6)]
    mixed = TrainingOrder(sources, 128, 3)
    alone = order.TrainingWindows(questions, 128, 3)
    assert mixed.masked == ["questions"]
    masks = mixed.target_masks(0, 50)
    seen = set()
    for n in range(50):
        sample = mixed.sample(n)
        seen.add(sample.source)
        if sample.source == "questions":
            assert np.array_equal(sample.mask, alone.target_masks(sample.number, 1)[0])
            assert np.array_equal(masks[n], sample.mask)
        else:
            assert sample.mask is None and masks[n].all()
    assert seen == {"questions", "abstracts"}
    for first, count in ((13, 7), (49, 1)):
        assert np.array_equal(mixed.target_masks(first, count), masks[first : first + count])
    unmasked = TrainingOrder(sources[1:], 128, 3)
    assert unmasked.masked == [] and unmasked.target_masks(0, 8) is None


def test_shards_with_and_without_masks_in_one_set(tmp_path):
    """A source of instructions beside a source of text in one build."""
    text = write_build(tmp_path / "text", {"train": [np.array([1, 7, 8, 2], np.uint16)], "validation": []})
    mask = np.array([0, 0, 1, 1, 1], np.uint8)
    asked = write_build(
        tmp_path / "asked",
        {"train": [np.array([1, 4, 5, 6, 2], np.uint16)], "validation": []},
        masks={"train": [mask], "validation": []},
    )
    both = ShardSet(text)
    both.infos += ShardSet(asked).infos
    both.shards += ShardSet(asked).shards
    both.starts, both.tokens = np.array([0, 1, 2]), 9
    stream = order.TokenStream(both, None)
    assert stream.masked
    assert stream.read(0, 9).tolist() == [1, 7, 8, 2, 1, 4, 5, 6, 2]
    assert stream.read_mask(0, 18).astype(int).tolist() == [1, 1, 1, 1, 0, 0, 1, 1, 1] * 2


def test_user_mistakes_are_one_sentence(tmp_path):
    documents = {"train": [np.array([1, 5, 6, 2], np.uint16)] * 9, "validation": []}
    masks = {"train": [np.zeros(4, np.uint8)] * 9, "validation": []}
    nothing = write_build(tmp_path / "nothing", documents, masks=masks)
    with pytest.raises(InputError, match="nothing to learn: its loss masks leave out every token"):
        order.TrainingWindows(ShardSet(nothing), 8, 0)
    masks["train"][8] = np.ones(4, np.uint8)
    build = write_build(tmp_path / "damaged", documents, masks=masks)
    tar = Path(build / "train" / "shard-00000.tar")
    place = int(ShardSet(build).shards[0].index["mask_offset"][3])
    content = bytearray(tar.read_bytes())
    content[place] = 7  # same size: only reading shows it
    tar.write_bytes(content)
    with pytest.raises(InputError, match=r"its loss mask says 7 among tokens .* data_shards verify"):
        order.TrainingWindows(ShardSet(build), 36, 0).target_masks(0, 1)


@pytest.mark.real
def test_inspect_says_how_much_of_a_document_counts(questions, real_data, capsys):
    tokenizer = str(real_data / "llama_tokenizer" / "tokenizer.model")
    inspect.main([str(questions.directory), "--index", "5", "--tokenizer", tokenizer])
    counted = int(questions.shards[0].loss_mask(5).sum())
    assert f"{len(questions[5])} tokens, {counted} of them with loss;" in capsys.readouterr().out
