"""Masked-attention transformer decoder: one mask and one vector per query (Mask2Former, arXiv 2112.01527)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class DecoderLevel:
    """What the queries say before the first or after some decoder layer.

    `queries` (B, Q, C) normalised; `mask_logits` (B, Q, h, w) at the stride of the mask features.
    """

    queries: Tensor
    mask_logits: Tensor


class Attention(nn.Module):
    """Multi-head attention through `F.scaled_dot_product_attention`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(channels, channels) for _ in range(4))
        for layer in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """query (B, Q, C), key and value (B, N, C), allowed (B, Q or 1, N) bool -> (B, Q, C)."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        mask = None if allowed is None else allowed[:, None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(x.transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Linear, ReLU, Linear."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))


class DecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; normalised after each sum."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.cross = Attention(channels, heads)
        self.own = Attention(channels, heads)
        self.feed = FeedForward(channels, hidden)
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(3)])

    def forward(
        self, x: Tensor, position: Tensor, memory: Tensor, memory_position: Tensor, allowed: Tensor
    ) -> Tensor:
        """Queries x (B, Q, C), memory (B, N, C), their positions, allowed (B, Q, N) bool -> (B, Q, C)."""
        x = self.norms[0](x + self.cross(x + position, memory + memory_position, memory, allowed))
        located = x + position
        x = self.norms[1](x + self.own(located, located, x))
        return self.norms[2](x + self.feed(x))


class MaskDecoder(nn.Module):
    """`layers` decoder layers over three scales in turn; a prediction before the first and after each.

    `channels` must be a multiple of `heads` and of 4. With `propagation` a query starts from its learned
    features plus a linear map, at first the identity, of its final state in the frame before.
    """

    def __init__(
        self,
        channels: int,
        mask_channels: int,
        queries: int,
        layers: int,
        heads: int,
        hidden: int,
        propagation: bool = False,
    ) -> None:
        super().__init__()
        self.query_features = nn.Embedding(queries, channels)
        self.query_positions = nn.Embedding(queries, channels)
        self.scale_embedding = nn.Embedding(min(layers, 3), channels)
        self.layers = nn.ModuleList([DecoderLayer(channels, heads, hidden) for _ in range(layers)])
        self.norm = nn.LayerNorm(channels)
        self.mask_embedding = nn.Sequential(
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, mask_channels),
        )
        self.propagation = nn.Linear(channels, channels) if propagation else None
        if self.propagation is not None:
            nn.init.eye_(self.propagation.weight)
            nn.init.zeros_(self.propagation.bias)

    def forward(
        self,
        mask_features: Tensor,
        scales: Sequence[Tensor],
        valids: Sequence[Tensor | None],
        final_only: bool = False,
        previous: Tensor | None = None,
    ) -> list[DecoderLevel]:
        """Mask features (B, C', h, w), maps and valid masks at strides 32, 16, 8 -> levels, final last.

        `previous` (B, Q, C): `queries` of the final level of the frame before, None for a first frame.
        """
        # A dot product commutes with interpolation: attention masks are made at their own size.
        small = [
            F.interpolate(mask_features, s.shape[-2:], mode="bilinear", align_corners=False) for s in scales
        ]
        memories = [s.flatten(2).transpose(1, 2) for s in scales]
        positions = [
            sine_positions(s, valid).flatten(2).transpose(1, 2)
            for s, valid in zip(scales, valids, strict=True)
        ]
        batch = mask_features.shape[0]
        x = self.query_features.weight.expand(batch, -1, -1)
        if previous is not None:
            assert self.propagation is not None
            x = x + self.propagation(previous)
        query_position = self.query_positions.weight.expand(batch, -1, -1)
        levels: list[DecoderLevel] = []
        for index, layer in enumerate(self.layers):
            scale = index % len(scales)
            queries = self.norm(x)
            kernels = self.mask_embedding(queries)
            if not final_only:
                levels.append(DecoderLevel(queries, dot_masks(kernels, mask_features)))
            allowed = attention_mask(dot_masks(kernels.detach(), small[scale].detach()), valids[scale])
            memory = memories[scale] + self.scale_embedding.weight[scale]
            x = layer(x, query_position, memory, positions[scale], allowed)
        queries = self.norm(x)
        levels.append(DecoderLevel(queries, dot_masks(self.mask_embedding(queries), mask_features)))
        return levels


def dot_masks(kernels: Tensor, features: Tensor) -> Tensor:
    """kernels (B, Q, C), features (B, C, h, w) -> mask logits (B, Q, h, w)."""
    return torch.einsum("bqc,bchw->bqhw", kernels, features)


def attention_mask(mask_logits: Tensor, valid: Tensor | None) -> Tensor:
    """Cells that each query may attend to, (B, Q, h * w) bool: its own mask, never padding.

    A query whose mask is empty attends to every valid cell.
    """
    allowed = mask_logits.flatten(2) > 0
    if valid is None:
        return allowed | ~allowed.any(-1, keepdim=True)
    inside = valid.flatten(1)[:, None]
    allowed = allowed & inside
    return allowed | (~allowed.any(-1, keepdim=True) & inside)


def sine_positions(x: Tensor, valid: Tensor | None, temperature: float = 10000.0) -> Tensor:
    """Sine position codes (B or 1, C, h, w) of x (B, C, h, w) over its valid extent (arXiv 2005.12872)."""
    channels, height, width = x.shape[1:]
    if valid is None:
        valid = torch.ones(1, height, width, dtype=torch.bool, device=x.device)
    rows, columns = valid.cumsum(1).float(), valid.cumsum(2).float()
    rows = rows / rows[:, -1:, :].clamp(min=1) * (2 * math.pi)
    columns = columns / columns[:, :, -1:].clamp(min=1) * (2 * math.pi)
    half = channels // 2
    steps = torch.arange(half, device=x.device) // 2
    frequency = temperature ** (-2.0 * steps / half)
    parts = []
    for axis in (rows, columns):
        angle = axis[:, None] * frequency[:, None, None]
        parts.append(torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1, 2))
    return torch.cat(parts, dim=1).to(x.dtype)
