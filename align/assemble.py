"""What a run starts from: language model, encoders and new adapters, put together as its config says."""

from __future__ import annotations

from pathlib import Path

import torch

from align.config import AlignConfig
from align.engine import partitioned_loading
from align.esm import load_protein_encoder
from align.gnn import MoleculeEncoder, load_molecule_weights
from align.language_model import load_language_model, load_tokenizer, model_checksum
from align.model import AlignedModel
from job.errors import InputError
from job.files import sha256_file


def build(config: AlignConfig) -> AlignedModel:
    """The model that training starts from, on the CPU, in evaluation mode, with `tune` applied.

    Frozen parts are in the run's precision (the molecule encoder always in float32), trained ones in float32. At ZeRO
    stage 3 the language model is read straight into the ranks' partitions (the encoders are partitioned later, by the
    engine). Raises `InputError` where a path does not hold what the config says.
    """
    computed = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    place = Path(config.model.language_model)
    with partitioned_loading(config):
        language_model = load_language_model(place, torch.float32 if config.trains_whole_language_model else computed)
    settings = config.settings()
    molecule_encoder, protein_encoder = None, None
    if settings.molecule is not None:
        given = settings.molecule
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.train.seed)  # the same on all ranks, and for whoever exports a frozen one
            molecule_encoder = MoleculeEncoder(given.kind, given.layers, given.width, given.dropout)
        if config.molecule.weights:
            load_molecule_weights(molecule_encoder, Path(config.molecule.weights))
    if settings.protein is not None and config.protein.weights:
        dtype = torch.float32 if config.trains_encoders else computed
        protein_encoder = load_protein_encoder(Path(config.protein.weights), dtype)
    _check_finite(language_model, str(place))
    if protein_encoder is not None:
        _check_finite(protein_encoder, str(config.protein.weights))
    model = AlignedModel(
        language_model,
        load_tokenizer(place),
        settings,
        molecule_encoder,
        protein_encoder,
        register_language_model=config.registers_language_model,
        language_model_directory=place,
        seed=config.train.seed,
    )
    model.compute_dtype = computed
    model.tune(config.tune.mode, config.tune.lora)
    return model


def _check_finite(module: torch.nn.Module, where: str) -> None:
    """Raise `InputError` for weights that are not: noticed at the first step only, they would be blamed on its data."""
    for name, parameter in module.named_parameters():
        held = getattr(parameter, "ds_tensor", parameter)  # this rank's partition, where there is one
        if not torch.isfinite(held).all():
            raise InputError(f"{where} is damaged: {name} has values that are not finite; restore it")


def frozen_checksums(config: AlignConfig) -> dict[str, str]:
    """By part, the SHA-256 of the files of what training leaves as it is: what a checkpoint must find again.

    A part that starts from random weights and stays frozen is named by its seed.
    """
    checksums = {}
    if not config.trains_whole_language_model:
        checksums["language model"] = model_checksum(Path(config.model.language_model))
    if not config.trains_encoders:
        if config.molecule.use:
            weights = config.molecule.weights
            if weights and not Path(weights).is_file():
                raise InputError(f"molecule.weights {weights} is no file; name a checkpoint (.pth, .pt, .safetensors)")
            checksums["molecule encoder"] = sha256_file(Path(weights)) if weights else f"seed {config.train.seed}"
        if config.protein.use and config.protein.weights:
            path = Path(config.protein.weights)
            if path.is_dir() and not (path / "config.json").is_file():
                raise InputError(f"protein.weights {path} has no config.json; name the directory of an ESM-2")
            checksums["protein encoder"] = model_checksum(path) if path.is_dir() else sha256_file(path)
    return checksums
