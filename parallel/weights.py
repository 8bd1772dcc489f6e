"""Names and slices: how each Hugging Face tensor is stored in a Megatron checkpoint, and back. Pure tensor algebra."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from parallel.shape import ModelShape

Kind = Literal["same", "vocabulary", "query_key_value", "gate_up"]


@dataclass(frozen=True)
class Weight:
    """One tensor of a Megatron checkpoint and the Hugging Face tensors it is made of."""

    megatron: str
    """checkpoint key, such as `decoder.layers.3.mlp.linear_fc1.weight`"""
    hugging_face: tuple[str, ...]
    """names of the parts, in the order in which `merge` takes them"""
    kind: Kind
    """how parts and whole relate"""
    tensor_dimension: int | None
    """dimension that tensor parallelism cuts; None where every rank holds the whole"""


def weights(shape: ModelShape) -> list[Weight]:
    """All tensors of a model in the order in which a forward pass meets them."""
    result = [Weight("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), "vocabulary", 0)]
    for layer in range(shape.layers):
        result += _layer(f"decoder.layers.{layer}.", f"model.layers.{layer}.", shape)
    result.append(Weight("decoder.final_layernorm.weight", ("model.norm.weight",), "same", None))
    if not shape.tied_embeddings:
        result.append(Weight("output_layer.weight", ("lm_head.weight",), "vocabulary", 0))
    return result


def _layer(megatron: str, hugging_face: str, shape: ModelShape) -> list[Weight]:
    def projections(suffix: str) -> tuple[str, ...]:
        return tuple(f"{hugging_face}self_attn.{name}_proj.{suffix}" for name in "qkv")

    # The norms carry the names that TransformerEngine's fused layers give them, so that checkpoints stay readable by
    # other users of megatron-core.
    norm, attention, mlp = "layer_norm_weight", f"{megatron}self_attention.", f"{megatron}mlp."
    result = [
        Weight(f"{attention}linear_qkv.{norm}", (f"{hugging_face}input_layernorm.weight",), "same", None),
        Weight(f"{attention}linear_qkv.weight", projections("weight"), "query_key_value", 0),
    ]
    if shape.query_key_value_bias:
        result.append(Weight(f"{attention}linear_qkv.bias", projections("bias"), "query_key_value", 0))
    gate_up = tuple(f"{hugging_face}mlp.{name}_proj.weight" for name in ("gate", "up"))
    return [
        *result,
        Weight(f"{attention}linear_proj.weight", (f"{hugging_face}self_attn.o_proj.weight",), "same", 1),
        Weight(f"{mlp}linear_fc1.{norm}", (f"{hugging_face}post_attention_layernorm.weight",), "same", None),
        Weight(f"{mlp}linear_fc1.weight", gate_up, "gate_up", 0),
        Weight(f"{mlp}linear_fc2.weight", (f"{hugging_face}mlp.down_proj.weight",), "same", 1),
    ]


def part_shapes(weight: Weight, shape: ModelShape) -> list[tuple[int, ...]]:
    """Shapes of the Hugging Face parts, in order."""
    hidden, feed_forward = shape.hidden, shape.feed_forward
    query, key_value = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    if weight.kind == "vocabulary":
        return [(shape.vocabulary, hidden)]
    if weight.kind == "query_key_value":
        rows = (query, key_value, key_value)
        return [(count,) if weight.megatron.endswith("bias") else (count, hidden) for count in rows]
    if weight.kind == "gate_up":
        return [(feed_forward, hidden)] * 2
    if weight.tensor_dimension is None:
        return [(hidden,)]
    return [(hidden, query if "linear_proj" in weight.megatron else feed_forward)]


def megatron_shape(weight: Weight, shape: ModelShape) -> tuple[int, ...]:
    """Shape of the whole tensor in the checkpoint (vocabulary padded)."""
    if weight.kind == "vocabulary":
        return (shape.padded_vocabulary, shape.hidden)
    parts = part_shapes(weight, shape)
    return (sum(part[0] for part in parts), *parts[0][1:])


def part_views(weight: Weight, whole: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
    """Views of the checkpoint's whole tensor, one per Hugging Face part, with the part's elements in its order.

    Query, key and value rows are interleaved by key/value group ([q of the group..., k, v] per group), so that a cut
    between groups keeps each query with its key: Megatron-LM's layout. Their views have the row dimension taken apart
    into [groups, heads of the group, head size]; all others have the part's own shape.
    """
    if weight.kind == "same":
        return [whole]
    if weight.kind == "vocabulary":
        return [whole[: shape.vocabulary]]
    if weight.kind == "gate_up":
        return list(whole.chunk(2))
    groups = shape.key_value_heads
    queries = shape.heads // groups
    rows = whole.view(groups, queries + 2, shape.head_size, *whole.shape[1:])
    return [rows[:, :queries], rows[:, queries : queries + 1], rows[:, queries + 1 :]]


def merge(
    weight: Weight, parts: Iterable[torch.Tensor], shape: ModelShape, whole: torch.Tensor | None = None
) -> torch.Tensor:
    """Copy Hugging Face parts into the checkpoint's whole tensor, one part at a time; padding rows become zeros.

    `whole` is filled where it is given, so that parts can be read lazily and memory used again; else it is new.
    """
    if whole is None:
        parts = list(parts)
        whole = parts[0].new_empty(megatron_shape(weight, shape))
    if weight.kind == "vocabulary":
        whole[shape.vocabulary :].zero_()
    for view, part in zip(part_views(weight, whole, shape), parts, strict=True):
        view.copy_(part.view(view.shape))
    return whole


def split(weight: Weight, whole: torch.Tensor, shape: ModelShape) -> list[torch.Tensor]:
    """The inverse of `merge`: Hugging Face parts, which share memory with `whole` where their rows lie together."""
    views = part_views(weight, whole, shape)
    return [view.reshape(part) for view, part in zip(views, part_shapes(weight, shape), strict=True)]
