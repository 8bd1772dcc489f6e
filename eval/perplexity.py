"""Loss and perplexity of Hugging Face models on the validation split of token shards, per source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from data_shards.order import ValidationWindows
from data_shards.validation import validation_sources
from job.errors import InputError


@dataclass(frozen=True)
class Score:
    """One model on one source."""

    tokens: int
    """targets that count"""
    loss: float
    """nats per token"""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


def perplexity(model_directory: Path, shards: Sequence[Path], sequence_length: int, batch: int = 8) -> dict[str, Score]:
    """Score a model with `transformers` over the windows that training validates on, source by source.

    Raises `InputError` where the model cannot be loaded or the shards hold ids that it does not know.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(model_directory, dtype="auto")
        model.to(device).eval()
    except (OSError, ValueError) as error:
        raise InputError(f"{model_directory} is not a model that transformers loads: {error}") from None
    sources = validation_sources({directory.resolve().name: directory for directory in shards}, sequence_length)
    if not sources:
        raise InputError(f"{_names(shards)}: no validation tokens; build with sharding.validation_fraction above 0")
    for windows in sources.values():
        size = windows.shards.manifest.tokenizer.vocab_size
        if size > model.config.vocab_size:
            raise InputError(f"{_names(shards)}: tokenised with {size} tokens, more than {model_directory} knows")
    return {source: _score(model, windows, batch, device) for source, windows in sources.items()}


def _names(directories: Sequence[Path]) -> str:
    return ", ".join(map(str, directories))


@torch.no_grad()
def _score(model: Any, windows: ValidationWindows, batch: int, device: torch.device) -> Score:
    total, count = 0.0, 0
    for start in range(0, len(windows), batch):
        pairs = [windows[index] for index in range(start, min(start + batch, len(windows)))]
        tokens = torch.from_numpy(np.stack([pair[0] for pair in pairs])).to(device)
        mask = torch.from_numpy(np.stack([pair[1] for pair in pairs])).to(device)
        logits = model(tokens[:, :-1]).logits.float()
        losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(mask.shape)
        total += float((losses.double() * mask).sum())
        count += int(mask.sum())
    return Score(count, total / count)


def to_json(scores: dict[str, Score]) -> dict[str, Any]:
    """Scores as a JSON object, perplexity included."""
    return {source: asdict(score) | {"perplexity": score.perplexity} for source, score in scores.items()}
