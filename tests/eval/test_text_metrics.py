"""Text metrics: the predictions that MolT5 shipped, and the libraries that define each metric."""

import csv
import gzip
import json
import random
import shutil
import warnings
import zipfile
from pathlib import Path

import nltk
import numpy as np
import pytest
from nltk.corpus.util import LazyCorpusLoader
from nltk.translate.bleu_score import SmoothingFunction
from nltk.translate.bleu_score import corpus_bleu as nltk_corpus_bleu
from nltk.translate.bleu_score import sentence_bleu as nltk_sentence_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from eval.metrics.meteor import Meteor, read_wordnet
from eval.metrics.overlap import corpus_bleu, overlap, rouge, sentence_bleu
from eval.metrics.text_metrics import DEFINITIONS, normalise, score, score_answers
from eval.metrics.word_pieces import BASIC_WORDS, BERT, SCIBERT, read_tokenizer
from job.errors import InputError

WEIGHTS = {2: (0.5, 0.5), 4: (0.25, 0.25, 0.25, 0.25)}
VOCABULARIES = {SCIBERT: "scibert_scivocab_uncased.txt", BERT: "bert_base_uncased.txt"}


@pytest.fixture(scope="module")
def captions(real_data: Path) -> tuple[list[str], list[str]]:
    """MolT5-base's captions of the ChEBI-20 test set, and the right ones."""
    with gzip.open(
        real_data / "molt5_predictions" / "molt5-base-smiles2caption.txt.gz", "rt", encoding="utf-8"
    ) as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["output"] for row in rows], [row["ground truth"] for row in rows]


@pytest.fixture(scope="module")
def meteor(real_data: Path) -> Meteor:
    return Meteor(read_wordnet(real_data / "wordnet" / "wordnet.zip"))


@pytest.fixture(scope="module")
def invented() -> tuple[list[str], list[str]]:
    """Pairs of up to nine words that try corners: empty and one-word texts, repeats, synonyms, other alphabets."""
    words = "the acid is a of dog dogs domestic running run runs metabolite conjugate base Acids é 3beta-hydroxy ( ) -"
    words = [
        *words.split(),
        "1,2",
        "_x_",
        "große",
        "İ",
        "\u212a",
        "big",
        "large",
        "car",
        "auto",
        "automobile",
        "\ud800",
    ]
    chance = random.Random(0)
    texts = [" ".join(chance.choices(words, k=chance.randint(0, 9))) for _ in range(6000)]
    return texts[::2], texts[1::2]


def vocabulary(real_data: Path, name: str) -> Path:
    return real_data / "wordpiece_vocabularies" / VOCABULARIES[name]


@pytest.mark.real
@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        # MolT5's paper has 54.0, 45.7, 63.4, 48.5, 57.8 and 56.9: the shipped file is not the published run.
        ("molt5", [55.08, 46.44, 63.39, 48.47, 57.68, 57.45]),
        ("openbiomed-v2", [48.95, 41.58, 63.39, 48.47, 57.68, 57.85]),
    ],
)
def test_golden_values(definition, expected, captions, meteor, real_data):
    tokenizer = read_tokenizer(vocabulary(real_data, DEFINITIONS[definition].vocabulary))
    result = score(*captions, definition, tokenizer, meteor)
    assert list(result.scores) == ["bleu_2", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor"]
    assert [round(100 * value, 2) for value in result.scores.values()] == expected
    assert result.count == 3300
    written = result.to_json()
    assert written["tokenizer"]["name"] == DEFINITIONS[definition].vocabulary
    assert written["tokenizer"]["stands_in_for"] is None
    assert written["wordnet"] == "3.0"
    assert "stands in" not in result.note
    for name, values in result.of_each.items():
        assert values.shape == (3300,)
        assert np.mean(values) == result.scores[name]


@pytest.mark.real
@pytest.mark.parametrize("name", VOCABULARIES)
def test_pieces_are_those_of_transformers(name, captions, real_data, tmp_path):
    from transformers import BertTokenizerFast

    file = vocabulary(real_data, name)
    shutil.copyfile(file, tmp_path / "vocab.txt")
    peer = BertTokenizerFast.from_pretrained(str(tmp_path), do_lower_case=True)
    corners = [
        "",
        " ",
        "[CLS] Straße[SEP]  naïve 酸x酸 \u2028 [PAD]",
        "acid " * 600,
        "a\tb\u00a0c\u0301 \u0301d ΣΣ ς \ufffd\x00 e\n",
    ]
    texts = [*captions[0][:1000], *corners, "x" * 101, "Ａ１ [mask] [MASK] ##ing \u200b."]
    expected = [peer.tokenize(text)[:512] for text in texts]
    expected = [[piece for piece in row if piece not in ("[PAD]", "[CLS]", "[SEP]")] for row in expected]
    found = read_tokenizer(file).encode(texts)
    assert found == expected
    assert max(map(len, found)) == 512


@pytest.mark.real
def test_equal_to_the_libraries_on_captions(captions, meteor, real_data):
    predictions, references = (texts[:400] for texts in captions)
    tokenizer = read_tokenizer(vocabulary(real_data, SCIBERT))
    compare_with_libraries(predictions, references, tokenizer.encode, meteor)


@pytest.mark.real
def test_equal_to_the_libraries_on_corners(invented, meteor):
    compare_with_libraries(*invented, lambda texts: [text.split() for text in texts], meteor)


def compare_with_libraries(predictions, references, tokenize, meteor):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    # Surrogates are no text to rouge-score's own helpers; to ours they are no word.
    clean = [[text.replace("\ud800", " ") for text in texts] for texts in (predictions, references)]
    theirs = [scorer.score(prediction, reference) for prediction, reference in zip(*clean)]
    for name, values in rouge(predictions, references).items():
        assert values.tolist() == [row[name.replace("_", "").replace("l", "L")].fmeasure for row in theirs], name

    pieces, reference_pieces = tokenize(predictions), tokenize(references)
    counts = overlap(pieces, reference_pieces)
    method1 = SmoothingFunction().method1
    pairs = list(zip(pieces, reference_pieces))
    for orders, weights in WEIGHTS.items():
        assert corpus_bleu(counts, orders) == nltk_corpus_bleu([[r] for r in reference_pieces], pieces, weights)
        assert sentence_bleu(counts, orders).tolist() == [
            nltk_sentence_bleu([reference], prediction, weights, method1) for prediction, reference in pairs
        ]

    found = meteor.scores(pieces, reference_pieces).tolist()
    assert found == [meteor_score([r], p, wordnet=meteor.wordnet.reader) for p, r in pairs]
    without_synonyms = [meteor_score([r], p, wordnet=NoSynonyms()) for p, r in pairs]
    assert found != without_synonyms  # synonyms do matter in these texts


@pytest.mark.real
@pytest.mark.parametrize("reference", ["track x trail y", "trail x track y", "x track y trail"])
def test_the_last_of_several_synonyms_is_taken(reference, meteor):
    pair = ["dog", "y"], reference.split()  # words that are their own stems
    [found] = meteor.scores([pair[0]], [pair[1]])
    assert found == meteor_score([pair[1]], pair[0], wordnet=meteor.wordnet.reader)


class NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> list:
        return []


def test_many_kinds_of_tokens_are_renumbered():
    """More n-grams than fit one integer with their place: numbers are given anew, and counts stay right."""
    chance = np.random.default_rng(0)
    rows = [[str(number) for number in chance.integers(0, 70_000, 40)] for _ in range(3000)]
    others = [[*row[:20], *chance.permutation(row[20:]).tolist()] for row in rows]
    counts = overlap(rows, others)
    method1 = SmoothingFunction().method1
    expected = [nltk_sentence_bleu([r], p, WEIGHTS[4], method1) for p, r in zip(rows, others)]
    assert sentence_bleu(counts, 4).tolist() == expected
    texts, other_texts = ([" ".join(row) for row in side] for side in (rows, others))
    scorer = RougeScorer(["rougeL"])
    expected = [scorer.score(*pair)["rougeL"].fmeasure for pair in zip(texts[:200], other_texts)]
    assert rouge(texts, other_texts)["rouge_l"][:200].tolist() == expected


@pytest.mark.real
def test_another_tokenizer_is_said_to_stand_in(captions, real_data):
    texts = [column[:50] for column in captions]
    basic = read_tokenizer(None)
    assert (basic.name, basic.sha256) == (BASIC_WORDS, None)
    result = score(*texts, "molt5", basic)
    assert result.to_json()["tokenizer"]["stands_in_for"] == SCIBERT
    assert f"stands in for {SCIBERT}" in result.note and "no METEOR" in result.note
    assert "meteor" not in result.scores
    bert = score(*texts, "molt5", read_tokenizer(vocabulary(real_data, BERT)))
    assert bert.stands_in and bert.tokenizer.name == BERT
    assert (
        bert.scores["bleu_4"] != score(*texts, "molt5", read_tokenizer(vocabulary(real_data, SCIBERT))).scores["bleu_4"]
    )


@pytest.mark.real
def test_a_vocabulary_is_known_by_its_pieces(real_data, tmp_path):
    pieces = vocabulary(real_data, SCIBERT).read_text(encoding="utf-8").rstrip("\n").split("\n")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", *reversed(pieces)]), encoding="utf-8")
    assert read_tokenizer(tmp_path).name == SCIBERT  # order and special tokens change no score
    (tmp_path / "vocab.txt").write_text("\n".join(pieces[:-1]), encoding="utf-8")
    assert read_tokenizer(tmp_path).name == tmp_path.name


@pytest.mark.real
def test_a_tokenizer_json_cuts_into_the_same_pieces(captions, real_data, tmp_path):
    from tokenizers import BertWordPieceTokenizer

    source = vocabulary(real_data, BERT)
    tokenizer = BertWordPieceTokenizer(str(source))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = read_tokenizer(tmp_path)
    assert found.encode(captions[1][:50]) == read_tokenizer(source).encode(captions[1][:50])


@pytest.mark.real
def test_wordnet_from_a_folder_of_nltk_s_data(real_data, tmp_path):
    archive = real_data / "wordnet" / "wordnet.zip"
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "corpora")
    wordnet = read_wordnet(tmp_path)
    assert wordnet.version == "3.0"
    assert "automobile" in wordnet.synonyms("car") and "car" not in wordnet.synonyms("car")


@pytest.mark.real
def test_the_reader_finds_what_nltk_s_own_finds(meteor, real_data, tmp_path, monkeypatch):
    """Our reader leaves the map to other languages out: synsets are the same."""
    from nltk.corpus.reader import WordNetCorpusReader

    (tmp_path / "corpora").mkdir()
    (tmp_path / "corpora" / "wordnet.zip").write_bytes((real_data / "wordnet" / "wordnet.zip").read_bytes())
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path), *nltk.data.path])  # ours opens its files when it needs them
    warnings.filterwarnings("ignore", "The multilingual functions")
    theirs = LazyCorpusLoader("wordnet", WordNetCorpusReader, None)
    for word in ("acid", "runs", "better", "metabol", "bases", "##ing", "geese", "xyzzy"):
        names = {name for synset in theirs.synsets(word) for name in synset.lemma_names() if "_" not in name}
        assert meteor.wordnet.synonyms(word) == names - {word}


@pytest.mark.parametrize("what", ["missing", "not text", "no vocabulary", "no json", "empty folder"])
def test_bad_tokenizers(what, tmp_path):
    path = tmp_path / ("tokenizer.json" if what == "no json" else "vocab.txt")
    if what == "empty folder":
        path = tmp_path
    elif what != "missing":
        path.write_bytes({"not text": b"\xff\xfe", "no vocabulary": b"a\nb\n", "no json": b"{}"}[what])
    with pytest.raises(InputError, match=path.name):
        read_tokenizer(path)


def test_bad_wordnets(tmp_path):
    with pytest.raises(InputError, match=r"nltk\.downloader"):
        read_wordnet(tmp_path)
    (tmp_path / "wordnet.zip").write_bytes(b"no zip")
    with pytest.raises(InputError, match=r"wordnet\.zip"):
        read_wordnet(tmp_path)
    with zipfile.ZipFile(tmp_path / "wordnet.zip", "w") as archive:
        archive.writestr("wordnet/lexnames", "00\tadj.all\t3\n")
    with pytest.raises(InputError, match=r"wordnet\.zip"):
        read_wordnet(tmp_path)


def test_bad_texts():
    tokenizer = read_tokenizer(None)
    with pytest.raises(InputError, match="molt6"):
        score(["a"], ["a"], "molt6", tokenizer)
    with pytest.raises(InputError, match="1 predictions for 2 references"):
        score(["a"], ["a", "b"], "molt5", tokenizer)
    with pytest.raises(InputError, match="no predictions"):
        score([], [], "molt5", tokenizer)
    empty = score(["", ""], ["a b", ""], "molt5", tokenizer)
    assert set(empty.scores.values()) == {0.0}


@pytest.mark.real
def test_short_answers_of_chembl_qa(real_data):
    with gzip.open(real_data / "chembl_qa" / "ChEMBL_QA_open.json.gz", "rt", encoding="utf-8") as file:
        rows = [row for rows in json.load(file).values() for row in rows]
    answers = [answer for _, answer in rows]
    assert any(not isinstance(answer, str) for answer in answers)  # numbers are scored as they print
    perfect = score_answers(answers, answers).to_json()
    assert perfect == {"exact_match": 1.0, "f1": 1.0, "same_text": 1.0, "count": len(answers)}
    shifted = score_answers([*answers[1:], answers[0]], answers)
    assert 0 < shifted.exact_match.mean() <= shifted.f1.mean() < 0.5
    assert (shifted.f1 >= shifted.exact_match).all()


def test_short_answers_as_squad_counts_them():
    predictions = ["The cat, the cat!", "yes", "-1.5", "An", "", "a dog dog"]
    references = ["cat cat", "no", 15, "the", "x", "dog"]
    scores = score_answers(predictions, references)
    assert scores.exact_match.tolist() == [1, 0, 1, 1, 0, 0]
    assert scores.f1.tolist() == [1, 0, 1, 1, 0, pytest.approx(2 / 3)]
    assert scores.same_text.tolist() == [0, 0, 0, 0, 0, 0]
    assert normalise("  An Apple-pie,\nthe  best. ") == "applepie best"
