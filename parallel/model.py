"""A Hugging Face shape becomes this rank's chunks of a megatron-core GPTModel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import parallel.cpu  # noqa: F401  (must come before megatron.core)
from parallel.layers import block_spec
from parallel.layout import Layout
from parallel.shape import ModelShape

from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_config import TransformerConfig


class DecoderModel(GPTModel):
    """GPTModel whose loss ignores the rows that pad the vocabulary.

    Padding rows are zeros, so their logits are zeros too and would take probability from real tokens; masked, the
    loss is the loss of the unpadded model and the padding never gets a gradient.
    """

    true_vocabulary: int

    def compute_language_model_loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Cross-entropy [b, s] of `logits` [s, b, vocabulary of this rank] against `labels` [b, s]."""
        return super().compute_language_model_loss(labels, self.mask_padding(logits))

    def mask_padding(self, logits: torch.Tensor) -> torch.Tensor:
        """Set the logits of padding rows (last dimension, this rank's part of the vocabulary) to minus infinity."""
        local = logits.shape[-1]
        first = local * parallel_state.get_tensor_model_parallel_rank() if local < self.vocab_size else 0
        valid = self.true_vocabulary - first
        if valid >= local:
            return logits
        padding = torch.arange(local, device=logits.device) >= valid
        return logits.masked_fill(padding, torch.finfo(logits.dtype).min)


def transformer_config(
    shape: ModelShape, layout: Layout, dtype: torch.dtype, *, recompute: str = "none", deterministic: bool = False
) -> TransformerConfig:
    """megatron-core's config for `shape` cut by `layout`.

    `recompute` is "none" (keep all activations), "selective" (recompute each MLP, whose
    activations are the widest) or "full"
    (keep layer inputs only). Fusions are megatron-core's own that need neither TransformerEngine nor Apex, and only in
    bf16: they round gradients to bf16.
    """
    low_precision = dtype is torch.bfloat16
    recomputations: dict[str, dict[str, Any]] = {
        "none": {},
        "selective": {"recompute_granularity": "selective", "recompute_modules": ["mlp"]},
        "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
    }
    stages = layout.stages(shape.layers)
    uneven = len(set(stages)) > 1
    return TransformerConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_query_groups=shape.key_value_heads,
        kv_channels=shape.head_size,
        ffn_hidden_size=shape.feed_forward,
        normalization="RMSNorm",
        layernorm_epsilon=shape.norm_epsilon,
        activation_func=F.silu,
        gated_linear_unit=True,
        add_bias_linear=False,
        add_qkv_bias=shape.query_key_value_bias,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=shape.initializer_range,
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        pipeline_model_parallel_layout=_pipeline_layout(stages) if uneven and layout.pipeline > 1 else None,
        context_parallel_size=layout.context,
        sequence_parallel=layout.sequence_parallel_resolved,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=low_precision,
        use_cpu_initialization=not torch.cuda.is_available(),
        attention_softmax_in_fp32=True,
        calculate_per_token_loss=True,
        deterministic_mode=deterministic,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        bias_activation_fusion=low_precision and torch.cuda.is_available(),
        bias_dropout_fusion=False,
        cross_entropy_loss_fusion=low_precision and torch.cuda.is_available() and not deterministic,
        batch_p2p_comm=False,
        **recomputations[recompute],
    )


def build(shape: ModelShape, config: TransformerConfig, sequence_length: int) -> list[DecoderModel]:
    """This rank's model chunks (one, or `virtual_pipeline` of them), on its device, with random weights."""
    virtual = config.virtual_pipeline_model_parallel_size
    frequencies = _rotary_frequencies(shape)
    chunks = []
    for index in range(virtual or 1):
        stage = {"ignore_virtual": False, "vp_stage": index} if virtual else {}
        chunk = DecoderModel(
            config=config,
            transformer_layer_spec=block_spec(config, index if virtual else None),
            vocab_size=shape.padded_vocabulary,
            max_sequence_length=sequence_length,
            pre_process=parallel_state.is_pipeline_first_stage(**stage),
            post_process=parallel_state.is_pipeline_last_stage(**stage),
            share_embeddings_and_output_weights=shape.tied_embeddings,
            position_embedding_type="rope",
            rotary_base=shape.rope["rope_theta"],
            parallel_output=True,
            vp_stage=index if virtual else None,
        )
        chunk.true_vocabulary = shape.vocabulary
        chunk.rotary_pos_emb.inv_freq = frequencies.to(chunk.rotary_pos_emb.inv_freq.device)
        chunks.append(chunk.cuda(torch.cuda.current_device()) if torch.cuda.is_available() else chunk)
    return chunks


def _pipeline_layout(stages: list[int]) -> list[list[str]]:
    """megatron-core's description of uneven stages: embedding first, loss last, decoder layers between."""
    rows = [["decoder"] * count for count in stages]
    return [["embedding", *rows[0]], *rows[1:-1], [*rows[-1], "loss"]]


def _rotary_frequencies(shape: ModelShape) -> torch.Tensor:
    """Inverse rotary frequencies [head size / 2], float32, by the formula that transformers uses for this rope type.

    megatron-core knows plain RoPE and one fixed Llama-3.1 scaling; taking the numbers from transformers' own functions
    serves every type alike and keeps the logits equal.
    """
    exponents = torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size
    if shape.rope["rope_type"] == "default":
        return 1.0 / (shape.rope["rope_theta"] ** exponents)
    from transformers import LlamaConfig  # seconds of importing, which most models do without
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.positions,
        rope_parameters=dict(shape.rope),
    )
    frequencies, scale = ROPE_INIT_FUNCTIONS[shape.rope["rope_type"]](config, torch.device("cpu"))
    assert scale == 1.0, "a rope type that rescales attention would need more than frequencies"
    return frequencies.float()
