"""Pixel decoders: backbone maps -> stride-4 mask features and three scales for the mask decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics come from valid cells only, so that padding changes nothing."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, C, h, w), valid (B, h, w) bool or None -> (B, C, h, w)."""
        if valid is None:
            return super().forward(x)
        groups = x.float().unflatten(1, (self.num_groups, -1))
        weight = valid[:, None, None].to(groups.dtype)
        count = weight.sum((2, 3, 4), keepdim=True) * groups.shape[2]
        mean = (groups * weight).sum((2, 3, 4), keepdim=True) / count
        variance = ((groups - mean).square() * weight).sum((2, 3, 4), keepdim=True) / count
        y = ((groups - mean) * torch.rsqrt(variance + self.eps)).flatten(1, 2).to(x.dtype)
        return y * self.weight[:, None, None] + self.bias[:, None, None]


class ConvNorm(nn.Module):
    """Convolution, `MaskedGroupNorm` and, on request, ReLU; invalid cells enter and leave as zeros."""

    def __init__(self, inputs: int, outputs: int, kernel: int, activate: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = MaskedGroupNorm(norm_groups(outputs), outputs)
        self.activate = activate
        nn.init.kaiming_uniform_(self.conv.weight, a=1)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """x (B, C, h, w), valid (B, h, w) bool or None -> (B, outputs, h, w)."""
        x = self.norm(self.conv(hide(x, valid)), valid)
        return hide(F.relu(x) if self.activate else x, valid)


class FPN(nn.Module):
    """Feature pyramid: 1x1 laterals, top-down sums, 3x3 outputs (Lin et al., arXiv 1612.03144)."""

    def __init__(self, inputs: Sequence[int], channels: int, mask_channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList([ConvNorm(c, channels, 1) for c in inputs])
        self.outputs = nn.ModuleList([ConvNorm(channels, channels, 3, activate=True) for _ in inputs])
        self.mask_features = nn.Conv2d(channels, mask_channels, 1)

    def forward(self, maps: Sequence[Tensor], valids: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """Maps and valid masks at strides 4, 8, 16, 32 -> mask features at stride 4, maps at 32, 16, 8."""
        y = self.outputs[3](self.laterals[3](maps[3], valids[3]), valids[3])
        scales = [y]
        for i in (2, 1, 0):
            up = F.interpolate(y, scale_factor=2.0, mode="nearest")
            y = self.outputs[i](self.laterals[i](maps[i], valids[i]) + up, valids[i])
            scales.append(y)
        return self.mask_features(scales.pop()), scales


def hide(x: Tensor, valid: Tensor | None) -> Tensor:
    """x (B, C, h, w) with cells outside `valid` (B, h, w) set to zero."""
    return x if valid is None else x * valid[:, None].to(x.dtype)


def norm_groups(channels: int) -> int:
    """Groups of a group norm: at most 32, at least 4 channels each, dividing `channels`."""
    groups = min(32, max(1, channels // 4))
    while channels % groups:
        groups -= 1
    return groups
