"""Small images held as one uint8 tensor on the training device; batches are cut and augmented there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from vlkd.data.loader import EpochSampler, EvalSampler, Resumable
from vlkd.errors import UserError

Batch = dict[str, Tensor]
_STREAM = 0x1A6E5  # keeps augmentation apart from the sample order, which is drawn from (seed, epoch)
_ASPECT = 4 / 3  # of a resized crop at most, as torchvision


class DeviceImages:
    """Images (N,3,H,W) uint8, labels (N,) int64 (-1 unlabelled) and class names (K,); an ImageDataset."""

    def __init__(self, images: Tensor, labels: Tensor, names: tuple[str, ...]) -> None:
        self.images, self.labels, self.names = images, labels, names

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> NDArray[np.uint8]:
        """RGB (H,W,3)."""
        return self.images[index].permute(1, 2, 0).cpu().numpy()

    def select(self, indices: Tensor) -> DeviceImages:
        """The images `indices` (M,) alone."""
        return DeviceImages(self.images[indices], self.labels[indices], self.names)

    def to(self, device: torch.device | str) -> DeviceImages:
        """The same images there; nothing is copied where they are there already."""
        return DeviceImages(self.images.to(device), self.labels.to(device), self.names)

    def batch(self, indices: Tensor) -> Batch:
        """Images (B,3,H,W) in [0,1] as they are, labels (B,) and indices (B,)."""
        images = self.images.index_select(0, indices).float().div_(255)
        return {"images": images, "labels": self.labels.index_select(0, indices), "indices": indices}

    def fingerprint(self) -> str:
        """Short hash of pixels, labels and names."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr((self.names, tuple(self.images.shape))).encode())
        digest.update(self.images.cpu().numpy().data)
        digest.update(self.labels.cpu().numpy().data)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class DeviceAugment:
    """Augmentation of a whole batch at once.

    The random numbers belong to (seed, epoch, image): the same pixels after a resume, in any process and at
    any batch size.

    Args:
        crop: pixels of black border of which a random crop keeps the image's own size; 0 for no crop.
        flip: probability of a horizontal flip.
        resized_crop: range of the area that a random resized crop takes, in place of `crop`; None for none.
        normalise: mean and standard deviation to apply; None for images in [0, 1], as methods want them.
    """

    crop: int = 4
    flip: float = 0.5
    resized_crop: tuple[float, float] | None = None
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        if self.crop < 0 or not 0 <= self.flip <= 1:
            raise UserError(
                f"data.crop and data.flip: got {self.crop} and {self.flip}; "
                "expected pixels of 0 or more, and a probability"
            )
        if self.resized_crop is not None and not 0 < self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise UserError(
                f"data.resized_crop: got {tuple(self.resized_crop)}; expected two parts of the area such as "
                "[0.2, 1.0], small one first"
            )

    def draws(self, count: int, seed: int, epoch: int) -> Tensor:
        """Uniform random numbers (count,5) in [0,1): row, column, flip, area, aspect of every image."""
        rng = np.random.default_rng((seed, epoch, _STREAM))
        return torch.from_numpy(rng.random((count, 5), dtype=np.float32))

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augmented images (B,3,H,W) in [0,1] of images (B,3,H,W) uint8 with their random numbers (B,5)."""
        flipped = draws[:, 2] < self.flip
        if self.resized_crop is None:
            done = _shifted(images, self.crop, draws[:, 0], draws[:, 1], flipped).float()
        else:
            done = _resized(images.float(), self.resized_crop, draws, flipped)
        if self.normalise is None:
            return done.div_(255)
        mean, std = (done.new_tensor(v).view(-1, 1, 1) for v in self.normalise)
        return done.mul_(1 / (255 * std)).sub_(mean / std)


def _shifted(images: Tensor, border: int, row: Tensor, column: Tensor, flipped: Tensor) -> Tensor:
    """Crops of the images' own size from the images with a border; row and column (B,) in [0,1)."""
    count, channels, height, width = images.shape
    tall, wide = height + 2 * border, width + 2 * border
    # A mirrored copy beside the images makes crop and flip one copy of whole pixel rows.
    both = images.new_zeros(2, count, channels, tall, wide)
    inside = both[..., border : border + height, border : border + width]
    inside[0], inside[1] = images, images.flip(-1)
    top, left = ((x * (2 * border + 1)).long() for x in (row, column))
    image = torch.arange(count, device=images.device) + flipped * count
    first = image * (channels * tall * wide) + top * wide + left
    within = torch.arange(channels, device=images.device)[:, None] * tall
    within = (within + torch.arange(height, device=images.device)) * wide
    starts = first[:, None] + within.flatten()
    runs = both.as_strided((both.numel() - width + 1, width), (1, 1))
    return runs.index_select(0, starts.flatten()).view(images.shape)


def _resized(images: Tensor, scale: tuple[float, float], draws: Tensor, flipped: Tensor) -> Tensor:
    """Random parts of the images (B,3,H,W), bilinear at their size; the aspect ratio at most 4/3.

    A part that would be longer than the image ends at its edge (torchvision draws again).
    """
    area = scale[0] + (scale[1] - scale[0]) * draws[:, 3]
    aspect = _ASPECT ** (2 * draws[:, 4] - 1)
    wide, tall = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    down, right = (1 - tall) * (2 * draws[:, 0] - 1), (1 - wide) * (2 * draws[:, 1] - 1)
    zero = torch.zeros_like(wide)
    rows = [torch.where(flipped, -wide, wide), zero, right, zero, tall, down]
    theta = torch.stack(rows, 1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class DeviceLoader(Resumable):
    """Augmented batches from images on the device: see DeviceImages.batch; no worker processes.

    Order and augmentation depend on (seed, epoch) alone. Resumable in mid-epoch, sharded by the sampler.

    Args:
        data: images on the device where the batches shall be.
        sampler: of order and share.
        batch_size: images per batch and process.
        augment: None for the images as they are.
        trainer: the run's, if any (see Resumable).
        drop_last: leave out a last batch that is smaller, where there is another one.
        views: epoch e shows the pixels of epoch e % views, and batches have that number as "views" (B,);
        None: new pixels in each epoch.
    """

    def __init__(
        self,
        data: DeviceImages,
        sampler: EpochSampler,
        batch_size: int,
        augment: DeviceAugment | None = None,
        trainer: Trainer | None = None,
        drop_last: bool = True,
        views: int | None = None,
    ) -> None:
        self.data, self.sampler, self.batch_size, self.augment = data, sampler, batch_size, augment
        self.drop_last, self.views = drop_last, views
        self.start(trainer)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest > 0 and not (self.drop_last and whole > 0))

    def __iter__(self) -> Iterator[Batch]:
        done = self.begin()
        batches = len(self)
        epoch, order = self.sampler.draw()
        device = self.data.images.device
        view = epoch if self.views is None else epoch % self.views
        draws = None
        if self.augment is not None:
            draws = self.augment.draws(len(self.data), self.sampler.seed, view).to(device)
        for indices in torch.from_numpy(order).to(device).split(self.batch_size)[: batches - done]:
            done += 1
            self._finished(done)
            batch = augmented_batch(self.data, indices, self.augment, draws)
            yield batch if self.views is None else {**batch, "views": torch.full_like(indices, view)}


class DeviceEvalLoader:
    """Batches of un-augmented images on the device in order, sharded by the sampler."""

    batch_sampler = None  # Lightning looks for it in whatever has a sampler

    def __init__(self, data: DeviceImages, sampler: EvalSampler, batch_size: int) -> None:
        self.data, self.sampler, self.batch_size = data, sampler, batch_size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.tensor([index for index, _ in self.sampler], device=self.data.images.device)
        for indices in order.split(self.batch_size):
            yield self.data.batch(indices)


def augmented_batch(
    data: DeviceImages, indices: Tensor, augment: DeviceAugment | None, draws: Tensor | None
) -> Batch:
    """DeviceImages.batch, augmented by the images' random numbers (N,5) of the whole set."""
    if augment is None or draws is None:
        return data.batch(indices)
    images = augment(data.images.index_select(0, indices), draws.index_select(0, indices))
    return {"images": images, "labels": data.labels.index_select(0, indices), "indices": indices}
