"""Token ids and videos of a small language, in memory: the video shows which words the text has."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlkd.text.word_ids import build_tokenizer

WORDS = [f"w{k}" for k in range(24)]
FRAMES, WIDTH, LENGTH = 5, 8, 9


def tokenizer(words: list[str] = WORDS) -> Any:
    return build_tokenizer([" ".join(words)])


class Sentences(Dataset):
    """Item k: 3 to 7 words; its video holds the mean of their vectors in 2 to 5 frames."""

    def __init__(self, count: int, seed: int, video: bool) -> None:
        self.count, self.seed, self.video = count, seed, video
        self.tokenizer = tokenizer()
        self.vectors = torch.randn(len(WORDS), WIDTH, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(1000 * self.seed + index)
        chosen = torch.randint(len(WORDS), (3 + index % 5,), generator=random)
        found = self.tokenizer(
            " ".join(WORDS[k] for k in chosen), padding="max_length", max_length=LENGTH, return_tensors="pt"
        )
        item = {key: found[key][0] for key in ("input_ids", "attention_mask")}
        item["indices"] = torch.tensor(index)
        if self.video:
            noise = 0.1 * torch.randn(FRAMES, WIDTH, generator=random)
            mask = torch.arange(FRAMES) < 2 + index % 4
            item |= {"video": (self.vectors[chosen].mean(0) + noise) * mask[:, None], "video_mask": mask}
        return item


class TextData(LightningDataModule):
    """24 sequences to train, 10 to validate, shuffled by the global random state."""

    video = False

    def __init__(self, batch_size: int = 6, items: int = 24, workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.items, self.workers = batch_size, items, workers

    def setup(self, stage: str) -> None:
        self.tokenizer = tokenizer()
        self.train_set, self.val_set = (
            Sentences(n, seed, self.video) for n, seed in ((self.items, 1), (10, 2))
        )

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, self.batch_size, shuffle=True, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, 4)


class VideoTextData(TextData):
    """The same with videos."""

    video = True
    video_width = WIDTH


def trainer(**options: Any) -> Trainer:
    """A quiet trainer on the CPU."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    return Trainer(
        **{**quiet, "accelerator": "cpu", "enable_model_summary": False, "num_sanity_val_steps": 0, **options}
    )


def fit(method: LightningModule, data: Any = None, **options: Any) -> Trainer:
    """Trains; the trainer holds the scores."""
    made = trainer(**options)
    made.fit(method, datamodule=data or TextData())
    return made


def batch(video: bool = False, count: int = 6) -> dict[str, Tensor]:
    """Validation items as one batch."""
    items = [Sentences(count, 3, video)[k] for k in range(count)]
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}
