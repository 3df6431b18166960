"""Labelled images that lie in files: what a data set of images is, and batches cut by worker processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlkd.cache import cache_folder, cache_key, store
from vlkd.data.files import IMAGE_SUFFIXES, read_image
from vlkd.errors import UserError

Batch = dict[str, Tensor]
# Image (3,H,W), label, place in the data set, and the view where there are some.
Item = tuple[Tensor, int, int] | tuple[Tensor, int, int, int]
_DECODER = 1  # raise when decoded pixels change: stored pixels are keyed by it
_CHUNK = 256
_ASPECT = 4 / 3  # of a random part at most, as torchvision


class ImageDataset(Protocol):
    """Images by number with labels (N,) int64 (-1 unlabelled) of the classes `names` (K,)."""

    names: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int: ...

    def image(self, index: int) -> NDArray[np.uint8]:
        """RGB (H,W,3)."""

    def select(self, indices: Tensor) -> ImageDataset:
        """The images `indices` (M,) alone."""

    def fingerprint(self) -> str:
        """Short hash of what there is."""


def images_below(folder: Path) -> list[str]:
    """Sorted paths of the images below a folder, relative to it."""
    found = os.walk(folder, followlinks=True)
    paths = (os.path.join(place, name) for place, _, names in found for name in names)
    return sorted(os.path.relpath(p, folder) for p in paths if p.lower().endswith(IMAGE_SUFFIXES))


class FileImages:
    """Images in files below `root`, given by relative path; labels (N,); an ImageDataset."""

    def __init__(self, root: Path, files: Sequence[str], labels: Tensor, names: tuple[str, ...]) -> None:
        self.root, self.files, self.labels, self.names = root, files, labels, names

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> NDArray[np.uint8]:
        """RGB (H,W,3), upright. Raises UserError as read_image."""
        return read_image(self.root / self.files[index])

    def select(self, indices: Tensor) -> FileImages:
        """The images `indices` (M,) alone."""
        files = [self.files[i] for i in indices.tolist()]
        return FileImages(self.root, files, self.labels[indices], self.names)

    def fingerprint(self) -> str:
        """Short hash of class names, labels, relative paths and file sizes."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.names).encode() + self.labels.numpy().tobytes())
        for file in self.files:
            digest.update(f"{file}\0{_size(self.root / file)}\n".encode("utf-8", "replace"))
        return digest.hexdigest()[:16]


def _size(path: Path) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        raise UserError(f"{path}: image not found") from None


@dataclass(frozen=True)
class FileAugment:
    """A random part of an image scaled to (size,size), and a random horizontal flip.

    Args:
        size: in pixels.
        scale: range of the part's area; its aspect ratio is at most 4/3.
        flip: probability of the flip.
        crop: with a scale of None, black border of which a random crop keeps the image's own size.
    """

    size: int
    scale: tuple[float, float] | None
    flip: float
    crop: int = 0

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Augmented image (size,size,3) of an image (H,W,3)."""
        if self.scale is None:
            border = ((self.crop, self.crop), (self.crop, self.crop), (0, 0))
            top, left = rng.integers(0, 2 * self.crop + 1, 2)
            done = np.pad(image, border)[top : top + image.shape[0], left : left + image.shape[1]]
        else:
            done = resize(image, self.size, *self._part(image.shape[0], image.shape[1], rng))
        return done[:, ::-1] if rng.random() < self.flip else done

    def _part(self, height: int, width: int, rng: np.random.Generator) -> tuple[float, float, float, float]:
        assert self.scale is not None
        area = height * width * rng.uniform(*self.scale)
        aspect = _ASPECT ** rng.uniform(-1, 1)
        wide, tall = min(width, (area * aspect) ** 0.5), min(height, (area / aspect) ** 0.5)
        left, top = rng.uniform(0, width - wide), rng.uniform(0, height - tall)
        return left, top, left + wide, top + tall


def resize(
    image: NDArray[np.uint8], size: int, left: float, top: float, right: float, bottom: float
) -> NDArray[np.uint8]:
    """The box of an image (H,W,3), scaled to (size,size,3)."""
    box = (left, top, right, bottom)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR, box))


def centre(image: NDArray[np.uint8], size: int, part: float) -> NDArray[np.uint8]:
    """The central square of `part` of the short side, scaled to (size,size,3)."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    side = part * min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return resize(image, size, left, top, left + side, top + side)


class TrainImages(Dataset):
    """Augmented images, addressed by (epoch, index): same address, same pixels, in any process.

    With `views`, epoch e shows the pixels of epoch e % views, and an item ends with that number.
    """

    def __init__(self, data: ImageDataset, augment: FileAugment, seed: int, views: int | None = None) -> None:
        self.data, self.augment, self.seed, self.views = data, augment, seed, views

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, address: tuple[int, int]) -> Item:
        epoch, index = address
        view = epoch if self.views is None else epoch % self.views
        image = self.augment(self.data.image(index), np.random.default_rng((self.seed, view, index)))
        item = as_tensor(image), int(self.data.labels[index]), index
        return item if self.views is None else (*item, view)


class EvalImages(Dataset):
    """Central squares, addressed by (index, repeated) as EvalSampler does."""

    def __init__(self, data: ImageDataset, size: int, part: float) -> None:
        self.data, self.size, self.part = data, size, part

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, address: tuple[int, bool]) -> tuple[Tensor, int, int]:
        index, _ = address
        image = centre(self.data.image(index), self.size, self.part)
        return as_tensor(image), int(self.data.labels[index]), index


def decode_all(data: ImageDataset, size: int, workers: int) -> Tensor:
    """Central squares (N,3,S,S) uint8 of all images; decoded once, then read from the cache.

    Raises UserError naming the first image that cannot be read.
    """
    key = cache_key(decoder=_DECODER, images=data.fingerprint(), size=size)
    path = cache_folder() / "decoded" / f"{key[:24]}.safetensors"
    if not path.is_file():
        loader: DataLoader = DataLoader(
            EvalImages(data, size, 1.0),
            _CHUNK,
            sampler=[(i, False) for i in range(len(data))],
            num_workers=workers,
            collate_fn=_stack,
            generator=torch.Generator(),
        )
        console = Console(stderr=True)
        parts = list(track(loader, f"decoding {len(data)} images", console=console, transient=True))
        store(path, {"images": torch.cat(parts).contiguous()}, {})
    with safe_open(path, framework="pt") as stored:
        return stored.get_tensor("images")


def _stack(items: list[tuple[Tensor, int, int]]) -> Tensor:
    return torch.stack([image for image, _, _ in items])


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(3,H,W) of (H,W,3)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def collate(items: Sequence[Item]) -> Batch:
    """{"images" (B,3,H,W) in [0,1], "labels" (B,), "indices" (B,)}, and "views" (B,) where items have one."""
    images, *numbers = map(list, zip(*items, strict=True))
    stacked = torch.stack(images).float().div_(255)
    names = ("labels", "indices", "views")[: len(numbers)]
    return {"images": stacked, **dict(zip(names, map(torch.tensor, numbers), strict=True))}
