"""Regions as the teacher sees them: one segment on grey, cropped to its box and resized."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.data.sample import SegmentationSample

GREY = 128


def crop_regions(
    sample: SegmentationSample, size: int | tuple[int, int], min_area: int = 1, masked: bool = True
) -> tuple[Tensor, list[int]]:
    """Every segment of at least min_area pixels as an image: (M,3,S,S) uint8, and its positions in sample.info.

    Everything outside the segment is painted grey (128) unless masked is False; the inclusive bounding box is
    cut out and resized without keeping its aspect. Source: GKC, "teacher input", with the box's last row and
    column kept.
    """
    size = (size, size) if isinstance(size, int) else size
    index = sample.segment_index()
    kept = [k for k, area in enumerate(sample.areas()) if area >= min_area]
    image = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1).float()
    crops = torch.empty(len(kept), 3, *size, dtype=torch.uint8)
    for n, k in enumerate(kept):
        mask = index == k
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        patch = image[:, window[0], window[1]]
        if masked:
            patch = torch.where(torch.from_numpy(mask[window]), patch, float(GREY))
        patch = F.interpolate(patch[None], size, mode="bicubic", align_corners=False, antialias=True)
        crops[n] = patch[0].round_().clamp_(0, 255).to(torch.uint8)
    return crops, kept
