"""The procedural world as training data: captioned images for CLIP, labelled scenes for segmentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from rich.progress import track
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlkd.cache import cache_folder, cache_key, store
from vlkd.data.loader import shuffled_loader
from vlkd.data.module import SegmentationModuleBase, Split
from vlkd.data.regions import crop_regions
from vlkd.data.sample import Segment, SegmentationDataset, SegmentationSample
from vlkd.data.world import NAMES, NOVEL, THINGS, Scene, World, world_synonyms
from vlkd.errors import UserError

_RENDERER = 2  # raise when the world's pixels or captions change: stored renderings are keyed by it
_VAL_START = 1_000_000
_WORDINGS = 4


class WorldSegmentation(SegmentationDataset):
    """Scenes first..first+count of a world, rendered on first use and kept."""

    names = NAMES
    isthing = tuple(k < THINGS for k in range(len(NAMES)))

    def __init__(self, world: World, first: int, count: int, size: tuple[int, int]) -> None:
        self.world, self.first, self.scenes, self.size = world, first, count, size
        self._kept: dict[int, SegmentationSample] = {}

    def __len__(self) -> int:
        return self.scenes

    def __getitem__(self, index: int) -> SegmentationSample:  # type: ignore[override]
        if index not in self._kept:
            number = self.first + index
            self._kept[index] = as_sample(
                self.world.scene(number, self.size), f"world{self.world.seed}/{number}"
            )
        return self._kept[index]


def as_sample(scene: Scene, name: str) -> SegmentationSample:
    """A scene in the form of every other segmentation data set."""
    info = [Segment(k, c, scene.isthing(k)) for k, c in scene.categories.items()]
    return SegmentationSample(name, scene.image, scene.panoptic, info, scene.caption)


class WorldSegmentationData(SegmentationModuleBase):
    """Scenes of the procedural world; training and validation never share a number.

    Args:
        train_scenes: number of training scenes.
        val_scenes: number of validation scenes.
        size: height and width in pixels.
        world_seed: of the world itself.
        novel: names that are never labelled for the student; None for the world's own split.
        batch_size: see SegmentationModuleBase.
        num_workers: see SegmentationModuleBase.
        crop_size: of training crops; None for the scenes' own size.
        kwargs: see SegmentationModuleBase.
    """

    def __init__(
        self,
        train_scenes: int = 2000,
        val_scenes: int = 200,
        size: tuple[int, int] = (128, 128),
        world_seed: int = 0,
        novel: list[str] | str | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        crop_size: tuple[int, int] | int | None = None,
        **kwargs: Any,
    ) -> None:
        if not 0 < train_scenes <= _VAL_START or min(val_scenes, *size) < 1:
            raise UserError(
                f"data.train_scenes must be at most {_VAL_START}; it, val_scenes and size at least 1"
            )
        super().__init__(
            novel=list(NOVEL) if novel is None else novel,
            batch_size=batch_size,
            num_workers=num_workers,
            crop_size=crop_size or (size[0], size[1]),
            **kwargs,
        )
        self.scenes: dict[Split, tuple[int, int]] = {
            "train": (0, train_scenes),
            "val": (_VAL_START, val_scenes),
        }
        self.size = (size[0], size[1])
        self.world_seed = world_seed

    def build(self, split: Split) -> SegmentationDataset:
        """Scenes of a split."""
        return WorldSegmentation(World(self.world_seed), *self.scenes[split], self.size)

    @staticmethod
    def training_synonyms(name: str) -> tuple[str, ...]:
        """Words that may stand for a class in student training."""
        return world_synonyms(name, held_out=False)

    @staticmethod
    def held_out_synonym(name: str) -> str:
        """The word for a class that student training never sees."""
        return world_synonyms(name, held_out=True)[0]


def _view(world: World, i: int, size: tuple[int, int]) -> Scene:
    """Every kind of picture in turn: scenes with many objects, photos of one, and backgrounds alone."""
    kind = i % 10
    if kind < 4:
        return world.scene(i, size)
    return world.object_photo(i, size, plain=kind < 6) if kind < 8 else world.swatch(i, size)


def _render(seed: int, size: int, numbers: range) -> tuple[np.ndarray, list[list[str]]]:
    world = World(seed)
    views = [_view(world, i, (size, size)) for i in numbers]
    return np.stack([v.image for v in views]).transpose(0, 3, 1, 2), [v.captions(_WORDINGS) for v in views]


def render_captioned(seed: int, size: int, first: int, count: int) -> tuple[Tensor, list[list[str]]]:
    """Images (N,3,S,S) uint8 and captions of each; rendered once on all cores, then read from the cache."""
    key = cache_key(renderer=_RENDERER, seed=seed, size=size, first=first, count=count)
    path = cache_folder() / "world" / f"{key[:24]}.safetensors"
    if not path.is_file():
        chunks = [range(k, min(k + 500, first + count)) for k in range(first, first + count, 500)]
        with ProcessPoolExecutor() as pool:
            parts = list(
                track(
                    pool.map(partial(_render, seed, size), chunks), f"rendering {count} pictures", len(chunks)
                )
            )
        images = torch.from_numpy(np.concatenate([p[0] for p in parts]))
        captions = json.dumps([c for p in parts for c in p[1]])
        store(path, {"images": images}, {"captions": captions})
    with safe_open(path, framework="pt") as stored:
        return stored.get_tensor("images"), json.loads(stored.metadata()["captions"])


class Captioned(Dataset):
    """Images (N,3,H,W) uint8 with wordings of their captions, addressed by (epoch, index)."""

    def __init__(self, images: Tensor, captions: list[list[str]], seed: int) -> None:
        self.images, self.captions, self.seed = images, captions, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, address: tuple[int, int]) -> tuple[Tensor, str]:
        epoch, index = address
        rng = np.random.default_rng((self.seed, epoch, index))
        image, wordings = self.images[index], self.captions[index]
        top, left = (int(v) for v in rng.integers(-3, 4, 2))
        shifted = torch.roll(image, (top, left), (1, 2)) if rng.random() < 0.5 else image
        return shifted.flip(2) if rng.random() < 0.5 else shifted, wordings[int(rng.integers(len(wordings)))]


def collate_captioned(items: list[tuple[Tensor, str]]) -> dict[str, Any]:
    """{"images" (B,3,H,W) in [0,1], "captions" list[str]}."""
    return {
        "images": torch.stack([image for image, _ in items]).float() / 255,
        "captions": [text for _, text in items],
    }


class CaptionData(L.LightningDataModule):
    """Captioned images held in memory; a subclass says where they come from.

    After setup(): `regions`, cut-out segments (N,3,S,S) uint8 with their class index (N,), and `names` (K,),
    on which a CLIP model is scored; `pairs`, images (N,3,S,S) uint8 with the captions of each, for retrieval.
    """

    names: tuple[str, ...]
    regions: tuple[Tensor, Tensor]
    pairs: tuple[Tensor, list[list[str]]] | None = None

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.train_set: Dataset | None = None

    def train_dataloader(self) -> DataLoader:
        """Shuffled by (seed, epoch)."""
        assert self.train_set is not None, "setup() comes first"
        options = {"num_workers": self.num_workers, "collate_fn": collate_captioned}
        return shuffled_loader(self.train_set, self.batch_size, self.seed, self.trainer, **options)

    def val_dataloader(self) -> DataLoader:
        """Region images and labels: {"images" (B,3,S,S) in [0,1], "labels" (B,)}."""
        images, labels = self.regions
        pairs = [(image, int(label)) for image, label in zip(images, labels, strict=True)]
        return DataLoader(pairs, 256, collate_fn=_collate_labelled)  # type: ignore[arg-type]

    def pair_batches(self) -> Iterator[dict[str, Any]]:
        """{"images" (B,3,S,S) in [0,1], "captions": B lists of strings} of validation; none without pairs."""
        images, captions = self.pairs or (torch.empty(0), [])
        for start in range(0, len(images), 256):
            part = slice(start, start + 256)
            yield {"images": images[part].float() / 255, "captions": captions[part]}


def _collate_labelled(items: list[tuple[Tensor, int]]) -> dict[str, Any]:
    return {
        "images": torch.stack([i for i, _ in items]).float() / 255,
        "labels": torch.tensor([k for _, k in items]),
    }


class WorldCaptionData(CaptionData):
    """Captioned pictures of the procedural world.

    Args:
        images: number of training pictures.
        size: height and width in pixels.
        val_scenes: scenes whose grey-masked regions a CLIP model is scored on.
        val_pairs: unseen scenes, with one caption each, among which it must find image and text; 0 for none.
        batch_size: pictures per step and process.
        num_workers: loader processes.
        world_seed: of the world itself.
        seed: of order, augmentation and choice of wording.
    """

    names = NAMES
    train_set: Captioned | None

    def __init__(
        self,
        images: int = 40000,
        size: int = 64,
        val_scenes: int = 200,
        batch_size: int = 256,
        num_workers: int = 0,
        world_seed: int = 0,
        seed: int = 0,
        val_pairs: int = 0,
    ) -> None:
        if not 0 < images <= _VAL_START or min(size, val_scenes, batch_size) < 1:
            raise UserError(
                f"data.images must be at most {_VAL_START}; it, size, val_scenes and batch_size at least 1"
            )
        if val_pairs < 0:
            raise UserError(f"data.val_pairs={val_pairs}: expected 0 (no retrieval) or more")
        super().__init__(batch_size, num_workers, seed)
        self.val_pairs = val_pairs
        self.images, self.size, self.val_scenes, self.world_seed = images, size, val_scenes, world_seed

    def setup(self, stage: str | None = None) -> None:
        """Render (or read) what the stage needs."""
        if stage in (None, "fit") and self.train_set is None:
            self.train_set = Captioned(
                *render_captioned(self.world_seed, self.size, 0, self.images), self.seed
            )
        if not hasattr(self, "regions"):
            scenes = WorldSegmentation(World(self.world_seed), _VAL_START, self.val_scenes, (128, 128))
            cropped = [crop_regions(sample, self.size, min_area=40) for sample in scenes]
            images = torch.cat([c for c, _ in cropped])
            labels = [
                sample.info[k].category
                for sample, (_, kept) in zip(scenes, cropped, strict=True)
                for k in kept
            ]
            self.regions = images, torch.tensor(labels)
        if self.val_pairs and self.pairs is None:
            world = World(self.world_seed)
            views = [world.scene(_VAL_START + i, (self.size, self.size)) for i in range(self.val_pairs)]
            pixels = np.stack([view.image for view in views]).transpose(0, 3, 1, 2)
            self.pairs = torch.from_numpy(pixels), [[view.caption] for view in views]
