"""What `ask` and `chat` share: their options, and an answer that appears as it is generated."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.molecules import read_molecules
from align.prompts import Turn
from align.proteins import read_proteins
from align.settings import read_config
from job.errors import InputError
from job.verbs import check_at_least

if TYPE_CHECKING:
    from align.model import AlignedModel


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where the model is and how it answers."""
    parser.add_argument("model", metavar="MODEL_DIR", type=Path, help="a directory that `python -m align export` made")
    parser.add_argument(
        "--molecule",
        action="append",
        default=[],
        metavar="SMILES|FILE",
        help="SMILES, or a .smi, .sdf or .mol file; repeat it for several",
    )
    parser.add_argument(
        "--protein",
        action="append",
        default=[],
        metavar="SEQUENCE|FILE",
        help="amino acids, or a FASTA file; repeat it for several chains",
    )
    add_loading_options(parser)
    how = parser.add_argument_group("how it answers")
    how.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    how.add_argument("--beams", type=int, default=1, metavar="N", help="beam search; the answer then comes whole")
    how.add_argument("--temperature", type=float, default=0.0, help="above 0: sample (default 0: the likeliest word)")
    how.add_argument(
        "--top-p", type=float, default=1.0, help="sample among the likeliest words of this much probability"
    )
    how.add_argument("--repetition-penalty", type=float, default=1.0, help="above 1: repeat less (released model: 1.5)")
    how.add_argument("--seed", type=int, default=0, help="of sampling")


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Where and how the model is loaded."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="of the language model (default: bfloat16 on a GPU)",
    )
    parser.add_argument("--language-model", type=Path, metavar="DIR", help="where the language model lies, if it moved")


def generation_options(options: argparse.Namespace) -> dict[str, Any]:
    """The options as transformers' `generate` calls them; raises `InputError` for values out of range."""
    check_at_least(options, max_new_tokens=1, beams=1, temperature=0)
    if not 0 < options.top_p <= 1:
        raise InputError(f"--top-p must be above 0 and at most 1, not {options.top_p}")
    if options.repetition_penalty <= 0:
        raise InputError(f"--repetition-penalty must be above 0, not {options.repetition_penalty}")
    chosen = {
        "max_new_tokens": options.max_new_tokens,
        "num_beams": options.beams,
        "repetition_penalty": options.repetition_penalty,
    }
    if options.temperature > 0:
        chosen |= {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
    return chosen


def read_structures(molecules: Sequence[str], proteins: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """SMILES and sequences of what `--molecule` and `--protein` name; raises `InputError` where one cannot be read."""
    return (
        tuple(smiles for given in molecules for smiles in read_molecules(given)),
        tuple(chain for given in proteins for chain in read_proteins(given)),
    )


def load(options: argparse.Namespace) -> AlignedModel:
    """The model on its device, and what is random seeded by `options.seed`; raises `InputError`."""
    read_config(options.model)  # torch takes seconds; a wrong path should not

    import torch

    from align.model import AlignedModel

    try:
        device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise InputError(f"--device {options.device} is none; use cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {options.device}: there is no usable GPU")
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    torch.manual_seed(options.seed)
    return AlignedModel.from_pretrained(options.model, dtype, device, language_model=options.language_model)


def answer(model: AlignedModel, turns: Sequence[Turn], chosen: dict[str, Any], show: bool) -> str:
    """Generate the answer to the last turn, and with `show` print it as it comes. Says where a chain is cropped."""
    limit = model.settings.protein.max_residues if model.settings.protein is not None else 0
    for length in (len(chain) for chain in turns[-1].proteins if len(chain) > limit > 0):
        print(f"(of a chain of {length:,} residues the model reads the first {limit:,})", file=sys.stderr, flush=True)
    if not show or chosen["num_beams"] > 1:
        text = model.generate([turns], **chosen)[0]
        if show:
            print(text)
        return text

    from align.streamer import AnswerStreamer

    streamer = AnswerStreamer(model.tokenizer, [model.settings.prompt.separator], sys.stdout)
    return model.generate([turns], streamer=streamer, **chosen)[0]
