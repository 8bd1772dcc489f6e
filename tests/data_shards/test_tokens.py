"""Ids equal to sentencepiece's own on real text, by every way in; conversions that AutoTokenizer reads right."""

import io
import json
import re
import shutil
import tarfile

import numpy as np
import pytest
import sentencepiece
import tokenizers

from data_shards import tokens
from job.errors import InputError
from job.tokenizer import write_hf_tokenizer
from tests.data_shards.shard_sets import abstracts, text_of

EDGES = [
    "", " ", "  ", "   ", "\n", "\n\n\n", " \n ", "a \nb", "a\n b", "a\n  b ", "a ", " lead", "  two  spaces   x",
    "\ttab\t\ttab", "\r\nwin\r\n", "日本語のテキスト。改行\nあり", "é vs e\u0301 ﬁ ½ Å \u212b", "👩‍🔬🧬 emoji", "x\n",
    "\u200bzero\u200dwidth\u00a0nbsp\u3000ideo", "α-helix β₂ → µM ‰ 10⁵", "null\x00byte", "▁literal▁▁", "\n▁", "▁",
    "▁▁\n▁a", "<0x0A> text", "\U0001f9ec" * 5, "a" * 3000, "العربية हिन्दी ไทย", "\ufeffbom", "\ud7ff\ue000 private",
    "x\u2028line\u2029para\x0b\x0c\x85", "[13C]H3C(=O)N[C@@H](C)C(=O)O", "MKTVRQERLKSIVRILERSKEPVSGAQLAEEL",
]  # fmt: skip
SPECIALS_AS_TEXT = ["<s>", "</s>", "<unk>", "a</s>b", "<s> hi", "[INST] x [/INST]"]
MODELS = ["llama_tokenizer/tokenizer.model", "stories260K/hf/tokenizer.model"]


@pytest.fixture(scope="module")
def real_texts(real_data):
    """All real abstracts, and the plain text of full articles of every JATS archive."""
    texts = [text_of(row) for row in abstracts(real_data, 10_000)]
    for archive in sorted((real_data / "jats_fulltext").glob("*.tar.gz")):
        with tarfile.open(archive) as tar:
            for member in tar.getmembers()[:12]:
                xml = tar.extractfile(member).read().decode("utf-8", "replace")
                texts.append(re.sub(r"<[^>]*>", "", xml))
    assert len(texts) > 8500
    return texts


def equal_ids(encoded, reference):
    return sum(ids.tolist() == [1, *wanted, 2] for ids, wanted in zip(encoded, reference, strict=True))


@pytest.mark.real
@pytest.mark.parametrize("model", MODELS)
def test_ids_equal_sentencepiece_on_all_real_text(real_data, real_texts, model):
    texts = (real_texts if "llama" in model else real_texts[:1500]) + EDGES + SPECIALS_AS_TEXT
    tokenizer = tokens.load(real_data / model)
    assert tokenizer.uses_word_cache
    assert tokenizer.dtype == np.uint16
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    encoded = [ids for at in range(0, len(texts), 700) for ids in tokenizer.encode_batch(texts[at : at + 700])]
    reference = sentencepiece.SentencePieceProcessor(model_file=str(real_data / model)).encode(texts)
    assert equal_ids(encoded, reference) == len(texts)
    assert all(ids.dtype == np.uint16 for ids in encoded)


@pytest.mark.real
def test_emptied_word_cache_gives_the_same_ids(real_data, real_texts, monkeypatch):
    wanted = tokens.load(real_data / MODELS[0]).encode_batch(real_texts[:300])
    monkeypatch.setattr(tokens, "_CACHE_BYTES", 100_000)
    small = tokens.load(real_data / MODELS[0])
    for at, ids in enumerate(wanted):
        assert np.array_equal(small.encode_batch([real_texts[at]])[0], ids)
    assert small._words._bytes < 400_000


@pytest.mark.real
@pytest.mark.parametrize("model", MODELS)
def test_converted_directory_gives_the_shards_ids_in_transformers(real_data, real_texts, model, tmp_path):
    from transformers import AutoTokenizer

    source = real_data / model
    write_hf_tokenizer(source, tmp_path)
    # A model directory has a config beside it, whose model type must not bring the wrong tokenizer class back.
    shutil.copyfile(real_data / "stories260K" / "hf" / "config.json", tmp_path / "config.json")
    texts = real_texts[:400] + real_texts[-20:] + EDGES
    wanted = [ids.tolist()[:-1] for ids in tokens.load(source).encode_batch(texts + SPECIALS_AS_TEXT)]
    auto = AutoTokenizer.from_pretrained(str(tmp_path))
    assert auto(texts)["input_ids"] == wanted[: len(texts)]
    assert auto(SPECIALS_AS_TEXT, split_special_tokens=True)["input_ids"] == wanted[len(texts) :]
    assert (auto.bos_token_id, auto.eos_token_id, auto.unk_token_id) == (1, 2, 0)
    assert auto.decode(auto("two  spaces\n β₂").input_ids, skip_special_tokens=True) == "two  spaces\n β₂"


@pytest.mark.real
def test_tokenizer_json_alone_gives_the_same_ids_and_is_word_cached_too(real_data, real_texts, tmp_path):
    write_hf_tokenizer(real_data / MODELS[0], tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    texts = real_texts[:300] + real_texts[-5:] + EDGES + SPECIALS_AS_TEXT
    wanted = tokens.load(real_data / MODELS[0]).encode_batch(texts)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        tokenizer = tokens.load(path)
        assert tokenizer.uses_word_cache
        assert all(np.array_equal(a, b) for a, b in zip(tokenizer.encode_batch(texts), wanted, strict=True))


@pytest.mark.real
def test_word_cache_is_refused_where_a_piece_crosses_words(real_data, real_texts, tmp_path):
    """A vocabulary with "of▁the" in it: words are not independent, so whole texts are encoded, still with equal ids."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((real_data / MODELS[0]).read_bytes())
    model.pieces[31999].piece = "▁of▁the"
    model.pieces[31999].score = model.pieces[300].score
    model.pieces[31998].piece = "▁of▁"
    model.pieces[31998].score = model.pieces[299].score
    file = tmp_path / "tokenizer.model"
    file.write_bytes(model.SerializeToString())
    tokenizer = tokens.load(file)
    assert not tokenizer.uses_word_cache
    encoded = tokenizer.encode_batch(real_texts[:50])
    reference = sentencepiece.SentencePieceProcessor(model_file=str(file)).encode(real_texts[:50])
    assert equal_ids(encoded, reference) == 50


def byte_level_directory(directory, texts):
    """A tokenizer as Llama-3's and Qwen2's: byte-level BPE with a BOS post-processor and an eos in the config."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=2000, special_tokens=["<|begin|>", "<|end|>"], show_progress=False)
    raw = tokenizer._tokenizer
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    raw.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.real
def test_byte_level_tokenizer_json(real_data, real_texts, tmp_path):
    from transformers import AutoTokenizer

    byte_level_directory(tmp_path, real_texts[:200])
    tokenizer = tokens.load(tmp_path)
    assert not tokenizer.uses_word_cache
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    texts = real_texts[200:300] + EDGES
    auto = AutoTokenizer.from_pretrained(str(tmp_path))
    assert [ids.tolist()[:-1] for ids in tokenizer.encode_batch(texts)] == auto(texts)["input_ids"]
    marker = tokenizer.encode_batch(["<|end|> is text"])[0]
    assert marker.tolist().count(1) == 1, "an end marker written in an article is text; only the last id is EOS"
    exported = tmp_path / "exported"
    write_hf_tokenizer(tmp_path, exported)
    again = AutoTokenizer.from_pretrained(str(exported))
    assert again(texts)["input_ids"] == auto(texts)["input_ids"]


def test_a_large_vocabulary_needs_uint32(tmp_path):
    vocabulary = {chr(0x4E00 + n) if n < 20_000 else f"w{n}": n for n in range(70_000)}
    vocabulary |= {"<unk>": 70_000, "</s>": 70_001}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    raw.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    tokenizer = tokens.load(tmp_path)
    assert tokenizer.dtype == np.uint32
    assert tokenizer.bos_id is None
    assert tokenizer.encode_batch(["w69999 w20001"])[0].tolist() == [69999, 20001, 70001]


def test_user_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        tokens.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        tokens.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model at all")
    with pytest.raises(InputError, match="not a sentencepiece model"):
        tokens.load(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"not a Hugging Face tokenizer\.json"):
        tokens.load(tmp_path)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["one two three four"] * 9), model_writer=model, vocab_size=14, eos_id=-1, minloglevel=2
    )
    (tmp_path / "no_eos.model").write_bytes(model.getvalue())
    with pytest.raises(InputError, match="no end-of-sentence"):
        tokens.load(tmp_path / "no_eos.model")
