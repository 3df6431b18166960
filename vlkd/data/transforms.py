"""Joint transforms of image and segments, and the collation of samples into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vlkd.data.sample import VOID, SegmentationSample, index_of

CROP_TRIES = 5  # a crop without any labelled pixel teaches nothing: draw again, but not for ever
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class TrainTransform:
    """Random scale, crop to at most `crop_size` (H, W), horizontal flip, colour jitter.

    The image is scaled so that its short side is s times the crop's, s in `scale`. An image smaller than the
    crop is not padded here (collate does). Segments that left the crop are removed from `info`.
    """

    crop_size: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    flip: float = 0.5
    colour_jitter: float = 0.0

    def __call__(self, sample: SegmentationSample, rng: np.random.Generator) -> SegmentationSample:
        """The augmented sample; `rng` is the only source of chance."""
        return self.clip([sample], rng)[0]

    def clip(
        self, samples: Sequence[SegmentationSample], rng: np.random.Generator
    ) -> list[SegmentationSample]:
        """Frames of one clip, all of one size, with one augmentation for all of them."""
        height, width = samples[0].segments.shape
        factor = float(np.exp(rng.uniform(*np.log(self.scale)))) * min(self.crop_size) / min(height, width)
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        out = (min(size[0], self.crop_size[0]), min(size[1], self.crop_size[1]))
        for _ in range(CROP_TRIES):
            top, left = (int(rng.integers(0, s - o + 1)) for s, o in zip(size, out, strict=True))
            rows = ((np.arange(top, top + out[0]) + 0.5) * height / size[0]).astype(np.intp)
            columns = ((np.arange(left, left + out[1]) + 0.5) * width / size[1]).astype(np.intp)
            cut = [sample.segments[rows[:, None], columns] for sample in samples]
            if any(segments.any() for segments in cut):
                break
        box: tuple[float, ...] = (left * width / size[1], top * height / size[0])
        box += (min(width, (left + out[1]) * width / size[1]), min(height, (top + out[0]) * height / size[0]))
        images = [_resized(sample.image, out, box) for sample in samples]
        if rng.random() < self.flip:
            images, cut = [image[:, ::-1] for image in images], [segments[:, ::-1] for segments in cut]
        images = _jittered(images, self.colour_jitter, rng)
        return [
            drop_vanished(replace(sample, image=image, segments=np.ascontiguousarray(segments)))
            for sample, image, segments in zip(samples, images, cut, strict=True)
        ]


def resize_short_side(sample: SegmentationSample, short_side: int | None) -> SegmentationSample:
    """The sample with its short side at `short_side` pixels, segments by nearest; None: unchanged."""
    height, width = sample.segments.shape
    if short_side is None or short_side == min(height, width):
        return sample
    factor = short_side / min(height, width)
    size = (round(height * factor), round(width * factor))
    rows = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.intp)
    columns = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.intp)
    image = _resized(sample.image, size, (0, 0, width, height))
    return drop_vanished(replace(sample, image=image, segments=sample.segments[rows[:, None], columns]))


def drop_vanished(sample: SegmentationSample) -> SegmentationSample:
    """The sample without segments that have no pixel."""
    return replace(sample, info=[s for s, area in zip(sample.info, sample.areas(), strict=True) if area])


def collate(samples: Sequence[SegmentationSample], void: int = VOID) -> dict[str, Any]:
    """Batch of samples of different sizes, padded at the right and bottom to the largest H and W.

    {"images" (B,3,H,W) float in [0,1], padding 0; "sizes" (B,2) int64 true height and width; "semantic"
    (B,H,W) int64, padding `void`; "ids"; "captions"; "targets": per image {"masks" (M,H,W) bool, "labels"
    (M,) int64, "regions": ["<sample id>/<segment id>"]}}. Crowd segments are in "semantic" only; no mask is
    empty.
    """
    sizes = torch.tensor([sample.segments.shape for sample in samples])
    height, width = sizes.max(dim=0).values.tolist()
    images = torch.zeros(len(samples), 3, height, width)
    semantic = torch.full((len(samples), height, width), void)
    targets = []
    for i, sample in enumerate(samples):
        h, w = sample.segments.shape
        images[i, :, :h, :w] = (
            torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1).float() / 255
        )
        semantic[i, :h, :w] = torch.from_numpy(sample.semantic(void))
        targets.append(_target(sample, height, width))
    return {
        "images": images,
        "sizes": sizes,
        "targets": targets,
        "semantic": semantic,
        "ids": [sample.id for sample in samples],
        "captions": [sample.caption for sample in samples],
    }


def _target(sample: SegmentationSample, height: int, width: int) -> dict[str, Tensor | list[str]]:
    singles = [segment for segment in sample.info if not segment.crowd]
    position = np.full((height, width), len(singles), dtype=np.intp)
    h, w = sample.segments.shape
    position[:h, :w] = index_of(sample.segments, np.array([s.id for s in singles], dtype=np.int64))
    masks = torch.from_numpy(position) == torch.arange(len(singles))[:, None, None]
    return {
        "masks": masks,
        "labels": torch.tensor([segment.category for segment in singles], dtype=torch.int64),
        "regions": [f"{sample.id}/{segment.id}" for segment in singles],
    }


def _resized(image: NDArray[np.uint8], size: tuple[int, int], box: tuple[float, ...]) -> NDArray[np.uint8]:
    """`box` (left, top, right, bottom) of the image at `size` (H, W): only the crop's pixels are computed."""
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, box=box)  # type: ignore[arg-type]
    return np.array(resized)


def _jittered(
    images: list[NDArray[np.uint8]], strength: float, rng: np.random.Generator
) -> list[NDArray[np.uint8]]:
    """Brightness, contrast and saturation, each times a factor in 1 -+ strength, one for all images."""
    if strength == 0:
        return images
    factors = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    return [_recoloured(image, *factors) for image in images]


def _recoloured(
    image: NDArray[np.uint8], brightness: np.float32, contrast: np.float32, saturation: np.float32
) -> NDArray[np.uint8]:
    pixels = image.astype(np.float32) * brightness
    pixels = (pixels - (mean := pixels.mean())) * contrast + mean
    grey = (pixels @ LUMA)[..., None]
    return ((pixels - grey) * saturation + grey).clip(0, 255).astype(np.uint8)
