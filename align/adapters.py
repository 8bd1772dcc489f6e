"""Adapters: representations of atoms or residues to input embeddings of the language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from align.settings import AdapterSettings

_RESAMPLER_LAYERS = 2
_HEAD_WIDTH = 64


class Adapter(nn.Module):
    """Representations [N, width] of several structures to embeddings [M, hidden], in the same order.

    Every parameter takes part in every call, one with no structures included (N = 0 gives M = 0 and gradients of
    zero), so that all ranks of a sharded model run the same modules.

    Args:
        settings: one embedding per position, their mean, or a fixed number from learned queries; linear or two layers.
        width: of the encoder.
        hidden: width of the language model's embeddings.

    Attributes:
        standardise: whether what goes in is centred and scaled by the buffers `mean` and `deviation`, float32 [width],
            which `align.standardise` measures.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, settings: AdapterSettings, width: int, hidden: int) -> None:
        super().__init__()
        self.tokens = settings.tokens
        self.standardise = settings.standardise
        if settings.standardise:
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("deviation", torch.ones(width))
        self.resampler = Resampler(width, settings.number) if settings.tokens == "resampled" else None
        self.projection = _projection(settings.projection, width, hidden)

    def forward(self, features: Tensor, lengths: Sequence[int]) -> Tensor:
        """Embeddings float32 [M, hidden].

        Args:
            features: [N, width] of any floating type, structure after structure.
            lengths: positions of each structure; their sum is N.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = self.gather(features, lengths)
            if self.standardise:
                features = (features - self.mean) / self.deviation
            if self.resampler is not None:
                features = self.resampler(features, lengths)
            return self.projection(features)

    def gather(self, features: Tensor, lengths: Sequence[int]) -> Tensor:
        """What is standardised, float32: the mean of each structure where they are pooled, else every position."""
        features = features.float()
        return mean_of_each(features, lengths) if self.tokens == "pooled" else features


class Resampler(nn.Module):
    """A fixed number of vectors per structure: learned queries attend to its positions (Perceiver resampler).

    Alayrac et al. 2022, "Flamingo: a visual language model for few-shot learning", without attention among queries.
    """

    def __init__(self, width: int, number: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(number, width) * width**-0.5)
        self.layers = nn.ModuleList(_ResamplerLayer(width) for _ in range(_RESAMPLER_LAYERS))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, lengths: Sequence[int]) -> Tensor:
        """[structures * number, width] of `features` [N, width]."""
        padded, mask = pad(features, lengths)
        queries = self.queries.expand(len(lengths), *self.queries.shape)
        for layer in self.layers:
            queries = layer(queries, padded, mask)
        return self.norm(queries).flatten(0, 1)


class _ResamplerLayer(nn.Module):
    """Pre-norm cross attention and feed-forward.

    (torch's `MultiheadAttention` reads its output projection's weight without calling it, which a sharded model
    cannot offer.)
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(count for count in range(1, max(2, width // _HEAD_WIDTH + 1)) if width % count == 0)
        self.query_norm, self.feature_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.output = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, queries: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        features = self.feature_norm(features)
        query, key, value = (
            vectors.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for vectors in (self.query(self.query_norm(queries)), self.key(features), self.value(features))
        )
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        queries = queries + self.output(attended.transpose(1, 2).flatten(2))
        return queries + self.feed_forward(queries)


def mean_of_each(features: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean [structures, width] of each structure's positions."""
    if not lengths:
        return features  # none: [0, width] already
    return torch.segment_reduce(features, "mean", lengths=torch.tensor(lengths, device=features.device))


def pad(features: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """[structures, longest, width] and a mask [structures, longest] that is true at real positions."""
    if not lengths:
        return features[:, None], features.new_zeros((0, 1), dtype=torch.bool)
    padded = pad_sequence(features.split(tuple(lengths)), batch_first=True)
    places = torch.arange(padded.shape[1], device=features.device)
    return padded, places < torch.tensor(lengths, device=features.device)[:, None]


def _projection(kind: str, width: int, hidden: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, hidden)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
