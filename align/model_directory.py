"""A model directory: everything that an aligned model is, in the style of Hugging Face.

config.json                  settings; where the language model is, and its checksum
adapters.safetensors         molecule and protein adapter
molecule_encoder.safetensors
protein_encoder/             config.json, model.safetensors: an ESM-2 that transformers loads by itself
language_model/              its copy, where it is not referred to
lora/                        a peft adapter of the language model, where it has one
tokenizer.json, ...          the language model's tokenizer
README.md                    model card
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.esm import load_protein_encoder
from align.gnn import MoleculeEncoder, load_molecule_weights
from align.language_model import (
    has_lora,
    is_lora,
    load_language_model,
    load_lora,
    load_tokenizer,
    model_checksum,
    save_lora,
)
from align.model_card import model_card
from align.settings import (
    FORMAT_VERSION,
    MODEL_TYPE,
    TRAINS_WHOLE_LANGUAGE_MODEL,
    AlignedSettings,
    read_config,
)
from job.errors import InputError
from job.files import atomic_directory, sha256_file, write_json, write_text
from job.tokenizer import PROBES

if TYPE_CHECKING:
    from align.model import AlignedModel

_ADAPTERS, _MOLECULE_ENCODER = "adapters.safetensors", "molecule_encoder.safetensors"
_PROTEIN_ENCODER, _LANGUAGE_MODEL, _LORA = "protein_encoder", "language_model", "lora"
_OWN_KEYS = ("architectures", "model_type", "format_version", "language_model", "files")
_COPIED = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "LICENSE*", "*POLICY*")


def save_model_directory(
    model: AlignedModel,
    directory: Path,
    state: Mapping[str, Tensor] | None = None,
    copy_language_model: bool = False,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a model directory. One that does not exist appears when it is whole; an existing one is written into.

    Args:
        model: whose settings, tokenizer and weights are saved.
        directory: where.
        state: tensors to save in place of the model's own, named as in `model.state_dict()`: what training changed,
            or everything, gathered from a sharded model.
        copy_language_model: copy the language model's files, instead of referring to them by path and checksum. One
            that was trained as a whole is always written.
        training: facts for the model card; see `align.model_card`.

    Raises `ValueError` where `state` has names that the model lacks, or a tensor without elements, which is what a
    sharded model shows before its parameters are gathered.
    """
    weights = _weights(model, state or {})
    trained = model.tuning in TRAINS_WHOLE_LANGUAGE_MODEL or any(
        name.startswith("language_model.") and not is_lora(name) for name in (state or {})
    )
    source = model.language_model_directory
    if source is None and not trained:
        raise ValueError("language_model_directory is unknown: build the model with it")
    with _directory(directory) as folder:
        if trained:
            _write_language_model(model, weights, folder / _LANGUAGE_MODEL)
        elif copy_language_model:
            _copy_language_model(Path(source), folder / _LANGUAGE_MODEL)  # type: ignore[arg-type]
            model.tokenizer.save_pretrained(folder / _LANGUAGE_MODEL)
        inside = trained or copy_language_model
        place = folder / _LANGUAGE_MODEL if inside else Path(source).resolve()  # type: ignore[arg-type]
        if has_lora(model.language_model):
            save_lora(model.language_model, _part(weights, "language_model"), folder / _LORA)
        _save_tokenizer(model, folder)
        adapters = {name: tensor for name, tensor in weights.items() if "_adapter." in name}
        save_file(adapters, folder / _ADAPTERS, metadata={"format": "pt"})
        if model.molecule_encoder is not None:
            save_file(_part(weights, "molecule_encoder"), folder / _MOLECULE_ENCODER, metadata={"format": "pt"})
        if model.protein_encoder is not None:
            esm = _part(weights, "protein_encoder.esm")
            model.protein_encoder.esm.config.save_pretrained(folder / _PROTEIN_ENCODER)
            save_torch_state_dict(esm, folder / _PROTEIN_ENCODER)
        buffers = {name for name, _ in model.named_buffers()}
        parameters = {name: tensor for name, tensor in weights.items() if name not in buffers}
        sizes = {
            part: sum(tensor.numel() for tensor in _part(parameters, part).values())
            for part in ("language_model", "molecule_encoder", "protein_encoder")
        }
        config = {
            "architectures": ["AlignedModel"],
            "model_type": MODEL_TYPE,
            "format_version": FORMAT_VERSION,
            "language_model": {
                "path": _LANGUAGE_MODEL if inside else str(place),
                "sha256": model_checksum(place),
            },
            "files": {
                file.relative_to(folder).as_posix(): sha256_file(file)
                for file in sorted(folder.rglob("*.safetensors"))
                if file.parent.name != _LANGUAGE_MODEL  # which has its own checksum
            },
            **model.settings.to_json(),
        }
        write_json(folder / "config.json", config)
        write_text(folder / "README.md", model_card(model, sizes, directory.name, place, training or {}))


def load_model_directory(
    model_class: type[AlignedModel],
    directory: Path,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    language_model: Path | str | None = None,
    register_language_model: bool = False,
    verify: bool = True,
) -> AlignedModel:
    """Load what `save_model_directory` wrote, frozen and in evaluation mode.

    Args:
        model_class: `align.model.AlignedModel`, whose `from_pretrained` this is.
        directory: the model directory.
        dtype: of the language model and the protein encoder; molecule encoder and adapters are float32.
        device: where to put everything.
        language_model: where the language model lies, if not where `config.json` says.
        register_language_model: see `AlignedModel`.
        verify: check the checksums, which reads all files once more.

    Raises `InputError` where a file is missing or damaged, or the language model is not the one aligned.
    """
    content = read_config(directory)
    where = f"{directory}/config.json"
    settings = AlignedSettings.from_json({k: v for k, v in content.items() if k not in _OWN_KEYS}, where)
    for name, expected in content["files"].items() if verify else ():
        if not (directory / name).is_file():
            raise InputError(f"{directory / name} is missing; copy the model directory again")
        if sha256_file(directory / name) != expected:
            raise InputError(f"{directory / name} is damaged: its checksum is not config.json's; copy it again")
    place = _find_language_model(directory, content["language_model"], language_model, verify)
    base = load_language_model(place, dtype)
    if (directory / _LORA).is_dir():
        load_lora(base, directory / _LORA)
    molecule_encoder = None
    if settings.molecule is not None:
        described = settings.molecule
        molecule_encoder = MoleculeEncoder(described.kind, described.layers, described.width, described.dropout)
        load_molecule_weights(molecule_encoder, directory / _MOLECULE_ENCODER)
    protein_encoder = None
    if settings.protein is not None:
        protein_encoder = load_protein_encoder(directory / _PROTEIN_ENCODER, dtype)
    model = model_class(
        base,
        load_tokenizer(directory),
        settings,
        molecule_encoder,
        protein_encoder,
        register_language_model,
        language_model_directory=place,
    )
    _load_adapters(model, directory / _ADAPTERS)
    return model.place(device)


def _find_language_model(directory: Path, reference: dict[str, str], other: Path | str | None, verify: bool) -> Path:
    place = Path(other) if other is not None else directory / reference["path"]  # an absolute path stays itself
    if not (place / "config.json").is_file():
        raise InputError(
            f"the language model of {directory} is not at {place}; say where it is now (--language-model DIR)"
        )
    if verify and model_checksum(place) != reference["sha256"]:
        raise InputError(
            f"{place} is not the language model that {directory} was aligned with: its checksum differs; give the "
            "right directory (--language-model DIR)"
        )
    return place


def _weights(model: AlignedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors by name: the model's own, `state` in their place where it has them."""
    own = model.state_dict(keep_vars=True)
    if not model.registered:
        base = model.language_model.state_dict(keep_vars=True)
        own |= {f"language_model.{name}": tensor for name, tensor in base.items()}
    unknown = sorted(state.keys() - own.keys())
    if unknown:
        raise ValueError(f"the state has {unknown[0]}, which the model lacks")
    once = {id(tensor): name for name, tensor in reversed(own.items())}  # tied weights have two names: the first stays
    whole = {name: state.get(name, tensor) for name, tensor in own.items() if once[id(tensor)] == name}
    for name, tensor in whole.items():
        if tensor.numel() == 0:
            raise ValueError(f"{name} has no elements: it was not gathered from the ranks that share it")
    return {name: tensor.detach().cpu().contiguous() for name, tensor in whole.items()}


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): value for name, value in weights.items() if name.startswith(f"{prefix}.")}


@contextlib.contextmanager
def _directory(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield directory
    else:
        try:
            with atomic_directory(directory) as folder:
                yield folder
        except SafetensorError as error:  # how safetensors tells of a full disk
            raise InputError(f"cannot write {directory}: {error}; make room or choose another directory") from None


def _write_language_model(model: AlignedModel, weights: Mapping[str, Tensor], folder: Path) -> None:
    config = model.language_model.config
    tensors = _part(weights, "language_model")
    config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(folder)
    if model.language_model.generation_config is not None:
        model.language_model.generation_config.save_pretrained(folder)
    save_torch_state_dict(tensors, folder)
    model.tokenizer.save_pretrained(folder)


def _copy_language_model(source: Path, folder: Path) -> None:
    folder.mkdir()
    for pattern in _COPIED:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, folder / file.name)


def _save_tokenizer(model: AlignedModel, folder: Path) -> None:
    model.tokenizer.save_pretrained(folder)
    again = load_tokenizer(folder)
    if any(again(text)["input_ids"] != model.tokenizer(text)["input_ids"] for text in PROBES):
        raise InputError("the tokenizer gives other ids once it is saved; use one with a tokenizer.json")


def _load_adapters(model: AlignedModel, file: Path) -> None:
    expected = {name: tensor for name, tensor in model.state_dict().items() if "_adapter." in name}
    try:
        found = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({error}); copy the model directory again") from None
    differing = sorted(expected.keys() ^ found.keys())
    if differing:
        raise InputError(f"{file} does not fit config.json: {differing[0]} is in one of them only")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{file} does not fit: {name} has shape {list(tensor.shape)} instead of {list(expected[name].shape)}; "
                "the language model may be of another width"
            )
    model.load_state_dict(found, strict=False)
