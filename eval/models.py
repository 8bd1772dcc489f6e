"""A model directory of either kind, loaded for evaluation."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from align.language_model import load_tokenizer
from align.settings import MODEL_TYPE
from job import manifest
from job.errors import InputError, first_line
from job.files import read_json, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from align.model import AlignedModel  # its encoders' libraries take a second to import


@dataclass
class EvalModel:
    """A causal language model with its tokenizer; with encoders where the directory is an aligned model's."""

    directory: Path
    checksum: str
    """SHA-256 over its files, see `checksum`"""
    language_model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    aligned: AlignedModel | None
    """the whole, of which `language_model` is a part"""

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return next(self.language_model.parameters()).device

    @property
    def max_length(self) -> int:
        """Tokens that the model was made for."""
        return int(getattr(self.language_model.config, "max_position_embeddings", 2048))


_NOT_THE_MODEL = {".md", ".png", ".log"}
"""endings of files that change nothing about what a model says"""


_MOST_ROWS_PER_TOKEN = 2
"""of an embedding, which is padded to a multiple of something; ByT5's 259 tokens have 384 rows"""


def checksum(directory: Path) -> str:
    """SHA-256 that stands for a model: over names and contents of its config, weights, tokenizer, generation settings.

    Where an aligned model refers to a language model elsewhere, its config.json names that one's checksum, which is
    checked when it is loaded. Raises `InputError` where the directory has no config.json.
    """
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}/config.json does not exist; a Hugging Face model directory is needed")
    files = [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file()
        and path.suffix not in _NOT_THE_MODEL
        and path.name != manifest.NAME
        and not any(part.startswith((".", "LICENSE")) for part in path.relative_to(directory).parts)
    ]
    with ThreadPoolExecutor(max_workers=4) as pool:
        lines = [
            f"{found}  {file.relative_to(directory)}\n" for file, found in zip(files, pool.map(sha256_file, files))
        ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def load(directory: Path, dtype: torch.dtype, device: torch.device) -> EvalModel:
    """Load a Hugging Face causal language model, or an aligned model, with its tokenizer.

    Raises `InputError` where it cannot be loaded, or where its tokenizer is of another model: it has ids without an
    embedding, or far too few.
    """
    disable_progress_bar()
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device} cannot be used here: {str(error).splitlines()[0]}") from None
    identity = checksum(directory)
    aligned = None
    language_model: Any
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise InputError(f"{directory}/config.json is not the config of a model: it holds no JSON object")
    if config.get("model_type") == MODEL_TYPE:
        from align.model import AlignedModel

        aligned = AlignedModel.from_pretrained(directory, dtype=dtype, device=device)
        language_model, tokenizer = aligned.language_model, aligned.tokenizer
    else:
        try:
            language_model = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # a damaged directory raises nearly anything
            reason = first_line(error)
            raise InputError(f"{directory} is not a model that transformers loads: {reason}") from error
        language_model.to(device).eval()
        tokenizer = _tokenizer(directory)
    rows = language_model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"{directory}: its tokenizer has {len(tokenizer):,} tokens, but the model embeds {rows:,}; the two do not "
            "belong together"
        )
    if rows > _MOST_ROWS_PER_TOKEN * len(tokenizer):
        raise InputError(
            f"{directory}: the model embeds {rows:,} tokens, but its tokenizer has only {len(tokenizer):,}; the two do "
            "not belong together"
        )
    return EvalModel(directory, identity, language_model, tokenizer, aligned)


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """With the ids of training where it is of the Llama family; else as transformers loads it (BioGPT's, for one)."""
    if (directory / "tokenizer.model").is_file() or (directory / "tokenizer.json").is_file():
        return load_tokenizer(directory)
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # files that are missing or damaged, a package that its class needs
        reason = first_line(error)
        raise InputError(f"{directory} has no tokenizer that transformers loads: {reason}") from error
