"""What a network expects of an image: towers of different size and normalisation work side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.errors import UserError


@dataclass(frozen=True)
class InputSpec:
    """Input and output of a tower: size (H, W), normalisation, interpolation, embedding width, patch size."""

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    width: int = 0
    patch: int | None = None

    def __post_init__(self) -> None:
        if self.interpolation not in ("bicubic", "bilinear"):
            raise UserError(f"interpolation {self.interpolation!r}: expected bicubic or bilinear")
        for key in ("size", "mean", "std"):
            object.__setattr__(self, key, tuple(getattr(self, key)))

    def normalise(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> the same size, minus mean, over std."""
        mean = torch.tensor(self.mean, dtype=images01.dtype, device=images01.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=images01.dtype, device=images01.device).view(1, 3, 1, 1)
        return (images01 - mean) / std

    def prepare(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> (B,3,*size) resized (aspect not kept, antialiased) and normalised."""
        if tuple(images01.shape[-2:]) != self.size:
            images01 = F.interpolate(
                images01, size=self.size, mode=self.interpolation, align_corners=False, antialias=True
            ).clamp(0, 1)
        return self.normalise(images01)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a bundle's card."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputSpec:
        """Inverse of to_dict."""
        return cls(**values)
