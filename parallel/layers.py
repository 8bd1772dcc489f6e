"""The one layer spec: megatron-core's own layers, with torch's fused attention and RMSNorm for the slow defaults.

The same spec runs on CPU and on GPUs; nothing here needs TransformerEngine or Apex. Shapes follow megatron-core:
s sequence (of this rank), b micro-batch, h hidden size.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F

import parallel.cpu  # noqa: F401  (must come before megatron.core)

from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import (
    RowParallelLinear,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
)
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm whose weight asks for the all-reduce that sequence parallelism needs.

    (megatron-core's own wrapper of torch norms refuses sequence parallelism.)
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device)
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class FusedAttention(MegatronModule):
    """Causal attention through `torch.nn.functional.scaled_dot_product_attention`; no s x s tensor is ever made.

    Query is [s, b, heads, head size], key and value [s, b, key/value heads, head size]; the result [s, b, heads x head
    size]. Under context parallelism rank r of c holds chunks r and 2c - 1 - r of the sequence (so that causal work is
    even); keys and values are gathered over the group, and their gradients reduced and scattered by the same call.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.context_size = config.context_parallel_size
        self.context_group = getattr(pg_collection, "cp", None) or parallel_state.get_context_parallel_group(
            check_initialized=False
        )

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Attend causally; `attention_mask` must be None (documents that share a window see each other)."""
        if attention_mask is not None:
            raise ValueError("FusedAttention is causal by itself and takes no mask")
        length, batch = query.shape[:2]
        if self.context_size == 1:
            query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
            output = self._attend(query, key, value, causal=True)
            return output.permute(2, 0, 1, 3).reshape(length, batch, -1)
        key, value = self._gather_sequence(key), self._gather_sequence(value)
        chunk_length, rank = length // 2, self.context_group.rank()
        outputs = []
        for half, chunk in enumerate((rank, 2 * self.context_size - 1 - rank)):
            end = (chunk + 1) * chunk_length
            part = query[half * chunk_length : (half + 1) * chunk_length].permute(1, 2, 0, 3)
            visible = torch.ones(chunk_length, end, dtype=torch.bool, device=query.device).tril(chunk * chunk_length)
            outputs.append(self._attend(part, key[:, :, :end], value[:, :, :end], mask=visible).permute(2, 0, 1, 3))
        return torch.cat(outputs).reshape(length, batch, -1)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        dropout = self.dropout if self.training else 0.0
        # Heads differ between tensor-parallel ranks, so dropout draws from the model-parallel random stream (which
        # the block has entered already under sequence parallelism).
        entered = bool(dropout) and not self.config.sequence_parallel
        with get_cuda_rng_tracker().fork() if entered else contextlib.nullcontext():
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=causal,
                scale=self.scale,
                enable_gqa=query.shape[1] != key.shape[1],
            )

    def _gather_sequence(self, tensor: torch.Tensor) -> torch.Tensor:
        """[s, b, heads, size] of this rank to the whole sequence in order, heads first: [b, heads, s x c, size]."""
        chunks = 2 * self.context_size
        gathered = gather_from_sequence_parallel_region(
            tensor.contiguous(), tensor_parallel_output_grad=True, group=self.context_group
        )
        stored = [chunk for rank in range(self.context_size) for chunk in (rank, chunks - 1 - rank)]
        order = torch.argsort(torch.tensor(stored)).to(tensor.device)
        by_chunk = gathered.view(chunks, tensor.shape[0] // 2, *tensor.shape[1:])
        return by_chunk[order].reshape(-1, *tensor.shape[1:]).permute(1, 2, 0, 3)


class QuietRowParallelLinear(RowParallelLinear):
    """megatron-core's row-parallel linear, which forgets its process group and warns of it on every call.

    The warning breaks torch.compile's graph in every layer; passing the group keeps the layer one graph.
    """

    def _forward_impl(self, input: torch.Tensor, weight: torch.Tensor, **options: Any) -> torch.Tensor:
        options["tp_group"] = self.tp_group
        return super()._forward_impl(input, weight, **options)


def block_spec(config: TransformerConfig, virtual_stage: int | None = None) -> TransformerBlockSubmodules:
    """The spec of this rank's block of layers (`virtual_stage` counts its interleaved chunks, None without them)."""
    layer = get_gpt_layer_local_spec(normalization="RMSNorm")
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    parts.self_attention.submodules.core_attention = FusedAttention
    parts.self_attention.submodules.linear_proj = QuietRowParallelLinear
    parts.mlp.submodules.linear_fc2 = QuietRowParallelLinear
    count = get_num_layers_to_build(config, vp_stage=virtual_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)
