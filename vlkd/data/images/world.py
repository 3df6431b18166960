"""Pictures of single objects of the procedural world, as labelled images."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from vlkd.cache import cache_folder, cache_key, store
from vlkd.data.images.device import DeviceImages
from vlkd.data.images.module import ClassificationModuleBase, Split
from vlkd.data.world import OBJECTS, World
from vlkd.errors import UserError

_RENDERER = 1  # raise when the pictures change: stored renderings are keyed by it
_VAL_START = 1_000_000
_CHUNK = 250
_NAMES = tuple(OBJECTS)


class WorldClassificationData(ClassificationModuleBase):
    """One object of the procedural world before a background; 34 classes, rendered once.

    Training and validation never share a number.

    Args:
        train_images: number of training pictures.
        val_images: number of validation pictures.
        size: height and width in pixels.
        world_seed: of the world itself.
        crop: see ClassificationModuleBase.
        kwargs: see ClassificationModuleBase.
    """

    def __init__(
        self,
        train_images: int = 6000,
        val_images: int = 1000,
        size: int = 32,
        world_seed: int = 0,
        crop: int = 2,
        **kwargs: Any,
    ) -> None:
        if not 0 < train_images <= _VAL_START or min(val_images, size) < 1:
            raise UserError(
                f"data.train_images must be at most {_VAL_START}; it, val_images and size at least 1"
            )
        super().__init__(crop=crop, **kwargs)
        self.numbers: dict[Split, tuple[int, int]] = {
            "train": (0, train_images),
            "val": (_VAL_START, val_images),
        }
        self.size, self.world_seed = size, world_seed

    def build(self, split: Split) -> DeviceImages:
        """Pictures of a split."""
        return DeviceImages(*render_objects(self.world_seed, self.size, *self.numbers[split]), _NAMES)


def render_objects(seed: int, size: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Pictures (N,3,S,S) uint8 and classes (N,); rendered once on all cores, then read from the cache."""
    key = cache_key(renderer=_RENDERER, kind="objects", seed=seed, size=size, first=first, count=count)
    path = cache_folder() / "world" / f"{key[:24]}.safetensors"
    if not path.is_file():
        from rich.console import Console
        from rich.progress import track

        chunks = [range(k, min(k + _CHUNK, first + count)) for k in range(first, first + count, _CHUNK)]
        console = Console(stderr=True)
        with ProcessPoolExecutor() as pool:
            work = pool.map(partial(_render, seed, size), chunks)
            title = f"rendering {count} pictures"
            parts = list(track(work, title, len(chunks), console=console, transient=True))
        images, labels = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        store(path, {"images": images, "labels": labels}, {})
    with safe_open(path, framework="pt") as stored:
        return stored.get_tensor("images"), stored.get_tensor("labels")


def _render(seed: int, size: int, numbers: range) -> tuple[np.ndarray, np.ndarray]:
    world = World(seed)
    scenes = [world.object_photo(i, (size, size)) for i in numbers]
    images = np.stack([scene.image for scene in scenes]).transpose(0, 3, 1, 2)
    labels = [next(c for k, c in s.categories.items() if s.isthing(k)) for s in scenes]
    return np.ascontiguousarray(images), np.array(labels, np.int64)
