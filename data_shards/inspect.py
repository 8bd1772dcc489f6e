"""`python -m data_shards inspect DIR`: what is really in the shards, as text, as tokens, and where it came from."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from data_shards import tokens
from data_shards.order import TrainingWindows
from data_shards.shards import DOCUMENTS, ShardSet, blocks
from job.errors import InputError

_ID_KEYS = ("id", "pmid", "pmcid", "doi")


def find(shards: ShardSet, identifier: str) -> int:
    """The number of the document with this id, PMID, PMCID or DOI; raises `InputError` where there is none."""
    for number, record in shards.records():
        if any(str(record.get(key)) == identifier for key in _ID_KEYS):
            return number
    raise InputError(
        f"no document of the split '{shards.split}' of {shards.directory} has the id, PMID, PMCID or DOI "
        f"'{identifier}' (it may have been dropped, or lie in the other split: try --split)"
    )


def record_of(shards: ShardSet, document: int) -> tuple[dict[str, Any], str]:
    """A document's record, and where it lies: shard and block."""
    shard, number = shards.locate(document)
    offset = int(shard.index["offset"][number])
    for block in blocks(shard.path):
        members = list(block.members.values())
        if offset < members[-1].offset_data:
            begin = members[0].offset
            first = int(np.searchsorted(shard.index["offset"], begin))
            lines = block.read(DOCUMENTS).decode().split("\n")
            return json.loads(lines[number - first]), f"{shard.path}, block {block.key}, byte {offset}"
    raise InputError(f"the index of {shard.path} places document {number} beyond its last block; run verify")


def main(arguments: list[str]) -> int:
    """The verb."""
    parser = argparse.ArgumentParser(
        prog="python -m data_shards inspect",
        description="Show what is in a build: an overview, single documents (text, tokens, provenance), or the windows "
        "that training will read.",
        epilog="examples: inspect DIR;  inspect DIR --document 33957517;  inspect DIR --index 0 --tokens 40;  "
        "inspect DIR --sample 0 --sequence-length 2048 --seed 1234",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="the output of `data_shards build`")
    parser.add_argument("--split", default="train", help="train or validation (default: train)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--document", metavar="ID", help="the document with this id, PMID, PMCID or DOI")
    what.add_argument("--index", type=int, metavar="N", help="document number N of the split, from 0")
    what.add_argument("--random", type=int, metavar="COUNT", help="COUNT documents by lot (the same at each call)")
    what.add_argument("--sample", type=int, metavar="N", help="training window N of this corpus read alone")
    parser.add_argument("--sequence-length", type=int, default=2048, help="of --sample (default: 2048)")
    parser.add_argument("--seed", type=int, default=1234, help="data seed of --sample (default: 1234)")
    parser.add_argument("--tokens", type=int, default=0, metavar="COUNT", help="also list the first COUNT tokens")
    parser.add_argument("--tokenizer", type=Path, help="where the tokenizer lies now, if not where the manifest says")
    options = parser.parse_args(arguments)

    shards = ShardSet(options.directory, options.split)
    tokenizer = tokenizer_of(shards, options.tokenizer)
    if options.sample is not None:
        _show_window(shards, tokenizer, options.sample, options.sequence_length, options.seed, options.tokens)
        return 0
    if options.document is not None:
        numbers = [find(shards, options.document)]
    elif options.index is not None:
        if not 0 <= options.index < len(shards):
            raise InputError(
                f"--index {options.index}: the split '{shards.split}' has documents 0 to {len(shards) - 1}"
            )
        numbers = [options.index]
    elif options.random is not None:
        numbers = sorted(random.Random(0).sample(range(len(shards)), min(options.random, len(shards))))
    else:
        _show_overview(shards)
        return 0
    for number in numbers:
        _show_document(shards, tokenizer, number, options.tokens)
    return 0


def tokenizer_of(shards: ShardSet, given: Path | None = None) -> tokens.Tokenizer:
    """The tokenizer that made the ids, from where the manifest says or `given`.

    Raises `InputError` where there is none, or another one.
    """
    described = shards.manifest.tokenizer
    path = given or Path(described.path)
    if not path.exists():
        raise InputError(f"the tokenizer {path} of this build does not exist here; name it by --tokenizer")
    tokenizer = tokens.load(path)
    if tokenizer.sha256 != described.sha256:
        raise InputError(f"{path} is not the tokenizer of this build (checksum differs); name the right one")
    return tokenizer


def _show_overview(shards: ShardSet) -> None:
    tokenizer = shards.manifest.tokenizer
    print(f"{shards.directory}: {shards.manifest.dtype} ids of {tokenizer.path} ({tokenizer.vocab_size:,} pieces)")
    for split, infos in shards.manifest.splits.items():
        documents, total = sum(info.documents for info in infos), sum(info.tokens for info in infos)
        print(f"{split}: {len(infos)} shards, {documents:,} documents, {total:,} tokens")
        for info in infos:
            print(f"  {info.name}: {info.documents:,} documents, {info.tokens:,} tokens, {info.blocks} blocks")


def _show_document(shards: ShardSet, tokenizer: tokens.Tokenizer, document: int, count: int) -> None:
    record, place = record_of(shards, document)
    ids = shards[document]
    shard, number = shards.locate(document)
    mask = shard.loss_mask(number)
    counted = "" if mask is None else f", {int(mask.sum()):,} of them with loss"
    print(f"document {document:,} of {len(shards):,} ({shards.split}), {len(ids):,} tokens{counted}; {place}")
    for key, value in record.items():
        if value not in (None, ""):
            print(f"  {key}: {value}")
    print(f"\n{tokenizer.decode(ids)}\n")
    _show_tokens(tokenizer, ids, count)


def _show_window(
    shards: ShardSet, tokenizer: tokens.Tokenizer, sample: int, sequence_length: int, seed: int, count: int
) -> None:
    windows = TrainingWindows(shards, sequence_length, seed)
    ids = windows[sample]
    print(
        f"sample {sample:,}: {sequence_length} inputs, epoch {windows.epochs(sample):.4f}, seed {seed}; its documents:"
    )
    for epoch, document in windows.documents(sample):
        record, place = record_of(shards, document)
        print(f"  epoch {epoch}, document {document:,}: {record['id']}; {place}")
    print(f"\n{_with_borders(tokenizer, ids)}\n")
    _show_tokens(tokenizer, ids, count)


def _with_borders(tokenizer: tokens.Tokenizer, ids: np.ndarray) -> str:
    """The text of a window, with EOS and BOS on a line of their own wherever one document ends and the next begins."""
    lines: list[str] = []
    ends = np.flatnonzero(ids == tokenizer.eos_id)
    for piece in np.split(ids, ends + 1):
        if len(piece) == 0:
            continue
        ended, begun = piece[-1] == tokenizer.eos_id, piece[0] == tokenizer.bos_id
        marks = [tokenizer.piece(tokenizer.bos_id)] if begun and tokenizer.bos_id is not None else []
        if marks and lines:  # beside the EOS of the document before it
            lines[-1] += f" {marks.pop()}"
        lines += [*marks, tokenizer.decode(piece)] + ([tokenizer.piece(tokenizer.eos_id)] if ended else [])
    return "\n".join(lines)


def _show_tokens(tokenizer: tokens.Tokenizer, ids: np.ndarray, count: int) -> None:
    for token_id in ids[:count].tolist():
        print(f"  {token_id:>6}  {tokenizer.piece(token_id)!r}")
