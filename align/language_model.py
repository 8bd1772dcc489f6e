"""The language model of an aligned model: a Hugging Face directory, its tokenizer, its checksum, and LoRA on it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from align.settings import LoraSettings
from job.errors import InputError, first_line
from job.files import sha256_file
from job.tokenizer import read_settings, write_hf_tokenizer

if TYPE_CHECKING:
    from peft import LoraConfig  # takes seconds to import, and few models have LoRA

LORA_CONFIG, LORA_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # as peft names them
_LORA_MARK = ".lora_"
_PEFT_PREFIX = "base_model.model."

# Settings by which some families change logits after the output layer, which the loss here calls by itself.
_LOGIT_CHANGES = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}


def load_language_model(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model of a Hugging Face directory, from safetensors only, in evaluation mode and frozen.

    Raises `InputError` where the directory has no such model or the family's logits are not the output layer's.
    """
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}/config.json does not exist; a Hugging Face language model directory is needed")
    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{directory} cannot be loaded as a language model: {first_line(error)}") from None
    for name, neutral in _LOGIT_CHANGES.items():
        if getattr(model.config, name, neutral) not in (None, neutral):
            raise InputError(
                f"{directory}: models of type {model.config.model_type} change their logits after the output layer "
                f"({name}), which is not supported; Llama, Mistral and Qwen2 are"
            )
    return model.eval().requires_grad_(False)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory with the ids of training (see `job.tokenizer`); raises `InputError`."""
    with tempfile.TemporaryDirectory() as converted:
        write_hf_tokenizer(directory, Path(converted))
        if "tokenizer_class" not in read_settings(Path(converted)) and (directory / "config.json").is_file():
            # Without a class, AutoTokenizer goes by the model's type.
            (Path(converted) / "config.json").write_bytes((directory / "config.json").read_bytes())
        return AutoTokenizer.from_pretrained(converted, local_files_only=True, trust_remote_code=False)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((place for place in map(text.find, stops) if place >= 0), default=len(text))]


def model_checksum(directory: Path) -> str:
    """SHA-256 over names and contents of config.json and every safetensors file of a model directory."""
    files = [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
    with ThreadPoolExecutor(max_workers=4) as pool:
        checksums = list(pool.map(sha256_file, files))
    lines = [f"{checksum}  {file.name}\n" for checksum, file in zip(checksums, files, strict=True)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> None:
    """Add LoRA layers to the language model, in place; their weights are float32 and B is 0, so nothing changes yet.

    Raises `InputError` where a module name fits no layer.
    """
    from peft import LoraConfig

    _inject(
        model,
        LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,  # type: ignore[arg-type]  # its annotation is narrower than its code
            lora_dropout=settings.dropout,
            target_modules=list(settings.modules),
            task_type="CAUSAL_LM",
        ),
    )


def save_lora(model: PreTrainedModel, weights: Mapping[str, Tensor], directory: Path) -> None:
    """Write a peft adapter directory from the LoRA tensors among `weights`, named as in `model.state_dict()`."""
    directory.mkdir(parents=True, exist_ok=True)
    model.peft_config["default"].save_pretrained(str(directory))
    tensors = {
        _PEFT_PREFIX + name.replace(".default.", "."): tensor.detach().cpu().contiguous()
        for name, tensor in weights.items()
        if is_lora(name)
    }
    save_file(tensors, directory / LORA_WEIGHTS, metadata={"format": "pt"})


def load_lora(model: PreTrainedModel, directory: Path) -> None:
    """Add the LoRA layers of a peft adapter directory to the language model, in place; raises `InputError`."""
    from peft import LoraConfig

    try:
        config = LoraConfig.from_pretrained(str(directory))
        tensors = load_file(directory / LORA_WEIGHTS)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise InputError(f"{directory} is not a LoRA adapter: {first_line(error)}") from None
    _inject(model, config)
    wanted = {name: parameter for name, parameter in model.named_parameters() if is_lora(name)}
    found = {
        name.removeprefix(_PEFT_PREFIX).replace(".weight", ".default.weight"): tensor
        for name, tensor in tensors.items()
    }
    if wanted.keys() != found.keys():
        differing = sorted(wanted.keys() ^ found.keys())
        raise InputError(f"{directory} does not fit the language model: {differing[0]} is in one of them only")
    for name, parameter in wanted.items():
        if parameter.shape != found[name].shape:
            raise InputError(f"{directory} does not fit the language model: {name} has another shape")
        parameter.data.copy_(found[name])


def is_lora(name: str) -> bool:
    """Whether a parameter's name is one that LoRA added."""
    return _LORA_MARK in name


def has_lora(model: PreTrainedModel) -> bool:
    """Whether `add_lora` or `load_lora` has changed the model."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


def _inject(model: PreTrainedModel, config: LoraConfig) -> None:
    if has_lora(model):
        raise ValueError("the language model has LoRA layers already")
    try:
        model.add_adapter(config)
    except ValueError as error:
        raise InputError(f"LoRA cannot be added to {model.config.model_type}: {first_line(error)}") from None
    for name, parameter in model.named_parameters():
        if is_lora(name):
            parameter.data = parameter.data.float()  # small, and trained: bfloat16 would swallow updates
        else:
            parameter.requires_grad_(False)
