"""Small coloured images in four classes, tiny networks and a teacher: classifiers learn in a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vlkd.engine.bundle import save_bundle
from vlkd.methods.base import Distiller
from vlkd.models.classifier import build_classifier

NAMES = ("red", "green", "blue", "grey")


class ToyNet(nn.Module):
    """Two convolutions, each halving the size, and a linear layer."""

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(images)).mean((2, 3)))


class ToyImages(Dataset):
    def __init__(self, first: int, count: int) -> None:
        generator = torch.Generator().manual_seed(first)
        self.labels = torch.arange(count) % len(NAMES)
        self.images = 0.5 * torch.rand(count, 3, 16, 16, generator=generator)
        for k in range(3):
            self.images[self.labels == k, k] += 0.3

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"images": self.images[index], "labels": self.labels[index], "indices": index}


class ToyImageData(LightningDataModule):
    """48 images to train, 24 to validate, with all that methods ask a data module for."""

    names = NAMES

    def __init__(self, batch_size: int = 8, missing: int | None = None, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.missing, self.seed = batch_size, missing, seed

    def setup(self, stage: str | None = None) -> None:
        self.train_set, self.val_set = ToyImages(0, 48), ToyImages(1000, 24)
        if self.missing is not None:
            self.train_set.labels[self.train_set.labels == self.missing] = 0
        self.train_labels = self.train_set.labels
        self.class_counts = torch.bincount(self.train_labels, minlength=len(NAMES))

    def train_fingerprint(self, augmented: bool = True) -> str:
        return f"toy-{self.missing}"

    def train_pass(self, augmented: bool) -> Iterator[dict[str, Tensor]]:
        yield from DataLoader(self.train_set, 16)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, 8)


def toy_teacher(folder: Path, width: int = 12, classes: int = len(NAMES), **card: Any) -> str:
    """A bundle with an untrained teacher; its path."""
    torch.manual_seed(1)
    classifier = build_classifier("toy_images:ToyNet", classes, 16, arguments={"width": width})
    facts = {
        "kind": "classifier",
        "name": "toy-teacher",
        "architecture": classifier.architecture,
        "input_spec": classifier.spec.to_dict(),
        "class_names": list(NAMES[:classes]),
    }
    tensors = {f"student.{name}": tensor for name, tensor in classifier.state_dict().items()}
    path = folder / "teacher.safetensors"
    save_bundle(path, {**facts, **card}, tensors)
    return str(path)


def fit(method: Distiller, data: LightningDataModule, steps: int, folder: Path) -> Trainer:
    """A few steps on the CPU, without logs."""
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        num_sanity_val_steps=0,
    )
    trainer.fit(method, datamodule=data)
    return trainer
