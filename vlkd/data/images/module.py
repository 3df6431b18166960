"""Labelled images for the Trainer: from one tensor on the device, or from files by worker processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from vlkd.cache import cache_key
from vlkd.data.folder import read_names
from vlkd.data.images.cifar import CLASSES, read_cifar
from vlkd.data.images.device import (
    DeviceAugment,
    DeviceEvalLoader,
    DeviceImages,
    DeviceLoader,
    augmented_batch,
)
from vlkd.data.images.files import (
    Batch,
    EvalImages,
    FileAugment,
    ImageDataset,
    TrainImages,
    collate,
    decode_all,
)
from vlkd.data.images.folder import open_folder, open_imagenet, open_list
from vlkd.data.images.long_tail import long_tail_indices
from vlkd.data.images.select import holdout_indices, need_holdout
from vlkd.data.loader import EpochSampler, EvalSampler, ResumableLoader, place_of
from vlkd.errors import UserError
from vlkd.text.names import nearest_hint

Split = Literal["train", "val"]
Part = Literal["train", "val", "held_out"]
Pipeline = Literal["auto", "device", "loader"]
_SMALL = 64  # side in pixels up to which "auto" holds the decoded files in memory
_MEMORY = 4 << 30  # bytes of pixels up to which it does
_SIZE = 224  # of images in files, unless said otherwise
_SCALE = (0.08, 1.0)
_FOLDERS = {"folder": open_folder, "imagenet": open_imagenet, "list": open_list}


class ClassificationModuleBase(L.LightningDataModule):
    """Loaders and augmentation over whatever `build(split)` returns.

    After setup(): `names` (K,), the labels `novel` of novel classes, the raw images `train_dataset`,
    `val_dataset` and, with `holdout`, `held_out_dataset`, and of the training images `train_labels` (N,) and
    `class_counts` (K,). Batches are {"images" (B,3,H,W) in [0,1], "labels" (B,), "indices" (B,)}, the indices
    being places in the data set; with `views`, training batches have each image's view, "views" (B,).

    Args:
        pipeline: device (all images are one tensor there), loader (worker processes read each image), or
        auto: device for images in memory and for files of at most 64 px and 4 GiB in all.
        image_size: side in pixels; None for the images' own size in memory, and 224 for files.
        imbalance_factor: largest class over smallest, of training images left in a long tail; 1 keeps all.
        limit: use so many training images only, a fixed random choice; None for all.
        val_limit: the same for validation.
        subset_seed: of the images that imbalance_factor, limit, val_limit and holdout choose.
        batch_size: images per step and process.
        val_batch_size: images per validation step and process.
        crop: border in pixels of the random crop, of images at their own size.
        flip: probability of a horizontal flip.
        resized_crop: range of the area of a random resized crop, in place of `crop`; None for none with
        images at their own size, and (0.08, 1) for files read by workers.
        val_crop: part of the short side that validation sees, of files read by workers.
        num_workers: processes of the loader pipeline.
        seed: of sample order and augmentation.
        views: different augmented views of each training image: epoch e shows view e % views; None: each
        epoch a new one.
        holdout: part of each class's training images kept back, to choose an epoch by (at least one of a
        class that has two or more).
    """

    def __init__(
        self,
        pipeline: Pipeline = "auto",
        image_size: int | None = None,
        imbalance_factor: float = 1.0,
        limit: int | None = None,
        val_limit: int | None = None,
        subset_seed: int = 0,
        batch_size: int = 64,
        val_batch_size: int = 256,
        crop: int = 4,
        flip: float = 0.5,
        resized_crop: tuple[float, float] | None = None,
        val_crop: float = 0.875,
        num_workers: int = 2,
        seed: int = 0,
        views: int | None = None,
        holdout: float = 0.0,
    ) -> None:
        super().__init__()
        counts = (batch_size, val_batch_size, image_size, limit, val_limit, views)
        if min(v for v in counts if v is not None) < 1 or not 0 < val_crop <= 1:
            raise UserError(
                "data: batch_size, val_batch_size, image_size, limit, val_limit and views must be at least "
                "1, val_crop between 0 and 1"
            )
        need_holdout(holdout)
        if not imbalance_factor >= 1:
            raise UserError(f"data.imbalance_factor={imbalance_factor}: expected 1 (balanced) or more")
        if pipeline not in ("auto", "device", "loader"):
            raise UserError(f"data.pipeline={pipeline}: expected auto, device or loader")
        self.pipeline: Pipeline = pipeline
        self.image_size = image_size
        self.imbalance_factor, self.subset_seed = imbalance_factor, subset_seed
        self.limit, self.val_limit = limit, val_limit
        self.batch_size, self.val_batch_size = batch_size, val_batch_size
        scale = None if resized_crop is None else (resized_crop[0], resized_crop[1])
        self.augment = DeviceAugment(crop, flip, scale)
        self.val_crop = val_crop
        self.num_workers, self.seed = num_workers, seed
        self.views, self.holdout = views, holdout
        self.train_dataset: ImageDataset | None = None
        self.val_dataset: ImageDataset | None = None
        self.held_out_dataset: ImageDataset | None = None
        self.names: tuple[str, ...] = ()
        self.novel: frozenset[int] = frozenset()
        self._on_device: dict[Part, DeviceImages] = {}

    @abstractmethod
    def build(self, split: Split) -> ImageDataset:
        """All images of a split. Raises UserError where they are not there."""

    def novel_labels(self) -> frozenset[int]:
        """Labels of the novel classes among `names`; none where the data make no difference."""
        return frozenset()

    def setup(self, stage: str | None = None) -> None:
        """Open the images that `stage` needs. Raises UserError for what is missing or does not fit."""
        if stage in (None, "fit") and self.train_dataset is None:
            data = self.build("train")
            if self.imbalance_factor > 1:
                kept = long_tail_indices(
                    data.labels, len(data.names), self.imbalance_factor, self.subset_seed
                )
                data = data.select(kept)
            self.train_dataset = self._without_held_out(self._limited(data, self.limit))
            self.train_labels = self.train_dataset.labels
            self.class_counts = torch.bincount(self.train_labels, minlength=len(data.names))
        if self.val_dataset is None:
            self.val_dataset = self._limited(self.build("val"), self.val_limit)
        if self.train_dataset is not None and self.train_dataset.names != self.val_dataset.names:
            raise UserError("training and validation images have different classes; both need the same ones")
        self.names = self.val_dataset.names
        self.novel = self.novel_labels()

    def train_fingerprint(self, augmented: bool = True) -> str:
        """Short hash of the training images, their labels, and of what train_pass does to them."""
        assert self.train_dataset is not None, "setup() comes first"
        transform = [self.augment, self.seed] if augmented else [self.val_crop]
        return self._fingerprint(self.train_dataset, transform)

    def val_fingerprint(self) -> str:
        """Short hash of the validation images, their labels and how they are cut."""
        assert self.val_dataset is not None, "setup() comes first"
        return self._fingerprint(self.val_dataset, [self.val_crop])

    def check(self) -> list[str]:
        """Read everything once; every problem of both splits, one line each (none when all is well)."""
        problems: list[str] = []
        for split in ("train", "val"):
            try:
                data = self.build(split)
                with ThreadPoolExecutor(8) as pool:
                    found = _progress(pool.map(_problem, [data] * len(data), range(len(data))), split, data)
                    problems += [line for line in found if line]
            except UserError as error:
                problems.append(str(error))
        return list(dict.fromkeys(problems))

    def train_dataloader(self) -> DeviceLoader | ResumableLoader:
        """Augmented images in an order given by (seed, epoch); continues in mid-epoch after a resume."""
        assert self.train_dataset is not None, "setup() comes first"
        sampler = EpochSampler(self.train_dataset, self.seed, *place_of(self.trainer))
        if self._uses_device(self.train_dataset):
            images = self._images("train")
            return DeviceLoader(
                images, sampler, self.batch_size, self.augment, self.trainer, views=self.views
            )
        samples = TrainImages(
            self.train_dataset, self._file_augment(self.train_dataset), self.seed, self.views
        )
        last = len(sampler) >= self.batch_size
        loading = self._loading()
        return ResumableLoader(samples, sampler, self.batch_size, self.trainer, drop_last=last, **loading)

    def val_dataloader(self) -> DeviceEvalLoader | DataLoader:
        """Images in order; every image once, but for what fills up a process's share."""
        assert self.val_dataset is not None, "setup() comes first"
        sampler = EvalSampler(self.val_dataset, *place_of(self.trainer))
        if self._uses_device(self.val_dataset):
            return DeviceEvalLoader(self._images("val"), sampler, self.val_batch_size)
        samples = EvalImages(self.val_dataset, self._side(self.val_dataset), self.val_crop)
        return DataLoader(samples, self.val_batch_size, sampler=sampler, **self._loading())

    def test_dataloader(self) -> DeviceEvalLoader | DataLoader:
        """The validation images."""
        return self.val_dataloader()

    def train_pass(self, augmented: bool, view: int = 0) -> Iterator[Batch]:
        """Each training image once, in the data set's order, in batches of val_batch_size.

        Augmented images are those of epoch `view`. On several processes all see all.
        """
        return self._pass("train", view if augmented else None)

    def held_out_pass(self) -> Iterator[Batch]:
        """Each held-out image once, not augmented, as in train_pass; their labels are to choose an epoch by.

        Raises UserError where none is held out.
        """
        if self.held_out_dataset is None:
            raise UserError(
                "data.holdout=0: no training image is held out; set a part of each class, such as 0.1"
            )
        return self._pass("held_out", None)

    def _pass(self, part: Part, view: int | None) -> Iterator[Batch]:
        """Batches of a part in order, augmented as in epoch `view`, or not at all."""
        data = self._dataset(part)
        if self._uses_device(data):
            images = self._images(part)
            device = images.images.device
            draws = None if view is None else self.augment.draws(len(images), self.seed, view).to(device)
            for indices in torch.arange(len(images), device=device).split(self.val_batch_size):
                yield augmented_batch(images, indices, self.augment, draws)
            return
        loading = {**self._loading(), "persistent_workers": False, "generator": torch.Generator()}
        if view is None:
            samples: Any = EvalImages(data, self._side(data), self.val_crop)
            order: list[Any] = [(i, False) for i in range(len(data))]
        else:
            samples = TrainImages(data, self._file_augment(data), self.seed)
            order = [(view, i) for i in range(len(data))]
        yield from DataLoader(samples, self.val_batch_size, sampler=order, **loading)

    # --- which pipeline, and what it needs -----------------------------------------------------------------

    def _uses_device(self, data: ImageDataset) -> bool:
        if self.pipeline != "auto":
            return self.pipeline == "device"
        side = self._side(data)
        small = side <= _SMALL and 3 * side**2 * len(data) <= _MEMORY
        return small or (isinstance(data, DeviceImages) and self.image_size is None)

    def _side(self, data: ImageDataset) -> int:
        if self.image_size is None:
            return data.images.shape[-1] if isinstance(data, DeviceImages) else _SIZE
        return self.image_size

    def _dataset(self, part: Part) -> ImageDataset:
        data = {"train": self.train_dataset, "val": self.val_dataset, "held_out": self.held_out_dataset}[part]
        assert data is not None, "setup() comes first"
        return data

    def _images(self, part: Part) -> DeviceImages:
        """The images of a part on the device; files are decoded once, their central square at image_size."""
        if part not in self._on_device:
            data = self._dataset(part)
            if not self._as_is(data):
                pixels = decode_all(data, self._side(data), self.num_workers)
                data = DeviceImages(pixels, data.labels, data.names)
            assert isinstance(data, DeviceImages)
            trainer = self.trainer
            device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
            self._on_device[part] = data.to(device)
        return self._on_device[part]

    def _as_is(self, data: ImageDataset) -> bool:
        return isinstance(data, DeviceImages) and self._side(data) == data.images.shape[-1]

    def _file_augment(self, data: ImageDataset) -> FileAugment:
        scale = self.augment.resized_crop or (None if self._as_is(data) else _SCALE)
        return FileAugment(self._side(data), scale, self.augment.flip, self.augment.crop)

    def _limited(self, data: ImageDataset, limit: int | None) -> ImageDataset:
        if limit is None or limit >= len(data):
            return data
        chosen = np.random.default_rng(self.subset_seed).permutation(len(data))[:limit]
        return data.select(torch.from_numpy(np.sort(chosen)))

    def _without_held_out(self, data: ImageDataset) -> ImageDataset:
        """The images that are not held out; sets `held_out_dataset`. Raises UserError where none can be."""
        if not self.holdout:
            return data
        out = holdout_indices(data.labels, self.holdout, self.subset_seed)
        if not len(out):
            raise UserError(
                f"data.holdout={self.holdout}: no class has two training images with a label; set holdout=0"
            )
        kept = torch.ones(len(data), dtype=torch.bool)
        kept[out] = False
        self.held_out_dataset = data.select(out)
        return data.select(kept.nonzero().flatten())

    def _fingerprint(self, data: ImageDataset, transform: list[Any]) -> str:
        device = self._uses_device(data)
        parts = [data.fingerprint(), device, self._side(data), *map(repr, transform)]
        return cache_key(images=parts)[:16]

    def _loading(self) -> dict[str, Any]:
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "collate_fn": collate,
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": pin,
        }


def _problem(data: ImageDataset, index: int) -> str:
    try:
        data.image(index)
    except UserError as error:
        return str(error)
    return ""


def _progress(lines: Iterator[str], split: str, data: ImageDataset) -> Iterator[str]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(lines, f"checking {split}", total=len(data), console=console, transient=True)


class ClassificationData(ClassificationModuleBase):
    """Training and validation images in a public layout (see datasets/README.md).

    Args:
        root: folder of the data set, or for CIFAR a pack (.npz).
        kind: cifar10, cifar100, folder (ROOT/SPLIT/CLASS/...), imagenet (ROOT/SPLIT/WNID/...) or list
        (ROOT/SPLIT.txt with lines "PATH LABEL").
        download: let torchvision fetch CIFAR into root.
        names: class names in label order, a text file, or a packaged list's key; None for the kind's own.
        train_split: folder of the training images, or their list file.
        val_split: the same for validation.
        kwargs: see ClassificationModuleBase.
    """

    def __init__(
        self,
        root: str,
        kind: str = "folder",
        download: bool = False,
        names: list[str] | str | None = None,
        train_split: str = "train",
        val_split: str = "val",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        kinds = (*CLASSES, *_FOLDERS)
        if kind not in kinds:
            raise UserError(
                f"data.kind={kind}: unknown{nearest_hint(kind, kinds)}; expected one of {', '.join(kinds)}"
            )
        self.root, self.kind, self.download = root, kind, download
        self.class_list: Sequence[str] | str | None = names
        self.splits: dict[Split, str] = {"train": train_split, "val": val_split}

    def prepare_data(self) -> None:
        """Download, once on a machine."""
        if self.download and self.kind in CLASSES:
            read_cifar(self.kind, self.root, train=False, download=True)

    def build(self, split: Split) -> ImageDataset:
        """The split's images. Raises UserError for what is missing."""
        if self.kind in CLASSES:
            data = read_cifar(self.kind, self.root, split == "train", self.download)
            if self.class_list is None:
                return data
            shown = read_names(self.class_list)
            if len(shown) != len(data.names):
                raise UserError(f"data.names: {len(shown)} names for the {len(data.names)} of {self.kind}")
            return DeviceImages(data.images, data.labels, shown)
        if not Path(self.root).expanduser().is_dir():
            raise UserError(f"{self.root}: no such folder; data.root is the folder of the data set")
        names = None if self.class_list is None else read_names(self.class_list)
        return _FOLDERS[self.kind](self.root, self.splits[split], names, self.splits["train"])
