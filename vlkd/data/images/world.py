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
from vlkd.data.images.select import Classes, class_indices, few_shot_indices, need_classes, need_shots
from vlkd.data.splits import resolve_novel
from vlkd.data.world import NOVEL, OBJECTS, World, domains
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
        novel: names of the novel classes, "world" for the eight objects among vlkd.data.world.NOVEL, or None.
        classes: of the training pictures: all, base or novel; labels and names stay those of all classes, and
        validation shows all.
        shots: training pictures of each class; None for all. Where a class has fewer, all of its own.
        shots_seed: of the pictures that `shots` chooses; None for `seed`.
        domain: how all pictures look: plain, night, sketch or infrared.
        kwargs: see ClassificationModuleBase.
    """

    def __init__(
        self,
        train_images: int = 6000,
        val_images: int = 1000,
        size: int = 32,
        world_seed: int = 0,
        crop: int = 2,
        novel: list[str] | str | None = None,
        classes: Classes = "all",
        shots: int | None = None,
        shots_seed: int | None = None,
        domain: str = "plain",
        **kwargs: Any,
    ) -> None:
        if not 0 < train_images <= _VAL_START or min(val_images, size) < 1:
            raise UserError(
                f"data.train_images must be at most {_VAL_START}; it, val_images and size at least 1"
            )
        need_classes("data.classes", classes)
        need_shots(shots)
        domains.need_domain(domain)
        super().__init__(crop=crop, **kwargs)
        self.novel_classes = _novel_classes(novel)
        if classes != "all" and not self.novel_classes:
            raise UserError(f'data.classes={classes}: data.novel names no class; set it, such as to "world"')
        self.numbers: dict[Split, tuple[int, int]] = {
            "train": (0, train_images),
            "val": (_VAL_START, val_images),
        }
        self.size, self.world_seed, self.domain = size, world_seed, domain
        self.classes: Classes = classes
        self.shots, self.shots_seed = shots, self.seed if shots_seed is None else shots_seed

    def build(self, split: Split) -> DeviceImages:
        """Pictures of a split. Raises UserError where none of the chosen classes is among them."""
        pixels, labels = render_objects(self.world_seed, self.size, *self.numbers[split], self.domain)
        data = DeviceImages(pixels, labels, _NAMES)
        if split == "val":
            return data
        if self.shots is not None:
            data = data.select(few_shot_indices(data.labels, self.shots, self.shots_seed))
        if self.classes != "all":
            base = set(range(len(_NAMES))) - self.novel_classes
            chosen = base if self.classes == "base" else self.novel_classes
            data = data.select(class_indices(data.labels, chosen))
        if not len(data):
            raise UserError(
                f"data.train_images: no training picture is of the {self.classes} classes; set more"
            )
        return data

    def novel_labels(self) -> frozenset[int]:
        """The classes that `novel` names."""
        return self.novel_classes


def _novel_classes(novel: list[str] | str | None) -> frozenset[int]:
    if novel == "world":
        novel = [name for name in NOVEL if name in OBJECTS]
    if isinstance(novel, str):
        raise UserError(f'data.novel={novel}: expected a list of names, "world" or null')
    return resolve_novel(novel, _NAMES)


def render_objects(
    seed: int, size: int, first: int, count: int, domain: str = "plain"
) -> tuple[Tensor, Tensor]:
    """Pictures (N,3,S,S) uint8 and classes (N,); rendered once on all cores, then read from the cache."""
    plain = {
        "renderer": _RENDERER,
        "kind": "objects",
        "seed": seed,
        "size": size,
        "first": first,
        "count": count,
    }
    shifted = {} if domain == "plain" else {"domain": domain, "shift": domains.RENDERER}
    path = cache_folder() / "world" / f"{cache_key(**plain, **shifted)[:24]}.safetensors"
    if not path.is_file() and shifted:
        images, labels = render_objects(seed, size, first, count)
        store(path, {"images": domains.shift(images, domain, seed, first), "labels": labels}, {})
    elif not path.is_file():
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
