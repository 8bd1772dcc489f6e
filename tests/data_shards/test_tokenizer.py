"""The tokenizer verb on real articles: Llama's conventions, the same files from the same input, clear refusals."""

import subprocess
import sys

import pytest
import sentencepiece

from data_shards import tokenizer, tokens
from job.errors import InputError
from job.tokenizer import is_plain_bpe, read_model
from tests.data_shards.shard_sets import abstracts, text_of

ABSTRACTS = "pubmed_abstracts/pubmed21n1298_abstracts.open.jsonl.gz"


def run(real_data, output, *words):
    arguments = ["--input", str(real_data / ABSTRACTS), "--output", str(output), "--max-bytes", "6e5", *words]
    return tokenizer.main(arguments)


@pytest.mark.real
def test_a_trained_tokenizer_keeps_llamas_conventions(real_data, tmp_path):
    from transformers import AutoTokenizer

    assert run(real_data, tmp_path, "--vocab-size", "2000") == 0
    loaded = tokens.load(tmp_path)
    assert loaded.uses_word_cache
    assert (loaded.vocab_size, loaded.bos_id, loaded.eos_id) == (2000, 1, 2)
    assert is_plain_bpe(read_model(tmp_path / "tokenizer.model"))
    texts = [text_of(row) for row in abstracts(real_data, 60, first=3000)] + ["10⁵  β₂ 日本\n 👩‍🔬", "  x "]
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    encoded = loaded.encode_batch(texts)
    assert [ids.tolist() for ids in encoded] == [[1, *ids, 2] for ids in reference.encode(texts)]
    assert [loaded.decode(ids) for ids in encoded] == texts, "every character survives, by byte pieces if need be"
    assert AutoTokenizer.from_pretrained(str(tmp_path))(texts)["input_ids"] == [ids.tolist()[:-1] for ids in encoded]
    digits = [loaded.piece(token) for token in loaded.encode_batch(["1977"])[0][1:-1]]
    assert digits[-4:] == ["1", "9", "7", "7"]
    bytes_per_token = sum(len(text.encode()) for text in texts) / sum(map(len, encoded))
    assert bytes_per_token > 2.5


@pytest.mark.real
def test_the_same_input_gives_the_same_files(real_data, tmp_path):
    for name in ("a", "b"):
        run(real_data, tmp_path / name, "--vocab-size", "600")
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.real
@pytest.mark.parametrize(
    ("file_format", "file"),
    [("pubmed", "pubmed_xml/pubmed20n0014.open.xml.gz"), ("pmc", "jats_fulltext/doc2json.open.tar.gz"), ("text", None)],
)
def test_it_reads_articles_of_every_format(real_data, tmp_path, file_format, file):
    if file is None:
        path = tmp_path / "articles.txt"
        path.write_text("\n\n".join(text_of(row) for row in abstracts(real_data, 100)), encoding="utf-8")
    else:
        path = real_data / file
    words = ["--input", str(path), "--format", file_format, "--vocab-size", "450", "--output", str(tmp_path / "out")]
    assert tokenizer.main(words) == 0
    assert tokens.load(tmp_path / "out").vocab_size == 450


@pytest.mark.real
def test_impossible_sizes_and_missing_files_are_one_sentence(real_data, tmp_path):
    with pytest.raises(InputError, match=r"give at most [0-9]+ pieces, but --vocab-size is 500000"):
        run(real_data, tmp_path, "--vocab-size", "500000")
    with pytest.raises(InputError, match="too small for the characters"):
        run(real_data, tmp_path, "--vocab-size", "262")
    with pytest.raises(InputError, match="does not exist"):
        tokenizer.main(["--input", str(tmp_path / "gone.jsonl"), "--output", str(tmp_path)])
    latin = tmp_path / "latin1.txt"
    latin.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 text"):
        tokenizer.main(["--input", str(latin), "--format", "text", "--output", str(tmp_path)])
    assert not (tmp_path / "tokenizer.model").exists()


def test_help_teaches_without_heavy_imports():
    program = (
        "import sys, runpy; sys.argv = ['data_shards', 'tokenizer', '--help']\n"
        "try: runpy.run_module('data_shards', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert "--vocab-size" in done.stdout
    assert "example:" in done.stdout
