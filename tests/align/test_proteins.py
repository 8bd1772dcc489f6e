"""Sequences to ids: ESM's own alphabet on real proteins, and a stated policy for what it lacks."""

import gzip
import json

import esm
import numpy as np
import pytest
from transformers import EsmTokenizer

from align.proteins import CLS, EOS, TOKENS, UNKNOWN, ProteinError, clean, count_tokens, read_proteins, tokenise
from job.errors import InputError

ALPHABET = esm.data.Alphabet.from_architecture("ESM-1b")


def uniprot(real_data):
    with open(real_data / "uniprot" / "uniprot_entries.open.jsonl", encoding="utf-8") as lines:
        return [json.loads(line)["sequence"] for line in lines]


def test_ids_equal_fair_esm_on_real_proteins(real_data):
    assert list(TOKENS) == ALPHABET.all_toks
    sequences = uniprot(real_data)
    assert len(sequences) > 300
    assert any(set(sequence) & set("XBUZO") for sequence in sequences)
    for sequence in [*sequences, "ACDEFGHIKLMNPQRSTVWYXBZUO.-"]:
        ids = tokenise(sequence, max_residues=len(sequence))
        assert ids.tolist() == [CLS, *ALPHABET.encode(sequence), EOS]
        assert ids.dtype == np.int64
        assert count_tokens(sequence, len(sequence)) == len(ids)


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("mktV\n  RQE\t", "MKTVRQE"),
        ("MKTV*", "MKTV"),
        ("MK-T.V", "MK-T.V"),
        ("MKUOBZX", "MKUOBZX"),
    ],
)
def test_policy(given, cleaned):
    assert clean(given) == cleaned
    assert tokenise(given).tolist() == [CLS, *(ALPHABET.get_idx(letter) for letter in cleaned), EOS]


def test_what_the_alphabet_lacks(tmp_path):
    """The 27th letter is unknown to transformers' tokenizer too, with which the released model read its proteins."""
    (tmp_path / "vocab.txt").write_text("\n".join(TOKENS))
    tokenizer = EsmTokenizer(str(tmp_path / "vocab.txt"))
    assert tokenise("MKJTV").tolist() == tokenizer("MKJTV").input_ids
    assert tokenise("J").tolist() == [CLS, UNKNOWN, EOS]


@pytest.mark.parametrize(
    ("sequence", "reason", "message"),
    [
        ("", "empty sequence", "empty"),
        (" *\n", "empty sequence", "empty"),
        ("MK*TV", "invalid sequence", r"position 3, a stop codon"),
        ("MKT1V", "invalid sequence", r"position 4, the character '1'"),
        ("MKαV", "invalid sequence", r"position 3, the character 'Α'"),
        ("MK<mask>V", "invalid sequence", r"position 3, the character '<'"),
    ],
)
def test_refusals(sequence, reason, message):
    for function in (clean, tokenise, count_tokens):
        with pytest.raises(ProteinError, match=message) as error:
            function(sequence)
        assert error.value.reason == reason and "\n" not in str(error.value)


def test_long_chains_keep_their_start(real_data):
    sequence = max(uniprot(real_data), key=len)
    assert len(sequence) > 1022
    ids = tokenise(sequence)
    assert len(ids) == 1024 == count_tokens(sequence)
    assert np.array_equal(ids[:-1], tokenise(sequence, len(sequence))[:1023]) and ids[-1] == EOS
    assert tokenise(sequence, 3).tolist() == [CLS, *ALPHABET.encode(sequence[:3]), EOS]


def test_reads_fasta(real_data, tmp_path):
    sequences = uniprot(real_data)[:5]
    wrapped = ["\n".join(s[i : i + 60] for i in range(0, len(s), 60)) for s in sequences]
    text = "".join(f">sp|P{n}|X some protein\n{s}*\n\n" for n, s in enumerate(wrapped))
    (tmp_path / "p.fasta").write_text(text)
    (tmp_path / "p.fa.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "bare.faa").write_text(wrapped[0])
    assert read_proteins(sequences[0]) == sequences[:1]
    assert read_proteins(text) == read_proteins(str(tmp_path / "p.fasta")) == sequences
    assert read_proteins(str(tmp_path / "p.fa.gz")) == sequences
    assert read_proteins(str(tmp_path / "bare.faa")) == sequences[:1]


def test_damaged_fasta_names_the_place(tmp_path):
    (tmp_path / "bad.fasta").write_text(">one\nMKTV\n>two words\nMK7V\n")
    with pytest.raises(ProteinError, match=r"bad\.fasta, record 'two words': .*position 3, the character '7'"):
        read_proteins(str(tmp_path / "bad.fasta"))
    (tmp_path / "bad.fasta").write_text(">one\n>two\nMKTV\n")
    with pytest.raises(ProteinError, match="record 'one': the protein sequence is empty"):
        read_proteins(str(tmp_path / "bad.fasta"))
    (tmp_path / "empty.fasta").write_text("\n")
    with pytest.raises(InputError, match="no sequences"):
        read_proteins(str(tmp_path / "empty.fasta"))
    (tmp_path / "cut.fa.gz").write_bytes(gzip.compress(b">one\nMKTV" * 100)[:20])
    for name, message in (("cut.fa.gz", "is damaged"), ("none.fasta", "No such file")):
        with pytest.raises(InputError, match=message):
            read_proteins(str(tmp_path / name))
    (tmp_path / "utf16.fasta").write_bytes(">one\nMKTV".encode("utf-16"))
    with pytest.raises(InputError, match="cannot be read"):
        read_proteins(str(tmp_path / "utf16.fasta"))
