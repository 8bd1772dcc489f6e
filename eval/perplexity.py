"""Loss, perplexity and bits per byte of a model on the validation windows of one source.

Bits per byte (Gao et al. 2020, "The Pile", section 3.1) do not depend on the tokenizer: nats / ln 2 / UTF-8 bytes of
the text that the counted tokens stand for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from data_shards.order import ValidationWindows
from eval.models import EvalModel
from eval.results import Metric, TaskResult
from eval.trust.statistics import ratio_interval
from eval.work import Journal, Record, work_through
from job.errors import InputError
from job.files import sha256_file
from job.tokenizer import find_file


def measure(
    source: str,
    version: str,
    windows: ValidationWindows,
    model: EvalModel,
    journal: Journal,
    token_budget: int,
    limit: int,
    seed: int,
    made_by: dict[str, Any],
) -> TaskResult:
    """Score the windows that training validates on (the first `limit` of them, unless it is 0).

    Raises `InputError` where the shards hold ids of another tokenizer, or windows longer than the model was made for.
    """
    _check_tokenizer(windows, model)
    size = windows.shards.manifest.tokenizer.vocab_size
    if windows.sequence_length > model.max_length:
        raise InputError(
            f"{model.directory} was made for {model.max_length} tokens; set --sequence-length to that or less"
        )
    # Instruction data may have windows whose loss masks leave out every target.
    numbers = [number for number in range(min(len(windows), limit or len(windows))) if windows[number][1].any()]
    if not numbers:
        raise InputError(f"{windows.shards.directory}: the loss masks of {source} leave out every target")
    token_bytes = bytes_by_token(model.tokenizer, size)

    def work(rows: list[int]) -> list[Record]:
        return _score([windows[row] for row in rows], rows, model, token_bytes)

    records = work_through(
        [f"window-{number}" for number in numbers],
        [windows.sequence_length] * len(numbers),
        work,
        journal,
        token_budget,
        f"perplexity of {source}",
    )
    nats = np.array([record["nats"] for record in records])
    tokens = np.array([record["tokens"] for record in records], np.float64)
    text = np.array([record["bytes"] for record in records], np.float64)
    loss, loss_low, loss_high = _ratio(nats, tokens, seed)
    bits, bits_low, bits_high = (value / math.log(2) for value in _ratio(nats, text, seed))
    metrics = {
        "loss": Metric(loss, loss_low, loss_high, higher_is_better=False),
        "perplexity": Metric(_exp(loss), _exp(loss_low), _exp(loss_high), higher_is_better=False),
        "bits_per_byte": Metric(bits, bits_low, bits_high, higher_is_better=False),
    }
    items = [record | {"score": record["nats"] / record["tokens"]} for record in records]
    made_by = made_by | {"tokens": int(tokens.sum()), "bytes": int(text.sum()), "windows": len(numbers)}
    return TaskResult(source, version, metrics, items, made_by)


def _check_tokenizer(windows: ValidationWindows, model: EvalModel) -> None:
    """Whether the shards hold the model's ids: the same sentencepiece file; else, at least, vocabularies of like size.

    Files in the format of Hugging Face are written again by every program that saves them: they may differ in bytes.
    """
    shards = windows.shards.manifest.tokenizer
    file, source = _tokenizer_file(model.directory), _tokenizer_file(Path(shards.path))
    agree = file.is_file() and sha256_file(file) == shards.sha256
    if not agree and not file.suffix == source.suffix == ".model":
        agree = model.tokenizer.vocab_size <= shards.vocab_size <= len(model.tokenizer)
    if not agree:
        raise InputError(
            f"{windows.shards.directory} was tokenised with {shards.path} ({shards.vocab_size:,} tokens), which is not "
            f"the tokenizer of {model.directory} ({len(model.tokenizer):,}); build shards with that one"
        )


def _tokenizer_file(path: Path) -> Path:
    """What defines the ids, where it is one file and still there."""
    try:
        return find_file(path)
    except InputError:
        return path


def bytes_by_token(tokenizer: PreTrainedTokenizerBase, size: int) -> np.ndarray:
    """UTF-8 bytes of the text that each id stands for, int64 [size]; none for special tokens."""
    pieces: Sequence[str] = tokenizer.convert_ids_to_tokens(list(range(size)))
    special = set(tokenizer.all_special_ids)
    if "<0x0A>" in pieces:  # sentencepiece with bytes for what has no piece
        lengths = [1 if _is_byte(piece) else len(piece.replace("▁", " ").encode()) for piece in pieces]
    elif "Ġ" in pieces:  # byte-level: each character of a piece stands for one byte
        lengths = [len(piece) for piece in pieces]
    else:
        lengths = [len(str(tokenizer.decode([number])).encode()) for number in range(size)]
    return np.array([0 if number in special else length for number, length in enumerate(lengths)], np.int64)


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


@torch.no_grad()
def _score(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], rows: Sequence[int], model: EvalModel, token_bytes: np.ndarray
) -> list[Record]:
    tokens = torch.from_numpy(np.stack([pair[0] for pair in pairs])).to(model.device)
    mask = torch.from_numpy(np.stack([pair[1] for pair in pairs])).to(model.device)
    network: Any = model.language_model
    logits = network(tokens[:, :-1]).logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(mask.shape)
    nats = (losses.double() * mask).sum(1).tolist()
    return [
        {
            "id": f"window-{row}",
            "nats": total,
            "tokens": int(kept.sum()),
            "bytes": int(token_bytes[ids[1:][kept]].sum()),
        }
        for row, total, (ids, kept) in zip(rows, nats, pairs, strict=True)
    ]


def _ratio(above: np.ndarray, below: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Sum over sum, with its interval over windows."""
    return float(above.sum() / below.sum()), *ratio_interval(above, below, seed)


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))
