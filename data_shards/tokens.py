"""Text -> token ids, equal to the model's own tokenizer, as fast as one core allows.

Two kinds of tokenizer are read: a sentencepiece `tokenizer.model` (Llama-2, Mistral) and a Hugging Face
`tokenizer.json` (Llama-3, Qwen2, ...). Where both lie in a directory, the sentencepiece file is the authority, because
the JSON beside it was converted from it.

Most of the time of tokenisation goes into merging the same words again and again. For a BPE vocabulary in which no
piece reaches across a word boundary, the ids of a text are exactly the ids of its words one after another, so each
word is encoded once and then looked up. The condition is checked on the vocabulary when the tokenizer is loaded; where
it does not hold, the tokenizer's own library encodes whole texts.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece
import tokenizers

from job import tokenizer as tokenizer_files
from job.errors import InputError
from job.files import read_json, sha256_file

# One process tokenises on one core; builds run one process per core. Rust threads below that would only contend, and
# `tokenizers` warns and dead-locks when a process that has used its threads forks.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SPACE = "▁"  # sentencepiece writes a space as U+2581
_CACHE_BYTES = 256 << 20
_CACHE_ENTRY_BYTES = 200  # dict slot, str and bytes headers, a few ids: what one cached word costs beside its letters

EncodeWords = Callable[[list[str]], list[list[int]]]


class _Backend(Protocol):
    """What a tokenizer library must offer: whole texts, and (where words are independent) single escaped words."""

    vocab_size: int
    bos_id: int | None
    eos_id: int
    encode_words: EncodeWords | None

    def encode(self, texts: list[str]) -> list[list[int]]: ...
    def decode(self, ids: list[int]) -> str: ...
    def piece(self, token_id: int) -> str: ...


class Tokenizer:
    """The target model's tokenizer. Make one with `load`; every process loads its own.

    Attributes:
        vocab_size: number of ids; every id is below it.
        dtype: `uint16` where the vocabulary fits, else `uint32`.
        sha256: checksum of the file that defines the ids.
        bos_id: id put before every document, or None where the model expects none (Qwen2).
        eos_id: id put after every document.
    """

    def __init__(self, path: Path, backend: _Backend) -> None:
        self.path = path
        self.sha256 = sha256_file(path)
        self.vocab_size = backend.vocab_size
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self.bos_id = backend.bos_id
        self.eos_id = backend.eos_id
        self._backend = backend
        self._before = b"" if self.bos_id is None else _packed([self.bos_id], self.dtype)
        self._after = _packed([self.eos_id], self.dtype)
        self._words = _WordCache(backend.encode_words, self.dtype) if backend.encode_words else None

    @property
    def uses_word_cache(self) -> bool:
        """Whether words are encoded once and looked up afterwards (else the library encodes whole texts)."""
        return self._words is not None

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Ids of each text, BOS (where the model has one) and EOS included: read-only 1-D arrays of `self.dtype`.

        Special tokens written in a text ("<s>") are encoded as the plain characters they are. Texts must be valid
        Unicode: a lone surrogate is refused by the libraries below.
        """
        if self._words is not None:
            pieces = self._words.encode(texts)
        else:
            pieces = [[_packed(ids, self.dtype)] for ids in self._backend.encode(texts)]
        before, after = self._before, self._after
        return [np.frombuffer(b"".join([before, *parts, after]), self.dtype) for parts in pieces]

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of some ids; special tokens are left out."""
        return self._backend.decode([int(i) for i in ids])

    def piece(self, token_id: int) -> str:
        """The vocabulary entry of an id, as the tokenizer writes it ("▁patients", "<0x0A>")."""
        return self._backend.piece(int(token_id))


def load(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory, a `tokenizer.json` or a sentencepiece `.model` file.

    Raises `InputError` where there is none, or where it does not say how a document ends.
    """
    path = Path(path)
    file = tokenizer_files.find_file(path)
    settings = tokenizer_files.read_settings(file.parent) if path.is_dir() or file.suffix == ".json" else {}
    if file.suffix == ".json":
        return Tokenizer(file, _HuggingFace(file, settings))
    return Tokenizer(file, _SentencePiece(file, settings))


class _SentencePiece:
    """Ids by the sentencepiece library."""

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        model = tokenizer_files.read_model(file)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        self.vocab_size = self._processor.vocab_size()
        has_bos = self._processor.bos_id() >= 0 and settings.get("add_bos_token", True)
        self.bos_id = self._processor.bos_id() if has_bos else None
        self.eos_id = self._processor.eos_id()
        if self.eos_id < 0:
            raise InputError(f"{file} defines no end-of-sentence piece; train it with an eos_id")
        pieces = [piece.piece for piece in model.pieces]
        exact = tokenizer_files.is_plain_bpe(model) and _words_are_independent(pieces)
        self.encode_words: EncodeWords | None = self._encode_words if exact else None
        self._marker = self._processor.encode("x")

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, out_type=int, num_threads=1)

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        # The library puts a space before what it encodes. A word that has that space gives it up here; one that
        # starts at a line break, or is nothing but spaces, is encoded behind a letter whose ids are then cut off.
        whole = [word[0] == SPACE and word.strip(SPACE) != "" for word in words]
        texts = [(word[1:] if ok else "x" + word).replace(SPACE, " ") for word, ok in zip(words, whole)]
        skip = len(self._marker)
        return [ids if ok else ids[skip:] for ids, ok in zip(self.encode(texts), whole)]

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def piece(self, token_id: int) -> str:
        return self._processor.id_to_piece(token_id)


class _HuggingFace:
    """Ids by the `tokenizers` library."""

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{file} is not a Hugging Face tokenizer.json: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "<s>" in an article is text
        self.vocab_size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        self.bos_id = self._bos(settings)
        self.eos_id = self._eos(file, settings)
        self.encode_words: EncodeWords | None = self._encode_words if self._is_word_by_word(file) else None

    def _token_id(self, token: Any) -> int | None:
        name = token.get("content") if isinstance(token, dict) else token
        return self._tokenizer.token_to_id(name) if isinstance(name, str) else None

    def _bos(self, settings: dict[str, Any]) -> int | None:
        """The id the tokenizer itself puts first (its post-processor), or its config says to put first."""
        bos = self._token_id(settings.get("bos_token"))
        bare = self._tokenizer.encode("x", add_special_tokens=False).ids
        full = self._tokenizer.encode("x", add_special_tokens=True).ids
        if len(full) > len(bare) and full[0] != bare[0]:
            return full[0]
        return bos if settings.get("add_bos_token") else None

    def _eos(self, file: Path, settings: dict[str, Any]) -> int:
        eos = self._token_id(settings.get("eos_token"))
        if eos is None and (file.parent / "config.json").is_file():
            eos = read_json(file.parent / "config.json").get("eos_token_id")
            eos = eos[0] if isinstance(eos, list) else eos
        if eos is None:
            raise InputError(f"{file.parent} names no eos_token (tokenizer_config.json): where does a document end?")
        return int(eos)

    def _is_word_by_word(self, file: Path) -> bool:
        """Whether this is the JSON form of a plain sentencepiece BPE, so that the word cache is exact."""
        body = json.loads(file.read_text(encoding="utf-8"))
        model = body["model"]
        plain = (
            model.get("type") == "BPE"
            and not model.get("dropout")
            and model.get("byte_fallback")
            and not model.get("ignore_merges")
            and body.get("pre_tokenizer") is None
            and body.get("normalizer") == tokenizer_files.NORMALIZER
            and all(token["special"] for token in body.get("added_tokens", ()))
        )
        if not plain or not _words_are_independent(model["vocab"]):
            return False
        body["normalizer"] = None  # words arrive escaped
        self._escaped = tokenizers.Tokenizer.from_str(json.dumps(body))
        self._escaped.no_truncation()
        self._escaped.no_padding()
        self._escaped.encode_special_tokens = True
        return True

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _encode_words(self, words: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._escaped.encode_batch_fast(words, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def piece(self, token_id: int) -> str:
        return self._tokenizer.id_to_token(token_id) or f"<{token_id}>"


def _words_are_independent(pieces: Iterable[str]) -> bool:
    """Whether no merge can cross the start of a word, so that words can be encoded one by one.

    A word starts where a run of spaces starts, or at a line break. That is exact if no piece holds a space after
    another character, no longer piece holds a line break, and both are known pieces (runs of unknown characters are
    fused into one id, across words too).
    """
    known = set(pieces)
    if SPACE not in known or not ("\n" in known or "<0x0A>" in known):
        return False
    return not any(SPACE in piece.lstrip(SPACE) or ("\n" in piece and piece != "\n") for piece in known)


class _WordCache:
    r"""word -> packed ids, filled as texts come by; emptied when it has grown to about 256 MiB.

    Words are keyed without the space in front of them: "patients" stands for "▁patients", "\nMethods" for a line
    break and the word right behind it.
    """

    _split = re.compile(f"{SPACE}+[^{SPACE}\n]*|\n[^{SPACE}\n]*").findall

    def __init__(self, encode_words: EncodeWords, dtype: np.dtype) -> None:
        self._encode_words = encode_words
        self._dtype = dtype
        self._ids: dict[str, bytes] = {}
        self._bytes = 0

    def encode(self, texts: list[str]) -> list[list[bytes]]:
        """For each text the packed ids of its words, in order."""
        if self._bytes > _CACHE_BYTES:
            self._ids.clear()
            self._bytes = 0
        words = [self._words(text) for text in texts]
        missing = sorted(set().union(*words).difference(self._ids))
        escaped = [key if key[:1] == "\n" else SPACE + key for key in missing]
        for key, ids in zip(missing, self._encode_words(escaped) if escaped else []):
            self._ids[key] = _packed(ids, self._dtype)
            self._bytes += len(key) + _CACHE_ENTRY_BYTES
        look_up = self._ids.__getitem__
        return [list(map(look_up, keys)) for keys in words]

    def _words(self, text: str) -> list[str]:
        if not text:
            return []
        spaced = text.replace("\n", " \n")  # the added space only splits; it is no part of any word
        if "  " in spaced or SPACE in text or text[0] in " \n" or text[-1] == " ":
            # Runs of spaces and literal ▁ are taken apart slowly; single spaces, nearly every text, by `split`.
            return [word if word[0] == "\n" else word[1:] for word in self._split(SPACE + text.replace(" ", SPACE))]
        return spaced.split(" ")


def _packed(ids: Iterable[int], dtype: np.dtype) -> bytes:
    return array("H" if dtype.itemsize == 2 else "I", ids).tobytes()
