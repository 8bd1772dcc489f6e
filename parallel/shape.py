"""The shape of a decoder-only model, read from a Hugging Face `config.json`, without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.files import read_json

# Rows are added to the vocabulary up to a multiple of this, so that every usual tensor-parallel size divides it and
# one checkpoint serves all of them (Megatron-LM's make_vocab_size_divisible_by has the same default).
VOCABULARY_MULTIPLE = 128

# Families whose layers are those of Llama: RMSNorm, rotary embedding, SwiGLU, grouped-query attention, no MLP bias.
# Qwen2 adds a bias to the query, key and value projections.
FAMILIES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}


@dataclass(frozen=True)
class ModelShape:
    """Sizes and switches of one model; field names are ours, meanings are those of the Hugging Face config."""

    family: str
    layers: int
    hidden: int
    heads: int
    key_value_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    positions: int
    norm_epsilon: float
    rope: dict[str, Any]
    tied_embeddings: bool
    query_key_value_bias: bool
    initializer_range: float

    @property
    def padded_vocabulary(self) -> int:
        """Rows of the embedding in training: the vocabulary rounded up to `VOCABULARY_MULTIPLE`."""
        return -(-self.vocabulary // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE

    @property
    def parameters(self) -> int:
        """Number of parameters of the unpadded model; tied embeddings count once."""
        projection = self.heads * self.head_size + 2 * self.key_value_heads * self.head_size
        attention = self.hidden * (projection + self.heads * self.head_size)
        bias = projection if self.query_key_value_bias else 0
        layer = attention + bias + 3 * self.hidden * self.feed_forward + 2 * self.hidden
        embeddings = (1 if self.tied_embeddings else 2) * self.vocabulary * self.hidden
        return self.layers * layer + embeddings + self.hidden

    def flops_per_token(self, sequence_length: int, causal: bool = True) -> float:
        """Model FLOPs of one trained token: forward and backward, three times the forward's two per multiply-add.

        Counts the matrix multiplications of the layers, the output head (not the embedding lookup) and attention's two
        products over the sequence, halved where the causal mask makes half of them unnecessary. This is the convention
        of Megatron-LM since 2025; `causal=False` gives the older one. Recomputation never counts.
        """
        query = self.heads * self.head_size
        projections = self.hidden * (query + 2 * self.key_value_heads * self.head_size) + query * self.hidden
        layer = projections + 3 * self.hidden * self.feed_forward
        attention = 2 * query * sequence_length * (0.5 if causal else 1.0)
        return 6.0 * (self.layers * (layer + attention) + self.vocabulary * self.hidden)


def read_shape(directory: Path) -> ModelShape:
    """Read `directory/config.json`; raises `InputError` where it is absent, incomplete, or of another architecture."""
    path = Path(directory) / "config.json"
    if not path.exists():
        raise InputError(f"{path} does not exist; a Hugging Face model directory holds its config.json")
    return shape_of(read_json(path), str(path))


def shape_of(config: dict[str, Any], where: str) -> ModelShape:
    """`ModelShape` of a parsed Hugging Face config; `where` names it in errors."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise InputError(f"{where}: model_type '{family}' is not supported; supported are {', '.join(FAMILIES)}")
    if config.get("sliding_window") and config.get("use_sliding_window", family == "mistral"):
        raise InputError(f"{where}: sliding_window {config['sliding_window']} is not supported; set it to null")
    if config.get("mlp_bias"):
        raise InputError(f"{where}: mlp_bias is not supported")
    if config.get("hidden_act", "silu") != "silu":
        raise InputError(f"{where}: hidden_act '{config['hidden_act']}' is not supported; 'silu' is")
    if family == "llama" and config.get("attention_bias"):
        raise InputError(f"{where}: attention_bias of a Llama is not supported")
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return ModelShape(
            family=family,
            layers=config["num_hidden_layers"],
            hidden=hidden,
            heads=heads,
            key_value_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or hidden // heads,
            feed_forward=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            norm_epsilon=config.get("rms_norm_eps", 1e-6),
            rope=_rope(config, where),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            query_key_value_bias=family == "qwen2",
            initializer_range=config.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise InputError(f"{where}: key {error} is missing") from None


def _rope(config: dict[str, Any], where: str) -> dict[str, Any]:
    """Rotary parameters in the form of transformers 5 (`rope_parameters`), also from older configs."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
    if rope["rope_type"] not in ("default", "linear", "llama3"):
        raise InputError(
            f"{where}: rope_type '{rope['rope_type']}' is not supported; supported are default, linear, llama3"
        )
    return rope
