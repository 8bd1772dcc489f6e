"""Whether a directory's tokenizer, as transformers loads it, gives the ids that its model was trained with."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from job.tokenizer import PROBES

if TYPE_CHECKING:
    from eval.models import EvalModel


def note(model: EvalModel) -> str | None:
    """A sentence where `AutoTokenizer` of the directory encodes otherwise than we do, so that stock lm-eval does too.

    transformers 5 does so with a sentencepiece `tokenizer.model` that has no `tokenizer.json` beside it. None where the
    ids are equal, or where the directory is none that lm-eval's Hugging Face backend loads.
    """
    if model.aligned is not None or not model.directory.is_dir():
        return None
    theirs = _ids(model.directory)
    ours = [list(model.tokenizer(text)["input_ids"]) for text in PROBES]
    if theirs is None or theirs == ours:
        return None
    return (
        "the directory's tokenizer, as AutoTokenizer loads it, gives other ids than the model was trained with; here "
        "they are the trained ones, so `lm_eval --model hf` on this directory gives other numbers (it agrees on an "
        "export with its tokenizer.json)"
    )


@functools.cache
def _ids(directory: Path) -> list[list[int]] | None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        return [list(tokenizer(text)["input_ids"]) for text in PROBES]
    except Exception:  # whatever a directory's own tokenizer raises: then stock lm-eval does not run on it either
        return None
