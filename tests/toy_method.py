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


class Graded(Toy):
    """A teacher with a card; it knows every answer unless `wrong`."""

    def __init__(
        self,
        weights: dict[str, float],
        recorded: float | None = 1.0,
        data: str = "toy_method.ToyData",
        wrong: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(weights, **kwargs)
        self.recorded, self.data = recorded, data
        teacher = self.held("teacher")
        sign = -1.0 if wrong else 1.0
        teacher.weight.copy_(sign * torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
        teacher.bias.zero_()

    def teacher_record(self) -> dict[str, Any]:
        scores = {} if self.recorded is None else {"accuracy": self.recorded}
        return {"name": "oracle", "scores": scores, "data": self.data}

    def score_teacher(self, loader: Any) -> dict[str, float]:
        torch.rand(3)  # what a real one may draw must not reach the training
        right = [self.held("teacher")(b["images"]).argmax(1) == b["labels"] for b in loader]
        return {"accuracy": float(torch.cat(right).float().mean())}


class Remembering(Toy):
    """All that a step may change besides parameters: statistics, a bank, counters, an average, a log."""

    def __init__(self, weights: dict[str, float], **kwargs: Any) -> None:
        super().__init__(weights, **kwargs)
        self.norm = nn.BatchNorm1d(4)
        self.idle = nn.Linear(2, 3)
        self.average = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.register_buffer("bank", torch.zeros(8, 4))
        self.plain = torch.zeros(2)
        self.generator = torch.Generator().manual_seed(0)
        self.steps = 0
        self.history: list[float] = []
        self.latest: dict[str, Tensor] = {"mean": torch.zeros(4)}

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        images = batch["images"]
        batch["images"] = self.norm(images)
        self.steps += 1
        self.history.append(float(images.mean()))
        with torch.no_grad():
            self.average.lerp_(images.mean(0), 0.1)
            self.bank = torch.cat([images, self.bank])[:8]
            self.plain += torch.rand(2, generator=self.generator)
            self.latest["mean"] += images.mean(0)
        self.log("seen", float(self.steps))
        losses = super().compute_losses(batch)
        return losses | {"far": (batch["images"].mean(0) - self.bank.mean(0) - self.average).square().sum()}

    def describe(self, batch: Any) -> list[dict[str, Any]]:
        self.norm(batch["images"])
        return [{"part": "student", "width": 8}, {"part": "teacher", "grid": "1x1"}]


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
