"""Prompts and answers as token shards with loss masks, which `pretrain` trains on: only answers are learnt.

    one sample:  BOS prompt answer EOS   BOS prompt answer EOS   EOS EOS EOS
    mask:         0    0      1     1     0    0      1     1     0   0   0

Whole rows are packed into documents of exactly the sequence length, filled up with EOS, so that every training window
is one such document and none cuts an answer off from its question. Attention is that of pretraining, causal over the
window: a row sees the rows packed before it, as it would in a few-shot prompt, unless each row has a window of its own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_shards import tokens
from data_shards.shards import STAGE, ShardManifest, ShardWriter, TokenizerInfo
from job import manifest
from job.errors import InputError
from job.files import atomic_directory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SOURCE = "instructions"
_LARGEST_SHARE_CUT = 0.5


@dataclass(frozen=True)
class Row:
    """Something to answer, and the answer."""

    id: str
    prompt: str
    answer: str
    """follows the prompt as it is: begins with a space where one is wanted"""


@dataclass(frozen=True)
class Encoded:
    """A row as ids."""

    row: Row
    ids: np.ndarray
    """1-D int64, special tokens and EOS included"""
    prompt_tokens: int
    """how many of them the answer follows; at least 1"""
    cut: bool
    """whether the beginning of the prompt was left out"""


@dataclass(frozen=True)
class Packed:
    """What became of the rows."""

    rows: int
    documents: int
    sequence_length: int
    targets: int
    """tokens whose loss counts"""
    filled: float
    """share of the tokens that are not filling"""
    cut: int
    """rows whose prompt lost its beginning"""


def encode(rows: Sequence[Row], directory: Path, longest: int) -> list[Encoded]:
    """Rows as evaluation encodes them: prompt and answer in one go, with the tokenizer's own special tokens.

    Args:
        rows: prompts and answers.
        directory: the model, whose tokenizer is used.
        longest: rows of more tokens lose the beginning of their prompt (but BOS), as lm-eval cuts them; those whose
            answer alone is as long are left out.

    Raises `InputError` where most rows are too long.
    """
    from align.language_model import load_tokenizer

    tokenizer = load_tokenizer(directory)
    begin, end = tokenizer.bos_token_id, tokens.load(directory).eos_id
    whole = _ids(tokenizer, [row.prompt + row.answer for row in rows])
    prompts = _ids(tokenizer, [row.prompt for row in rows])
    encoded = []
    for row, ids, before in zip(rows, whole, prompts, strict=True):
        if ids[-1] != end:
            ids = [*ids, end]
        first = len(before) - 1 if before[-1] == end else len(before)
        surplus = len(ids) - longest
        if surplus > 0:
            kept = 1 if ids[0] == begin else 0
            if first - surplus <= kept:
                continue
            ids, first = ids[:kept] + ids[kept + surplus :], first - surplus
        encoded.append(Encoded(row, np.array(ids, np.int64), first, surplus > 0))
    cut = len(rows) - sum(not one.cut for one in encoded)
    if cut > _LARGEST_SHARE_CUT * len(rows):
        raise InputError(
            f"{cut:,} of {len(rows):,} rows have more than {longest:,} tokens and would lose the beginning of their "
            "prompts; raise --sequence-length, or take a model with a longer context"
        )
    return encoded


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the items in bins that hold `capacity`: best fit, longest first (within 22 % of the fewest bins)."""
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set where a bin has room r left: the smallest that suffices is found in one operation
    for item in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[item]
        sufficient = rooms >> length
        if sufficient:
            room = length + (sufficient & -sufficient).bit_length() - 1
            chosen = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        by_room[room - length].append(chosen)
        rooms |= 1 << (room - length)
    return bins


def write(
    directory: Path,
    encoded: Sequence[Encoded],
    model: Path,
    sequence_length: int,
    packed: bool,
    seed: int,
    provenance: dict[str, Any],
    inputs: list[dict[str, Any]],
) -> Packed:
    """Write the shard set `directory`, whole or not at all; the same rows give the same bytes.

    Args:
        directory: must not exist.
        encoded: the rows, none longer than the sequence length.
        model: whose tokenizer made the ids.
        sequence_length: that training must use too.
        packed: several rows to a document; else each has its own.
        seed: of the order of rows within a document.
        provenance: what made the rows, for the manifest.
        inputs: their files with checksums, likewise.
    """
    tokenizer = tokens.load(model)
    bins = (
        pack([len(one.ids) for one in encoded], sequence_length) if packed else [[item] for item in range(len(encoded))]
    )
    draw = random.Random(seed)
    targets = 0
    with atomic_directory(directory) as folder:
        with ShardWriter(folder / "train" / f"{SOURCE}-000000.tar", tokenizer.dtype) as shard:
            for number, items in enumerate(bins):
                draw.shuffle(items)
                ids = np.full(sequence_length, tokenizer.eos_id, tokenizer.dtype)
                mask = np.zeros(sequence_length, np.uint8)
                place = 0
                for one in (encoded[item] for item in items):
                    ids[place : place + len(one.ids)] = one.ids
                    mask[place + one.prompt_tokens : place + len(one.ids)] = 1
                    place += len(one.ids)
                targets += int(mask.sum())
                shard.add(ids, {"id": f"{SOURCE}-{number}", "rows": [encoded[item].row.id for item in items]}, mask)
        starts = {int(one.ids[0]) for one in encoded}
        described = TokenizerInfo(
            str(tokenizer.path),
            tokenizer.sha256,
            tokenizer.vocab_size,
            tokenizer.bos_id if starts == {tokenizer.bos_id} else None,
            tokenizer.eos_id,
        )
        content = ShardManifest(described, tokenizer.dtype.name, {"train": [shard.info], "validation": []})
        found = Packed(
            len(encoded),
            len(bins),
            sequence_length,
            targets,
            sum(len(one.ids) for one in encoded) / (len(bins) * sequence_length),
            sum(one.cut for one in encoded),
        )
        manifest.write(folder, STAGE, provenance, inputs, content.to_json() | {"packed": vars(found)})
    return found
