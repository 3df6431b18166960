"""Segmentation data for the Trainer: augmented crops for training, whole images for validation."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, Literal

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset

from vlkd.data.check import check_dataset
from vlkd.data.layouts import open_segmentation
from vlkd.data.loader import EvalSampler, place_of, shuffled_loader
from vlkd.data.regions import Regions
from vlkd.data.sample import SegmentationDataset, SegmentationSample, void_label
from vlkd.data.splits import DatasetView, Handling, apply_split
from vlkd.data.transforms import TrainTransform, collate, resize_short_side
from vlkd.errors import UserError

Split = Literal["train", "val"]


class SegmentationModuleBase(L.LightningDataModule):
    """Loaders, splits and augmentation over whatever data set `build(split)` returns.

    After setup(): `names` (K,), `isthing` (K,), `novel` (class indices), `void` (the ignored label), and the
    raw samples `train_dataset` and `val_dataset` (un-augmented; training samples after `novel_handling`).
    Batches are those of vlkd.data.transforms.collate.

    Args:
        novel: names that the student must not see, or a named split ("coco_gkc").
        novel_handling: what happens to novel segments in training: keep, ignore (become void), delete (the
        image).
        val_handling: segments that are scored: keep (all), base or novel only.
        batch_size: images per step and process.
        crop_size: height and width of the training crop in pixels, or one number for both.
        scale: range of the random scale; 1 makes the image's short side the crop's.
        flip: probability of a horizontal flip.
        colour_jitter: strength of brightness, contrast and saturation changes, 0 to 1.
        val_batch_size: images per validation step and process, padded to the largest.
        val_size: short side in pixels of validation images and labels; None keeps their own size.
        num_workers: loader processes.
        seed: of sample order and augmentation.
        limit: use the first so many training images only; None for all.
        val_limit: the same for validation.
    """

    def __init__(
        self,
        novel: list[str] | str | None = None,
        novel_handling: Literal["keep", "ignore", "delete"] = "ignore",
        val_handling: Literal["keep", "base", "novel"] = "keep",
        batch_size: int = 8,
        crop_size: tuple[int, int] | int = 512,
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        colour_jitter: float = 0.0,
        val_batch_size: int = 1,
        val_size: int | None = None,
        num_workers: int = 2,
        seed: int = 0,
        limit: int | None = None,
        val_limit: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < scale[0] <= scale[1]:
            raise UserError(f"data.scale must be two positive numbers, small one first; got {tuple(scale)}")
        if min(batch_size, val_batch_size) < 1:
            raise UserError("data.batch_size and data.val_batch_size must be at least 1")
        self.novel_names = novel
        self.novel_handling: Handling = novel_handling
        self.val_handling: Handling = val_handling
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        crop = (crop_size, crop_size) if isinstance(crop_size, int) else (crop_size[0], crop_size[1])
        self.transform = TrainTransform(crop, (scale[0], scale[1]), flip, colour_jitter)
        self.val_size = val_size
        self.num_workers = num_workers
        self.seed = seed
        self.limit, self.val_limit = limit, val_limit
        self.train_dataset: SegmentationDataset | None = None
        self.val_dataset: SegmentationDataset | None = None
        self.names: tuple[str, ...] = ()
        self.isthing: tuple[bool, ...] = ()
        self.novel: frozenset[int] = frozenset()
        self.void = void_label(0)

    @abstractmethod
    def build(self, split: Split) -> SegmentationDataset:
        """The whole data set of a split, novel classes included. Raises UserError where it is not there."""

    def setup(self, stage: str | None = None) -> None:
        """Open the data sets that `stage` needs. Raises UserError for what is missing."""
        if stage in (None, "fit") and self.train_dataset is None:
            self.train_dataset = self._open("train")
        if self.val_dataset is None:
            self.val_dataset = self._open("val")
        if self.train_dataset is not None and self.train_dataset.names != self.val_dataset.names:
            raise UserError("training and validation data have different class names; give `names` for both")
        self.names, self.isthing = self.val_dataset.names, self.val_dataset.isthing
        self.novel = self.val_dataset.novel
        self.void = void_label(len(self.names))

    def check(self) -> list[str]:
        """Read everything once; every problem of both splits, one line each (none when all is well)."""
        problems: list[str] = []
        for split in ("train", "val"):
            try:
                problems += check_dataset(self.build(split), f"checking {split}")
            except UserError as error:
                problems.append(str(error))
        return list(dict.fromkeys(problems))

    def collate(self, samples: list[SegmentationSample]) -> dict[str, Any]:
        """One batch; see vlkd.data.transforms.collate."""
        return collate(samples, self.void)

    def train_regions(self) -> Regions:
        """The labelled segments of the un-augmented training data, for a teacher to look at once."""
        assert self.train_dataset is not None, "setup() comes first"
        return Regions(self.train_dataset)

    def val_regions(self) -> Regions:
        """The same of the validation data, for a teacher to be scored on."""
        assert self.val_dataset is not None, "setup() comes first"
        return Regions(self.val_dataset)

    def train_dataloader(self) -> DataLoader:
        """Augmented crops in an order given by (seed, epoch); continues in mid-epoch after a resume."""
        assert self.train_dataset is not None, "setup() comes first"
        samples = TrainSamples(self.train_dataset, self.transform, self.seed)
        return shuffled_loader(samples, self.batch_size, self.seed, self.trainer, **self._loading())

    def val_dataloader(self) -> DataLoader:
        """Whole images in order; every image counts once on any number of processes."""
        assert self.val_dataset is not None, "setup() comes first"
        sampler = EvalSampler(self.val_dataset, *place_of(self.trainer))
        dataset = EvalSamples(self.val_dataset, self.val_size)
        return DataLoader(dataset, self.val_batch_size, sampler=sampler, **self._loading())

    def test_dataloader(self) -> DataLoader:
        """The validation images."""
        return self.val_dataloader()

    def _open(self, split: Split) -> SegmentationDataset:
        dataset = self.build(split)
        if missing := dataset.missing():
            more = f" (and {len(missing) - 1} more: run with --check)" if len(missing) > 1 else ""
            raise UserError(missing[0] + more)
        limit = self.limit if split == "train" else self.val_limit
        if limit is not None:
            dataset = DatasetView(dataset, range(min(limit, len(dataset))))
        return apply_split(
            dataset, self.novel_names, self.novel_handling if split == "train" else self.val_handling
        )

    def _loading(self) -> dict[str, Any]:
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "collate_fn": partial(collate, void=self.void),
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": pin,
        }


class SegmentationData(SegmentationModuleBase):
    """Training and validation data from folders in a public layout (see datasets/README.md).

    Args:
        root: folder of the data set.
        kind: folder, coco_panoptic, coco_stuff, ade20k, pascal_context, cityscapes or camvid.
        train_split: split used for training ("train", "val", or a folder's own name).
        val_split: split used for validation.
        names: class names in label order, a text file, or a packaged list's key; None for the kind's own.
        ignore: label value without a class (kind folder); None for 255, or 65535 with more than 255 names.
        reduce_zero_label: label 0 is void and v is class v-1 (kind folder).
        kwargs: see SegmentationModuleBase.
    """

    def __init__(
        self,
        root: str,
        kind: str = "folder",
        train_split: str = "train",
        val_split: str = "val",
        names: list[str] | str | None = None,
        ignore: int | None = None,
        reduce_zero_label: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root, self.kind, self.class_list = root, kind, names
        self.splits: dict[Split, str] = {"train": train_split, "val": val_split}
        self.options = {"ignore": ignore} if ignore is not None else {}
        if reduce_zero_label:
            self.options["reduce_zero_label"] = True

    def build(self, split: Split) -> SegmentationDataset:
        """The split's folders. Raises UserError for an unknown kind and for missing folders."""
        return open_segmentation(self.kind, self.root, self.splits[split], self.class_list, **self.options)


class TrainSamples(Dataset):
    """Augmented samples, addressed by (epoch, index): same address, same pixels, in any process."""

    def __init__(self, dataset: SegmentationDataset, transform: TrainTransform, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, address: tuple[int, int]) -> SegmentationSample:
        epoch, index = address
        return self.transform(self.dataset[index], np.random.default_rng((self.seed, epoch, index)))


class EvalSamples(Dataset):
    """Whole samples, addressed by (index, repeated); a repeated one is all void: no metric counts it."""

    def __init__(self, dataset: SegmentationDataset, short_side: int | None) -> None:
        self.dataset, self.short_side = dataset, short_side

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, address: tuple[int, bool]) -> SegmentationSample:
        index, repeated = address
        sample = resize_short_side(self.dataset[index], self.short_side)
        return sample.keep([False] * len(sample.info)) if repeated else sample
