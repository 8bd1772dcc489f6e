"""The tokenizers that text metrics count in, each with the name and the hash that stand beside every score.

BLEU and METEOR of the molecule and protein tasks are counted over word-pieces, and the choice of the vocabulary moves
BLEU-4 by several points. So a vocabulary is recognised by its pieces, never by the name of its file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Tokenizer, normalizers, pre_tokenizers

from job.errors import InputError
from job.files import sha256_file

SCIBERT = "scibert_scivocab_uncased"
BERT = "bert-base-uncased"
BASIC_WORDS = "bert-basic-words"
"""Lower-cased words and punctuation marks, before BERT cuts them into pieces: what is left without a vocabulary."""

MOST_PIECES = 512
"""Pieces of a text that count; the evaluation code of MolT5 and of OpenBioMed cuts the rest off."""

_KNOWN = {
    "3b4400b0082e2e1926dcd693d0bd31c215533325d177f6d12f17eb662a17589a": SCIBERT,
    "2c0e1f6e24ae6a010b5c7bc773bbf17fd15e83c80c54f0546fc4daeb85f4d8c5": BERT,
}
"""By `_digest`: copies of a vocabulary differ in order, special tokens and blank lines, which no score depends on."""

_DROPPED = frozenset({"[PAD]", "[CLS]", "[SEP]"})
_NEEDED = ("[UNK]", "[CLS]", "[SEP]")
_TEXTS_AT_ONCE = 4096


@dataclass(frozen=True)
class WordPieces:
    """A tokenizer for metrics; make one with `read_tokenizer`."""

    name: str
    """A known vocabulary's name, or else the file's (or the folder's) own."""
    sha256: str | None
    """Of the file that was read; None without one."""
    _cut: Callable[[list[str]], list[list[str]]]
    """All pieces of each of some texts."""
    _by_words: bool
    """Whether pieces never depend on what is beyond a blank, as is so for BERT's: words are then cut only once."""
    _known: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    def encode(self, texts: Sequence[str]) -> list[list[str]]:
        """The first 512 pieces of each text, without `[PAD]`, `[CLS]` and `[SEP]`."""
        rows: list[list[str]] = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            batch = list(texts[start : start + _TEXTS_AT_ONCE])
            rows += self._cut_by_words(batch) if self._by_words else self._cut(batch)
        rows = [row[:MOST_PIECES] for row in rows]
        return [row if _DROPPED.isdisjoint(row) else [piece for piece in row if piece not in _DROPPED] for row in rows]

    def _cut_by_words(self, texts: list[str]) -> list[list[str]]:
        words = [text.split(" ") for text in texts]
        new = list({word for row in words for word in row} - self._known.keys())
        self._known.update(zip(new, self._cut(new)))
        return [list(chain.from_iterable(map(self._known.__getitem__, row))) for row in words]


def read_tokenizer(path: Path | None) -> WordPieces:
    """A BERT vocabulary (`vocab.txt`, lower-casing), a `tokenizer.json`, or a folder that holds one of them.

    None gives `BASIC_WORDS`, which needs no file. Raises `InputError` where there is nothing to read.
    """
    if path is None:
        return WordPieces(BASIC_WORDS, None, _basic_words, _by_words=True)
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("vocab.txt", "tokenizer.json") if (path / name).is_file()]
        if not found:
            raise InputError(f"{path} has neither vocab.txt nor tokenizer.json; give a tokenizer's folder or file")
        return _read_file(found[0], path.resolve().name)
    return _read_file(path, path.stem)


def _read_file(file: Path, name: str) -> WordPieces:
    if not file.is_file():
        raise InputError(f"tokenizer {file} does not exist; give a BERT vocab.txt or a tokenizer.json")
    if file.suffix == ".json":
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise InputError(f"{file} is not a tokenizer.json that `tokenizers` reads: {error}") from None
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return WordPieces(name, sha256_file(file), _cutter(tokenizer), _by_words=False)
    try:
        pieces = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise InputError(f"{file} is not a BERT vocabulary: it is not UTF-8 text with one piece per line") from None
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    missing = [piece for piece in _NEEDED if piece not in vocabulary]
    if missing:
        raise InputError(f"{file} is not a BERT vocabulary (one piece per line): it has no {' and no '.join(missing)}")
    for piece in _DROPPED - vocabulary.keys():  # some copies lack [PAD], which is dropped from a text all the same
        vocabulary[piece] = len(vocabulary)
    cut = _cutter(BertWordPieceTokenizer(vocabulary, lowercase=True))
    return WordPieces(_KNOWN.get(_digest(pieces), name), sha256_file(file), cut, _by_words=True)


def _cutter(tokenizer: Tokenizer | BertWordPieceTokenizer) -> Callable[[list[str]], list[list[str]]]:
    def cut(texts: list[str]) -> list[list[str]]:
        return [encoding.tokens for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]

    return cut


def _digest(pieces: list[str]) -> str:
    """Hex SHA-256 of the sorted pieces, one a line, without blank ones and those in brackets (`[PAD]`, `[unused1]`)."""
    words = sorted(piece for piece in set(pieces) if piece and not (piece[0] == "[" and piece[-1] == "]" != piece))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


_NORMALIZER = normalizers.BertNormalizer(lowercase=True)
_PRE_TOKENIZER = pre_tokenizers.BertPreTokenizer()


def _basic_words(texts: list[str]) -> list[list[str]]:
    return [[word for word, _ in _PRE_TOKENIZER.pre_tokenize_str(_NORMALIZER.normalize_str(text))] for text in texts]
