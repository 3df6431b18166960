"""Regions as the teacher sees them: one segment on grey, cropped to its box and resized."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.data.sample import SegmentationSample

GREY = 128


def crop_regions(
    sample: SegmentationSample, size: int | tuple[int, int], min_area: int = 1, masked: bool = True
) -> tuple[Tensor, list[int]]:
    """Segments of at least min_area pixels as images: (M,3,S,S) uint8, and their positions in sample.info.

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


class Regions:
    """All segments of a data set as the teacher sees them, un-augmented, with the keys that batches use."""

    def __init__(self, dataset: Sequence[SegmentationSample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def fingerprint(self) -> str:
        """Hash of the data set's length and of the content of four samples; changes where the data do."""
        count = len(self.dataset)
        digest = hashlib.sha256(str(count).encode())
        for index in sorted({0, count // 3, count // 2, count - 1}) if count else []:
            sample = self.dataset[index]
            digest.update(sample.id.encode() + sample.image.tobytes() + sample.segments.tobytes())
            digest.update(repr(sample.info).encode())
        return digest.hexdigest()

    def crops(self, size: tuple[int, int], masked: bool) -> Iterator[tuple[list[str], Tensor]]:
        """Per sample: keys "sample id/segment id" and crops (M,3,*size) uint8; see crop_regions."""
        for index in range(len(self.dataset)):
            sample = self.dataset[index]
            crops, kept = crop_regions(sample, size, masked=masked)
            yield [f"{sample.id}/{sample.info[k].id}" for k in kept], crops

    def labelled(self, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Per sample: masked crops (M,3,*size) uint8 and their class indices (M,)."""
        for index in range(len(self.dataset)):
            sample = self.dataset[index]
            crops, kept = crop_regions(sample, size)
            yield crops, torch.tensor([sample.info[k].category for k in kept], dtype=torch.long)
