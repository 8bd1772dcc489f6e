"""`python -m data_shards tokenizer`: train a sentencepiece tokenizer on articles, with Llama-2's settings.

For demos and for models trained from scratch; continued pretraining keeps the tokenizer of its model.
"""

from __future__ import annotations

import argparse
import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from data_shards.articles import Article, Reject
from job.config import Count
from job.errors import InputError
from job.files import atomic_file
from job.tokenizer import write_hf_tokenizer

READERS = {
    "pubmed": "data_shards.readers.pubmed",
    "pmc": "data_shards.readers.pmc",
    "s2orc": "data_shards.readers.s2orc",
    "jsonl": "data_shards.readers.jsonl",
}
FORMATS = ("text", *READERS)


def read_texts(paths: list[Path], file_format: str) -> Iterator[str]:
    """The text of every article of some files, in order; records that cannot be read are left out."""
    for path in paths:
        if not path.exists():
            raise InputError(f"input {path} does not exist")
        if file_format == "text":
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
            continue
        rejects: list[Reject] = []
        for article in importlib.import_module(READERS[file_format]).read(path, rejects.append):
            if isinstance(article, Article):
                yield article.text()
        if rejects:
            first = rejects[0]
            print(
                f"{path}: {len(rejects)} records could not be read, the first at {first.source_position}: "
                f"{first.detail or first.reason}"
            )


def train(texts: Iterator[str], vocab_size: int, max_bytes: int) -> bytes:
    """A sentencepiece BPE model as Llama-2's: byte fallback, digits apart, text taken as it is, <unk> <s> </s> first.

    Args:
        texts: what to train on, read until `max_bytes` of UTF-8 have come by.
        vocab_size: number of pieces, the 3 special and 256 byte pieces included.
        max_bytes: more text than some hundred megabytes changes a vocabulary little and costs memory.

    Returns the content of a `tokenizer.model`; the same texts give the same bytes. Raises `InputError` where the
    texts are too few for that many pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, max_bytes),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            character_coverage=0.99995,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        message = " ".join(str(error).split())
        if limit := re.search(r"value <= (\d+)", message):
            raise InputError(
                f"the texts give at most {limit[1]} pieces, but --vocab-size is {vocab_size}: lower it or add texts"
            ) from None
        if "required_chars" in message:
            raise InputError(f"--vocab-size {vocab_size} is too small for the characters of these texts") from None
        raise InputError(f"sentencepiece could not train on these texts: {message}") from None
    return model.getvalue()


def _lines(texts: Iterator[str], max_bytes: int) -> Iterator[str]:
    read = 0
    for text in texts:
        for line in text.split("\n"):
            if line and "\0" not in line:
                yield line
        read += len(text.encode())
        if read >= max_bytes:
            return


def main(arguments: list[str]) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="python -m data_shards tokenizer",
        description="Train a sentencepiece BPE tokenizer on articles, with Llama-2's settings, and write it into a "
        "directory: tokenizer.model, and its Hugging Face form (tokenizer.json, tokenizer_config.json). The same input "
        "gives the same files.",
        epilog="example: tokenizer --input abstracts.jsonl.gz --vocab-size 4096 --output tokenizer/",
    )
    parser.add_argument("--input", type=Path, nargs="+", required=True, metavar="FILE", help="files with articles")
    parser.add_argument("--format", choices=FORMATS, default="jsonl", help="of the input files (default: jsonl)")
    parser.add_argument("--vocab-size", type=Count, default=Count(32000), help="number of pieces (default: 32000)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write")
    parser.add_argument(
        "--max-bytes", type=Count, default=Count(200_000_000), help="use this much text, in order (default: 200e6)"
    )
    options = parser.parse_args(arguments)
    model = train(read_texts(options.input, options.format), options.vocab_size, options.max_bytes)
    file = options.output / "tokenizer.model"
    with atomic_file(file) as handle:
        handle.write(model)
    write_hf_tokenizer(file, options.output)
    print(f"{file}: {options.vocab_size:,} pieces")
    return 0
