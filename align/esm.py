"""The protein encoder: ESM-2 (Lin et al. 2023) of any size, one vector per residue.

Weights come from a fair-esm checkpoint or a Hugging Face directory and live in transformers' `EsmModel`. Several chains
are one row without padding: attention is computed chain by chain, everything else over all residues at once.
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import EsmConfig, EsmModel
from transformers.models.esm.modeling_esm import EsmRotaryEmbedding
from transformers.utils import logging as transformers_logging

from align.proteins import CLS, EOS, MASK, PAD, TOKENS
from job.errors import InputError, first_line
from job.files import read_json

_MASKED_IN_PRETRAINING = 0.15 * 0.8  # ESM-2 scales embeddings by the share of tokens that training left unmasked
_NAMES_SHOWN = 3

# Names of a layer's parts in fair-esm (left) and in transformers (right).
_LAYER_NAMES = {
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
    "self_attn.out_proj": "attention.output.dense",
    "self_attn_layer_norm": "attention.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "final_layer_norm": "LayerNorm",
}


class ProteinBatch(NamedTuple):
    """Several chains, one after another, without padding."""

    ids: Tensor
    """int64 [N], `<cls>` and `<eos>` of every chain included."""
    lengths: tuple[int, ...]
    """Ids of each chain; their sum is N."""

    def to(self, device: torch.device | str) -> ProteinBatch:
        """The same batch on another device."""
        return ProteinBatch(self.ids.to(device, non_blocking=True), self.lengths)


def collate_proteins(chains: Sequence[np.ndarray]) -> ProteinBatch:
    """One batch of the ids that `align.proteins.tokenise` gives; none at all is a batch of no ids.

    Raises `ValueError` where a chain has a `<mask>` or padding: such a chain cannot be packed with others.
    """
    if not chains:
        return ProteinBatch(torch.zeros(0, dtype=torch.int64), ())
    ids = np.concatenate(chains)
    if np.isin(ids, (MASK, PAD)).any():
        raise ValueError("chains of a packed batch have neither <mask> nor <pad>")
    return ProteinBatch(torch.from_numpy(ids), tuple(len(chain) for chain in chains))


class ProteinEncoder(nn.Module):
    """ESM-2 over packed chains.

    `esm` is transformers' model, which holds the weights and their names; its layers are called part by part, so that
    hooks and adapters on them work. With `gradient_checkpointing` set, training computes activations again in the
    backward pass.
    """

    gradient_checkpointing = False

    def __init__(self, esm: EsmModel) -> None:
        super().__init__()
        _check_config(esm.config, "the model")
        esm.contact_head = esm.pooler = None  # type: ignore[assignment]  # heads that nothing here runs or trains
        self.esm = esm

    @property
    def width(self) -> int:
        """Of every representation."""
        return self.esm.config.hidden_size

    @property
    def signature(self) -> dict[str, Any]:
        """What else than its weights an output depends on."""
        config = self.esm.config
        return {"heads": config.num_attention_heads, "token_dropout": bool(config.token_dropout)}

    def forward(self, batch: ProteinBatch) -> Tensor:
        """The last hidden state [N, width], in the weights' type, of N ids, special positions included; N may be 0."""
        if not batch.lengths:  # other ranks may have chains: run the same modules, with a graph and zero gradients
            ids = torch.tensor([CLS, EOS], device=batch.ids.device)
            return self.forward(ProteinBatch(ids, (2,)))[:0]  # not self(...): hooks would run twice
        esm: Any = self.esm
        hidden = esm.embeddings.word_embeddings(batch.ids)
        if esm.config.token_dropout:
            hidden = hidden * (1 - _MASKED_IN_PRETRAINING)
        angles = _rotary_angles(esm.config, batch)
        for layer in esm.encoder.layer:
            if self.gradient_checkpointing and self.training:
                hidden = checkpoint(_run_layer, layer, hidden, angles, batch.lengths, use_reentrant=False)
            else:
                hidden = _run_layer(layer, hidden, angles, batch.lengths)
        return esm.encoder.emb_layer_norm_after(hidden)


def _run_layer(layer: Any, hidden: Tensor, angles: tuple[Tensor, Tensor], lengths: tuple[int, ...]) -> Tensor:
    """One `EsmLayer` over packed chains, [N, width]: attention within each chain, the rest over all at once."""
    attention = layer.attention.self
    normalised = layer.attention.LayerNorm(hidden)
    query, key, value = (
        projection(normalised).unflatten(-1, (attention.num_attention_heads, -1)).transpose(0, 1)
        for projection in (attention.query, attention.key, attention.value)
    )
    query, key = _rotate(query, angles), _rotate(key, angles)
    dropout = attention.dropout if layer.training else 0.0
    attended = [
        functional.scaled_dot_product_attention(q[None], k[None], v[None], dropout_p=dropout)[0]
        for q, k, v in zip(*(tensor.split(lengths, dim=1) for tensor in (query, key, value)))
    ]
    hidden = layer.attention.output(torch.cat(attended, dim=1).transpose(0, 1).flatten(1), hidden)
    # transformers spells the same function out in four passes over the memory.
    return layer.output(functional.gelu(layer.intermediate.dense(layer.LayerNorm(hidden))), hidden)


def _rotary_angles(config: EsmConfig, batch: ProteinBatch) -> tuple[Tensor, Tensor]:
    """Cosines and sines, float32 [N, head width], also where weights (and transformers' buffer) are bfloat16."""
    frequencies, _ = EsmRotaryEmbedding.compute_default_rope_parameters(config)
    positions = torch.cat([torch.arange(length) for length in batch.lengths])
    angles = (positions[:, None] * torch.cat([frequencies, frequencies])).to(batch.ids.device)
    return angles.cos(), angles.sin()


def _rotate(states: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (Su et al. 2021) of [heads, N, head width], computed in float32."""
    first, second = states.chunk(2, dim=-1)
    cosine, sine = angles
    return (states * cosine + torch.cat([-second, first], dim=-1) * sine).to(states.dtype)


def create_protein_encoder(layers: int, width: int, heads: int, seed: int) -> ProteinEncoder:
    """A randomly initialised ESM-2, the same for the same seed; feed-forward layers are 4 times as wide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ProteinEncoder(EsmModel(_config(layers, width, heads, token_dropout=True), add_pooling_layer=False))


def load_protein_encoder(path: Path, dtype: torch.dtype = torch.float32) -> ProteinEncoder:
    """An ESM-2 in evaluation mode from a fair-esm `.pt` checkpoint or a Hugging Face directory.

    Nothing but tensors and the checkpoint's own settings is read from a `.pt`. Raises `InputError` where the path is
    neither, where it is another model than an ESM-2, or where weights are missing, left over or of another shape.
    """
    path = Path(path)
    if path.is_dir():
        esm = _from_hugging_face(path)
    elif path.is_file():
        esm = _from_fair_esm(path)
    else:
        raise InputError(f"{path} does not exist; give a fair-esm .pt file or the Hugging Face directory of an ESM-2")
    return ProteinEncoder(esm).to(dtype).eval()


def _from_hugging_face(directory: Path) -> EsmModel:
    config = EsmConfig.from_dict(read_json(directory / "config.json"))
    _check_config(config, str(directory / "config.json"))
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would report what an encoder never has: a contact head
    try:
        loaded: Any = EsmModel.from_pretrained(
            directory,
            config=config,
            add_pooling_layer=False,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise InputError(f"{directory} cannot be loaded as an ESM-2: {reason}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    esm, report = loaded
    missing = sorted(name for name in report["missing_keys"] if not _is_unused(name))
    if missing:
        raise InputError(f"{directory} is not a whole ESM-2: it lacks {_listed(missing)}; copy it again")
    return esm


def _from_fair_esm(path: Path) -> EsmModel:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged file raises nearly anything
        reason = first_line(error)
        raise InputError(f"{path} is not a fair-esm checkpoint ({reason}); copy it again") from error
    try:
        settings, state = vars(checkpoint["cfg"]["model"]), checkpoint["model"]
        config = _config(
            settings["encoder_layers"],
            settings["encoder_embed_dim"],
            settings["encoder_attention_heads"],
            settings["token_dropout"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a fair-esm checkpoint of an ESM-2: it lacks {error} in cfg.model; older ESM models are not "
            "supported"
        ) from error
    esm = EsmModel(config, add_pooling_layer=False)
    weights = from_fair_esm_names(state, str(path))
    expected = {name: tensor for name, tensor in esm.state_dict().items() if not _is_unused(name)}
    missing = sorted(expected.keys() - weights.keys())
    extra = sorted(weights.keys() - expected.keys())
    if missing or extra:
        problems = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has {_listed(extra)} too many"] * bool(extra)
        raise InputError(f"{path} does not hold what its own settings say: it {' and '.join(problems)}; copy it again")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise InputError(
                f"{path} does not hold what its own settings say: {name} has shape {list(tensor.shape)} instead of "
                f"{list(expected[name].shape)}; copy it again"
            )
    esm.load_state_dict(weights, strict=False)  # checked above; what it does not have is computed or never run
    return esm


def from_fair_esm_names(state: Mapping[str, Tensor], where: str = "the checkpoint") -> dict[str, Tensor]:
    """The weights of a fair-esm ESM-2 under transformers' names, without language-model and contact heads.

    Raises `InputError` for a name that no ESM-2 has.
    """
    weights = {}
    for name, tensor in state.items():
        plain = re.sub(r"^(encoder\.sentence_encoder\.|encoder\.)", "", name)
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", plain)
        if plain == "embed_tokens.weight":
            weights["embeddings.word_embeddings.weight"] = tensor
        elif plain.startswith("emb_layer_norm_after."):
            weights[f"encoder.{plain}"] = tensor
        elif layer and layer[2] in _LAYER_NAMES:
            weights[f"encoder.layer.{layer[1]}.{_LAYER_NAMES[layer[2]]}.{layer[3]}"] = tensor
        elif not plain.startswith(("lm_head.", "contact_head.")) and not plain.endswith("rot_emb.inv_freq"):
            raise InputError(f"{where} has a weight that no ESM-2 has: {name}")
    return weights


def to_fair_esm_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of `from_fair_esm_names`: an `EsmModel`'s encoder weights under fair-esm's module names."""
    layer_names = {ours: theirs for theirs, ours in _LAYER_NAMES.items()}
    weights = {}
    for name, tensor in state.items():
        layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)", name)
        if name == "embeddings.word_embeddings.weight":
            weights["embed_tokens.weight"] = tensor
        elif layer:
            weights[f"layers.{layer[1]}.{layer_names[layer[2]]}.{layer[3]}"] = tensor
        elif name.startswith("encoder.emb_layer_norm_after."):
            weights[name.removeprefix("encoder.")] = tensor
    return weights


def _config(layers: int, width: int, heads: int, token_dropout: bool) -> EsmConfig:
    return EsmConfig(
        vocab_size=len(TOKENS),
        pad_token_id=PAD,
        mask_token_id=MASK,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=1026,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        position_embedding_type="rotary",
        token_dropout=token_dropout,
        emb_layer_norm_before=False,
    )


def _check_config(config: EsmConfig, where: str) -> None:
    needed = {
        "model_type": "esm",
        "vocab_size": len(TOKENS),
        "pad_token_id": PAD,
        "mask_token_id": MASK,
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "is_folding_model": False,
        "is_decoder": False,
    }
    for key, value in needed.items():
        found = getattr(config, key, value)
        if found != value and (found or value):  # older configs say null for false
            raise InputError(f"{where} is not an ESM-2: {key} is {found!r}, not {value!r}")


def _is_unused(name: str) -> bool:
    """Names of an `EsmModel` that are not ESM-2's encoder: computed or never run."""
    return name.startswith(("contact_head.", "rotary_embeddings.", "pooler."))


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
