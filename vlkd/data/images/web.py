"""Pools of unlabelled images as training data, scored on the labelled images that a teacher was made for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from vlkd.data.images.device import DeviceEvalLoader, DeviceImages, DeviceLoader
from vlkd.data.images.files import Batch, ImageDataset, TrainImages
from vlkd.data.images.module import ClassificationModuleBase, Pipeline, Split
from vlkd.data.images.pool import decode_pool, open_pool
from vlkd.data.images.world import WorldClassificationData
from vlkd.data.loader import EpochSampler, ResumableLoader, place_of
from vlkd.data.world_module import render_captioned
from vlkd.errors import UserError

_PASS = 1 << 64  # between the seeds of train_pass, in each epoch another, and of training


class WebData(ClassificationModuleBase):
    """Unlabelled training images from folders, tar shards and packs; labelled ones for validation.

    After setup(): `names` (K,) of the private classes and `pool_size`. Training batches are {"images"
    (B,3,S,S) in [0,1], "labels" (B,) all -1, "indices" (B,)}, the indices being places in the pool without
    what cannot be decoded.

    Args:
        pool: folders, shard patterns ("pool-{000..009}.tar"), .npz packs; one or several.
        private: labelled data whose validation images are the score; never trained on.
        size: side in pixels.
        pipeline: device (the pool is decoded once, its central squares are one tensor there), loader (worker
        processes read each image), or auto: device for at most 64 px and 4 GiB in all.
        scale: range of the area of the random resized crop.
        flip: probability of a horizontal flip.
        limit: use so many images of the pool only, a fixed random choice; None for all.
        batch_size: images per step and process.
        val_batch_size: images per batch of a pass over the pool.
        num_workers: processes that decode.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        pool: list[str] | str,
        private: ClassificationModuleBase,
        size: int = 32,
        pipeline: Pipeline = "auto",
        scale: tuple[float, float] = (0.08, 1.0),
        flip: float = 0.5,
        limit: int | None = None,
        batch_size: int = 128,
        val_batch_size: int = 256,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(
            pipeline=pipeline,
            image_size=size,
            limit=limit,
            batch_size=batch_size,
            val_batch_size=val_batch_size,
            flip=flip,
            resized_crop=(scale[0], scale[1]),
            val_crop=1.0,
            num_workers=num_workers,
            seed=seed,
        )
        self.pool: Sequence[str] = [pool] if isinstance(pool, str) else pool
        self.private = private
        self._kept: Tensor | None = None
        self._loader: DeviceLoader | ResumableLoader | None = None

    @property
    def pool_size(self) -> int:
        """Images of the pool that can be decoded."""
        assert self.train_dataset is not None, "setup() comes first"
        return len(self.train_dataset)

    def prepare_data(self) -> None:
        """What the private data need once on a machine."""
        self.private.prepare_data()

    def build(self, split: Split) -> ImageDataset:
        """The pool, or the private validation images. Raises UserError for sources that are not there."""
        return open_pool(self.pool) if split == "train" else self.private.build(split)

    def setup(self, stage: str | None = None) -> None:
        """Open the images that `stage` needs. Raises UserError for what is missing or broken."""
        self.private.trainer = self.trainer
        self.private.setup("validate")
        self.val_dataset, self.names = self.private.val_dataset, self.private.names
        self.novel = self.private.novel
        if stage in (None, "fit") and self.train_dataset is None:
            with self._first_process_first():
                pool = self._limited(self.build("train"), self.limit)
                self.train_dataset = pool if isinstance(pool, DeviceImages) else self._decoded(pool)

    def keep(self, indices: Tensor | None) -> None:
        """Train on the images `indices` (M,) of the pool only, from the next epoch on; None for all.

        Raises UserError for no index, and for one outside the pool.
        """
        if indices is not None:
            indices = indices.detach().cpu().long()
            if not len(indices):
                raise UserError("keep: no image is left to train on; keep at least one")
            if indices.min() < 0 or indices.max() >= self.pool_size:
                wrong = int(indices.max() if indices.max() >= self.pool_size else indices.min())
                raise UserError(
                    f"keep: image {wrong} of a pool of {self.pool_size}; expected 0 or more, below it"
                )
        self._kept = indices
        if self._loader is not None:
            self._loader.set_indices(indices)

    def train_dataloader(self) -> DeviceLoader | ResumableLoader:
        """Augmented images that are kept, in an order given by (seed, epoch), the last batch may be short."""
        data = self.train_dataset
        assert data is not None, "setup() comes first"
        sampler = EpochSampler(data, self.seed, *place_of(self.trainer))
        if self._uses_device(data):
            images = self._images("train")
            self._loader = DeviceLoader(
                images, sampler, self.batch_size, self.augment, self.trainer, drop_last=False
            )
        else:
            samples = TrainImages(data, self._file_augment(data), self.seed)
            self._loader = ResumableLoader(samples, sampler, self.batch_size, self.trainer, **self._loading())
        self._loader.set_indices(self._kept)
        return self._loader

    def val_dataloader(self) -> DeviceEvalLoader | DataLoader:
        """The private validation images."""
        self.private.trainer = self.trainer
        return self.private.val_dataloader()

    def val_fingerprint(self) -> str:
        """That of the private validation images."""
        return self.private.val_fingerprint()

    def train_pass(self, augmented: bool, view: int | None = None) -> Iterator[Batch]:
        """Each image of the pool once, kept or not, in its order, in batches of val_batch_size.

        Augmented images differ from view to view (None for the number of the run's epoch), and from those of
        training. On several processes all see all.
        """
        if view is None:
            view = 0 if self.trainer is None else self.trainer.current_epoch
        other = copy(self)
        other.seed = self.seed + _PASS * (1 + view)
        return ClassificationModuleBase.train_pass(other, augmented)

    def _decoded(self, pool: ImageDataset) -> ImageDataset:
        """The images of the pool that can be decoded, as pixels for the device pipeline."""
        device = self._uses_device(pool)
        pixels, numbers = decode_pool(pool, self.image_size if device else None, self.num_workers)
        if broken := len(pool) - len(numbers):
            _say(f"pool: left out {broken} of {len(pool)} images that cannot be decoded (--check names them)")
        if device:
            return DeviceImages(pixels, torch.full_like(numbers, -1), self.names)
        return pool.select(numbers)

    @contextmanager
    def _first_process_first(self) -> Iterator[None]:
        """One process of a machine decodes or renders; the others come after, and read what it has stored."""
        trainer = self.trainer
        if trainer is not None and trainer.world_size > 1 and trainer.local_rank:
            trainer.strategy.barrier()
        yield
        if trainer is not None and trainer.world_size > 1 and not trainer.local_rank:
            trainer.strategy.barrier()


class WorldWebData(WebData):
    """A pool of the procedural world's pictures: scenes of many objects, cut-outs and backgrounds alone.

    Args:
        private: see WebData; None for WorldClassificationData with its defaults.
        images: number of pictures in the pool.
        world_seed: of the pool's world; another than the private one's, which would share pictures.
        size: see WebData.
        kwargs: see WebData.
    """

    def __init__(
        self,
        private: ClassificationModuleBase | None = None,
        images: int = 10000,
        world_seed: int = 1,
        size: int = 32,
        **kwargs: Any,
    ) -> None:
        private = private or WorldClassificationData()
        if min(images, size) < 1:
            raise UserError("data.images and data.size must be at least 1")
        if getattr(private, "world_seed", None) == world_seed:
            raise UserError(f"data.world_seed={world_seed}: is that of the private pictures; choose another")
        super().__init__([], private, size=size, **kwargs)
        self.images, self.world_seed = images, world_seed

    def build(self, split: Split) -> ImageDataset:
        """The pictures of the pool, rendered once, or the private validation images."""
        if split == "val":
            return super().build(split)
        pixels, _ = render_captioned(self.world_seed, self.image_size or 0, 0, self.images)
        return DeviceImages(pixels, torch.full((len(pixels),), -1), self.names)


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
