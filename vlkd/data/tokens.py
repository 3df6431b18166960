"""Loaders of data whose items are token ids: shuffled and resumable for training, in order for validation."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
from torch.utils.data import DataLoader, Dataset

from vlkd.data.loader import EvalSampler, place_of, shuffled_loader


class TokenLoaders(L.LightningDataModule):
    """Loaders over `train_set`, addressed by (epoch, index), and `val_set`, by (index, repeated)."""

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.train_set: Dataset | None = None
        self.val_set: Dataset | None = None
        self.collate_fn: Callable | None = None  # how items become a batch; None: they are stacked

    def train_dataloader(self) -> DataLoader:
        """Shuffled by (seed, epoch); continues in the middle of an epoch after a resume."""
        assert self.train_set is not None, "setup() comes first"
        options = {"num_workers": self.num_workers, "collate_fn": self.collate_fn}
        return shuffled_loader(self.train_set, self.batch_size, self.seed, self.trainer, **options)

    def val_dataloader(self) -> DataLoader | list:
        """In order; nothing where there is no validation data."""
        if self.val_set is None:
            return []
        sampler = EvalSampler(self.val_set, *place_of(self.trainer))  # type: ignore[arg-type]
        return DataLoader(
            self.val_set,
            self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
        )
