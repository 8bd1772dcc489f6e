"""`python -m parallel create`: a Hugging Face model directory with random weights, for models trained from scratch."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from job.errors import InputError
from job.files import read_json
from parallel.shape import shape_of


def create_main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        prog="python -m parallel create",
        description="Write a Hugging Face model directory with random weights, the same for the same seed whatever the "
        "layout that trains it. `import` then turns it into a checkpoint.",
        epilog="example: python -m parallel create configs/demo/model.json tokenizer models/tiny --seed 1",
    )
    parser.add_argument("config", metavar="CONFIG.json", type=Path, help="a Hugging Face config.json")
    parser.add_argument("tokenizer", metavar="TOKENIZER_DIR", type=Path, help="its tokenizer, copied along")
    parser.add_argument("destination", metavar="HF_DIR", type=Path, help="a directory that does not exist yet")
    parser.add_argument("--seed", type=int, default=1234, help="seed of the weights (default 1234)")
    options = parser.parse_args(arguments)
    create_model(options.config, options.tokenizer, options.destination, options.seed)


def create_model(config_file: Path, tokenizer: Path, destination: Path, seed: int) -> None:
    """Initialise as transformers does (normal, `initializer_range`), in float32, and save with the tokenizer.

    The vocabulary is the tokenizer's where the config does not say. Raises `InputError` where config and tokenizer do
    not fit or `destination` exists.
    """
    if destination.exists():
        raise InputError(f"{destination} exists already; remove it or choose another directory")
    tokenizer_file = tokenizer / "tokenizer.json"
    if not tokenizer_file.exists():
        raise InputError(
            f"{tokenizer_file} does not exist; a directory that `python -m data_shards tokenizer` made, or any Hugging "
            "Face fast tokenizer, has one"
        )
    from tokenizers import Tokenizer

    size = Tokenizer.from_file(str(tokenizer_file)).get_vocab_size()
    values = {"vocab_size": size, **read_json(config_file)}
    shape = shape_of(values, str(config_file))
    if shape.vocabulary < size:
        raise InputError(f"{config_file} has vocab_size {shape.vocabulary}, but {tokenizer_file} has {size} tokens")
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(destination)
    for file in tokenizer.glob("*token*"):
        shutil.copyfile(file, destination / file.name)
    print(f"{destination}: {shape.parameters:,} parameters, seed {seed}")
