"""A method and a data module that train in a second, with every randomness a real one has."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from vlkd.errors import UserError
from vlkd.methods.base import Distiller


class Toy(Distiller):
    """Dropout and a teacher; learns whether the first number of an item is positive."""

    def __init__(
        self, weights: dict[str, float], width: int = 8, dropout: float = 0.3, **kwargs: Any
    ) -> None:
        super().__init__(weights, **kwargs)
        self.student = nn.Sequential(
            nn.Linear(4, width), nn.LayerNorm(width), nn.Dropout(dropout), nn.Linear(width, 2)
        )
        self.hold("teacher", nn.Linear(4, 2))
        self.counts = torch.zeros(2)

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        logits = self.student(batch["images"])
        with torch.inference_mode():
            target = self.held("teacher")(batch["images"])
        return {
            "ce": nn.functional.cross_entropy(logits, batch["labels"]),
            "kd": (logits - target.clone()).square().mean(),
        }

    def on_validation_epoch_start(self) -> None:
        self.counts = torch.zeros(2)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        keep = ~self.repeated(batch_idx, len(batch["labels"]))
        right = (self.student(batch["images"]).argmax(1) == batch["labels"])[keep]
        self.counts += torch.tensor([right.sum(), right.numel()])

    def on_validation_epoch_end(self) -> None:
        right, total = self.sum_over_processes(self.counts)
        self.log_scores({"accuracy": right / total, "images": total})

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        card = {"kind": "toy", "name": "toy", "architecture": {}, "method": "toy"}
        return card, {f"student.{name}": value for name, value in self.student.state_dict().items()}


class Items(Dataset):
    def __init__(self, first: int, count: int) -> None:
        self.images = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))[first : first + count]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = self.images[index]
        return {"images": image, "labels": (image[0] > 0).long()}


class ToyData(LightningDataModule):
    """24 items to train, 9 to validate; shuffled by the global random state, as a user's own module would."""

    def __init__(self, batch_size: int = 4, shuffle: bool = True, workers: int = 0, broken: int = 0) -> None:
        super().__init__()
        self.batch_size, self.shuffle, self.workers, self.broken = batch_size, shuffle, workers, broken

    def setup(self, stage: str) -> None:
        if self.broken < 0:
            raise UserError("toy.yaml: data.broken: expected at least 0")

    def train_dataloader(self) -> DataLoader:
        items = Items(0, 24)
        if self.trainer is not None and self.trainer.world_size > 1:
            # Lightning's own sampler shuffles whatever the loader says.
            place = (self.trainer.world_size, self.trainer.global_rank)
            sampler = DistributedSampler(items, *place, shuffle=self.shuffle)
            return DataLoader(items, self.batch_size, sampler=sampler, num_workers=self.workers)
        return DataLoader(items, self.batch_size, shuffle=self.shuffle, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Items(24, 9), self.batch_size)

    def check(self) -> list[str]:
        return [f"item{i}.png: truncated" for i in range(self.broken)]
