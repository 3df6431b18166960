"""A pool of unlabelled pictures that trains in a second, and the small networks that learn from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vlkd.engine.bundle import save_bundle
from vlkd.models.classifier import Classifier, build_classifier

NAMES = ("red", "green", "blue", "grey")
Batch = dict[str, Tensor]


class TinyNet(nn.Module):
    """Two strided convolutions, mean over the map, one linear layer; nothing of timm's protocol."""

    def __init__(self, num_classes: int, first: int = 4, second: int = 8, stride: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, first, 3, 2, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride, 1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
        )
        self.linear = nn.Linear(second, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.body(x).mean((2, 3)))


def tiny(num_classes: int = 4, size: int = 16, **arguments: Any) -> Classifier:
    return build_classifier("toy_pool:TinyNet", num_classes, size, arguments=arguments)


def save_teacher(path: Path) -> Path:
    """A network of eight and sixteen channels that has learned the colours, as a bundle."""
    torch.manual_seed(7)
    teacher, (images, labels) = tiny(first=8, second=16), pictures(64, seed=2)
    optimiser = torch.optim.Adam(teacher.parameters(), 0.02)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(teacher(images), labels).backward()
        optimiser.step()
    seen, truth = pictures(12, seed=1)
    accuracy = float((teacher.eval()(seen).argmax(1) == truth).float().mean())
    card = {
        "kind": "classifier",
        "name": "t",
        "architecture": teacher.architecture,
        "class_names": list(NAMES),
        "scores": {"accuracy": accuracy},
    }
    return save_bundle(path, card, {f"student.{k}": v for k, v in teacher.state_dict().items()})


def pictures(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise in one of four colours (N,3,16,16), and which (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(NAMES)
    colours = torch.tensor([[1.0, 0.2, 0.2], [0.2, 1.0, 0.2], [0.2, 0.2, 1.0], [0.5, 0.5, 0.5]])
    noise = torch.rand(count, 3, 16, 16, generator=generator)
    return (0.5 * colours[labels][:, :, None, None] + 0.5 * noise), labels


class PoolLoader:
    """Shuffled by (seed, epoch), the kept images only, the last short batch kept; resumable."""

    def __init__(self, data: ToyPool) -> None:
        self.data, self.sampler, self.epoch = data, self, 0
        self.position, self.restored = (0, 0), None  # type: ignore[var-annotated]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.data.kept) // self.data.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        epoch, start = self.restored or (self.epoch, 0)
        self.restored = None
        if start == len(self):
            epoch, start = epoch + 1, 0
        order = np.random.default_rng((0, epoch)).permutation(len(self.data.kept))
        for index in range(start, len(self)):
            self.position = (epoch, index + 1)
            span = order[index * self.data.batch_size : (index + 1) * self.data.batch_size]
            self.data.used.append(self.data.kept[torch.as_tensor(span)].tolist())
            yield self.data.batch(self.data.kept[torch.as_tensor(span)], augmented=True)

    def state_dict(self) -> dict[str, int]:
        return dict(zip(("epoch", "batches"), self.restored or self.position, strict=True))

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.restored = (state["epoch"], state["batches"])


class ToyPool(LightningDataModule):
    """A pool of `images`, augmented by the global random state; twelve labelled pictures to validate."""

    def __init__(self, images: int = 40, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size, self.names = batch_size, NAMES
        self.images, _ = pictures(images)
        self.numbers = 100 + torch.arange(images)  # as of a pool whose first images cannot be read
        self.kept = self.numbers
        self.used: list[list[int]] = []
        self.passes: list[bool] = []

    def batch(self, indices: Tensor, augmented: bool) -> Batch:
        images = self.images[indices - 100]
        if augmented:
            images = (images + 0.1 * torch.rand_like(images)).clamp(0, 1)
        return {"images": images, "labels": torch.full_like(indices, -1), "indices": indices}

    def keep(self, indices: Tensor | None) -> None:
        self.kept = self.numbers if indices is None else indices

    def train_pass(self, augmented: bool) -> Iterator[Batch]:
        self.passes.append(augmented)
        for indices in self.numbers.split(16):
            yield self.batch(indices, augmented)

    def train_dataloader(self) -> PoolLoader:
        return PoolLoader(self)

    def val_dataloader(self) -> DataLoader:
        images, labels = pictures(12, seed=1)
        return DataLoader(
            [{"images": i, "labels": c} for i, c in zip(images, labels, strict=True)],  # type: ignore
            batch_size=6,
            generator=torch.Generator(),  # else it draws from the global state, which decides the training
        )
