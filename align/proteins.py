"""Proteins as ids: amino-acid sequences to the alphabet that every ESM-2 shares.

What ESM's alphabet has is kept as it is: the twenty amino acids, X B U Z O, and the gaps `.` and `-`. Of the rest,

- lower case, which marks masked regions in FASTA files, is read as upper case;
- J (leucine or isoleucine), which the alphabet lacks, is `<unk>`, as in transformers' `EsmTokenizer`;
- `*` at the end, a translated stop codon, is dropped, and refused elsewhere: the chain has ended there;
- white space is dropped, and anything else refused.

A chain longer than the limit keeps its first residues (the N-terminus), between `<cls>` and `<eos>`, as the tokenizer
of the released BioMedGPT truncates. ESM-2 was trained on at most 1,022 residues.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_shards.readers.streams import read_whole
from job.errors import InputError

MAX_RESIDUES = 1022
"""Residues of a chain that are read unless the caller says otherwise: ESM-2's training length."""

TOKENS = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
"""ESM-2's vocabulary in the order of its ids: fair-esm's `Alphabet.from_architecture("ESM-1b")`."""
CLS, PAD, EOS, UNKNOWN, MASK = (TOKENS.index(token) for token in ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>"))

_REFUSED = -1
_IDS = np.full(256, _REFUSED, dtype=np.int64)
for _token in range(UNKNOWN + 1, TOKENS.index("<null_1>")):
    _IDS[ord(TOKENS[_token])] = _token
_IDS[ord("J")] = UNKNOWN

_FASTA_SUFFIXES = (".fasta", ".fa", ".faa", ".fasta.gz", ".fa.gz", ".faa.gz")
_SHOWN_CHARACTERS = 40


class ProteinError(InputError):
    """A protein that cannot be read. `reason` is one of a few short texts, for counting; the message has the rest."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def clean(sequence: str) -> str:
    """The chain in upper case without white space and final `*`, by the policy above.

    Raises `ProteinError` naming the first character that is refused and its position, or where nothing is left.
    """
    cleaned = "".join(sequence.split()).upper().rstrip("*")
    if not cleaned:
        raise ProteinError("the protein sequence is empty; give a sequence, or leave it out", "empty sequence")
    codes = _codes(cleaned)
    refused = np.flatnonzero(_IDS[codes] == _REFUSED)
    if len(refused):
        position = int(refused[0])
        shown = cleaned if len(cleaned) <= _SHOWN_CHARACTERS else f"{cleaned[:_SHOWN_CHARACTERS]}..."
        what = (
            "a stop codon ('*') in the middle; give each chain by itself"
            if cleaned[position] == "*"
            else f"the character {cleaned[position]!r}, which is no amino acid"
        )
        raise ProteinError(f"protein sequence '{shown}' has, at position {position + 1}, {what}", "invalid sequence")
    return cleaned


def tokenise(sequence: str, max_residues: int = MAX_RESIDUES) -> np.ndarray:
    """Ids int64 [r + 2] of a chain: `<cls>`, its first r = min(length, max_residues) residues, `<eos>`.

    Raises `ProteinError` as `clean` does.
    """
    residues = _IDS[_codes(clean(sequence)[:max_residues])]
    return np.concatenate(([CLS], residues, [EOS]))


def count_tokens(sequence: str, max_residues: int = MAX_RESIDUES) -> int:
    """How many ids `tokenise` gives; raises `ProteinError` as it does."""
    return min(len(clean(sequence)), max_residues) + 2


def read_proteins(text_or_path: str) -> list[str]:
    """Chains of a sequence, of FASTA text, or of a FASTA file (`.fasta`, `.fa`, `.faa`, also `.gz`), cleaned, in order.

    Raises `InputError` where a file does not exist or has no sequences, `ProteinError` where a chain cannot be read.
    """
    text = text_or_path.strip()
    if not text.lower().endswith(_FASTA_SUFFIXES):
        if not text.startswith(">"):
            return [clean(text)]
        return [_cleaned("the FASTA text", *record) for record in _fasta(text.splitlines())]
    path = Path(text)
    try:
        lines = read_whole(path).decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: {error}; give a FASTA file") from error
    chains = [_cleaned(str(path), *record) for record in _fasta(lines)]
    if not chains:
        raise InputError(f"{path} has no sequences in it; a FASTA file has lines that begin with '>'")
    return chains


def _codes(sequence: str) -> np.ndarray:
    """One byte per character; those outside Latin-1 become `?`, which is refused."""
    return np.frombuffer(sequence.encode("latin-1", "replace"), dtype=np.uint8)


def _fasta(lines: list[str]) -> Iterator[tuple[str, str]]:
    name: str | None = None
    parts: list[str] = []
    for line in lines:
        if line.startswith(">"):
            if name is not None:
                yield name, "".join(parts)
            name, parts = line[1:].strip(), []
        elif name is not None:
            parts.append(line)
        elif line.strip():
            name, parts = "", [line]  # a file of one bare sequence
    if name is not None:
        yield name, "".join(parts)


def _cleaned(where: str, name: str, sequence: str) -> str:
    try:
        return clean(sequence)
    except ProteinError as error:
        raise ProteinError(f"{where}, record '{name}': {error}", error.reason) from None
