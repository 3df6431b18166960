"""Multi-scale deformable attention encoder as pixel decoder (arXiv 2010.04159), in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd.models.mask_decoder import FeedForward, sine_positions
from vlkd.models.pixel_decoder import ConvNorm

Size = tuple[int, int]


class DeformableAttention(nn.Module):
    """Each token reads `points` sampled places of `levels` maps per head (arXiv 2010.04159, eq. 3)."""

    def __init__(self, channels: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.levels, self.heads, self.points = levels, heads, points
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self._initialise()

    def _initialise(self) -> None:
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        # Heads look in different directions, points at growing distances.
        angle = torch.arange(self.heads, device=self.offsets.bias.device) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.points + 1, device=direction.device, dtype=direction.dtype)
        bias = direction[:, None, None] * distance[:, None]
        with torch.no_grad():
            self.offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self, query: Tensor, references: Tensor, tokens: Tensor, sizes: Sequence[Size], valid: Tensor | None
    ) -> Tensor:
        """query, tokens (B, N, C), references (B, N, levels, 2) as x, y, valid (B, N) -> (B, N, C)."""
        batch, count, _ = query.shape
        value = self.value(tokens)
        if valid is not None:
            value = value * valid[..., None].to(value.dtype)
        shape = (batch, count, self.heads, self.levels, self.points)
        offsets = self.offsets(query).view(*shape, 2)
        weights = self.weights(query).view(batch, count, self.heads, -1).softmax(-1).view(shape)
        x: Tensor | None = None
        start = 0
        for level, (height, width) in enumerate(sizes):
            part = value[:, start : start + height * width]
            start += height * width
            maps = part.transpose(1, 2).reshape(batch * self.heads, -1, height, width)
            scale = offsets.new_tensor((width, height))
            places = references[:, :, None, level, None] + offsets[:, :, :, level] / scale
            grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
            # Places in half precision would be off by a good part of a cell.
            read = F.grid_sample(maps.float(), grid.float(), padding_mode="zeros", align_corners=False)
            weight = weights[:, :, :, level].transpose(1, 2).flatten(0, 1)[:, None]
            term = (read * weight).sum(-1)
            x = term if x is None else x + term
        assert x is not None
        return self.output(x.to(value.dtype).view(batch, -1, count).transpose(1, 2))


class DeformableLayer(nn.Module):
    """Deformable self-attention and feed-forward, normalised after each sum."""

    def __init__(self, channels: int, levels: int, heads: int, points: int, hidden: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, levels, heads, points)
        self.feed = FeedForward(channels, hidden)
        self.norms = nn.ModuleList([nn.LayerNorm(channels) for _ in range(2)])

    def forward(
        self, x: Tensor, position: Tensor, references: Tensor, sizes: Sequence[Size], valid: Tensor | None
    ) -> Tensor:
        """Tokens x (B, N, C) of all levels -> (B, N, C)."""
        x = self.norms[0](x + self.attention(x + position, references, x, sizes, valid))
        return self.norms[1](x + self.feed(x))


class MSDeformDecoder(nn.Module):
    """Deformable encoder on strides 8, 16 and 32, then a stride-4 lateral for the mask features."""

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        mask_channels: int,
        layers: int = 6,
        heads: int = 8,
        points: int = 4,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        levels = len(inputs) - 1
        self.projections = nn.ModuleList([ConvNorm(c, channels, 1) for c in inputs[1:]])
        self.level_embedding = nn.Parameter(torch.randn(levels, channels))
        hidden = hidden or 4 * channels
        self.layers = nn.ModuleList(
            [DeformableLayer(channels, levels, heads, points, hidden) for _ in range(layers)]
        )
        self.lateral = ConvNorm(inputs[0], channels, 1)
        self.output = ConvNorm(channels, channels, 3, activate=True)
        self.mask_features = nn.Conv2d(channels, mask_channels, 1)

    def forward(self, maps: Sequence[Tensor], valids: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """Maps and valid masks at strides 4, 8, 16, 32 -> mask features at stride 4, maps at 32, 16, 8."""
        levels = [p(x, v) for p, x, v in zip(self.projections, maps[1:], valids[1:], strict=True)]
        sizes: list[Size] = [(x.shape[-2], x.shape[-1]) for x in levels]
        position = [
            _tokens(sine_positions(x, v)) + self.level_embedding[i]
            for i, (x, v) in enumerate(zip(levels, valids[1:], strict=True))
        ]
        inside = [v for v in valids[1:] if v is not None]
        valid = torch.cat([v.flatten(1) for v in inside], dim=1) if inside else None
        references = reference_points(sizes, inside, levels[0].device)
        x, positions = torch.cat([_tokens(level) for level in levels], dim=1), torch.cat(position, dim=1)
        for layer in self.layers:
            x = layer(x, positions, references, sizes, valid)
        parts = x.split([height * width for height, width in sizes], dim=1)
        scales = [p.transpose(1, 2).unflatten(-1, size) for p, size in zip(parts, sizes, strict=True)]
        up = F.interpolate(scales[0], maps[0].shape[-2:], mode="bilinear", align_corners=False)
        y = self.output(self.lateral(maps[0], valids[0]) + up, valids[0])
        return self.mask_features(y), scales[::-1]


def reference_points(sizes: Sequence[Size], valids: Sequence[Tensor], device: torch.device) -> Tensor:
    """Centres of all cells as x, y in [0, 1] of every level's padded map, (B or 1, N, levels, 2).

    A place is first expressed as a fraction of its own level's valid extent, so that levels of a padded
    image line up. `valids` (B, h, w) per level, or empty where nothing is padded.
    """
    ratios = torch.ones(1, len(sizes), 2, device=device)
    if valids:
        extents = [torch.stack((v[:, 0].sum(1), v[:, :, 0].sum(1)), dim=-1) for v in valids]
        sides = torch.tensor([(width, height) for height, width in sizes], device=device)
        ratios = torch.stack(extents, dim=1) / sides
    points = []
    for level, (height, width) in enumerate(sizes):
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).flatten(0, 1)
        points.append(grid / ratios[:, None, level])
    return torch.cat(points, dim=1)[:, :, None] * ratios[:, None]


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)
