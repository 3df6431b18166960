"""Loaders whose batches depend on (seed, epoch, position) only: resumable, and exact under DDP."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from vlkd.errors import UserError


class EpochSampler(DistributedSampler):
    """(epoch, index) pairs of one rank, shuffled by (seed, epoch).

    `window` (epoch, start) sets the next pass's epoch and skips its first `start` pairs.

    The epoch travels with the index, so that workers seed an augmentation by (seed, epoch, index) without
    shared state. A subclass of DistributedSampler because Lightning leaves those alone and tells them the
    epoch.
    """

    def __init__(self, dataset: Sized, seed: int = 0, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, world_size, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.window: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start = self.window or (self.epoch, 0)
        self.window = None
        count = len(self.dataset)  # type: ignore[arg-type]
        order = np.random.default_rng((self.seed, epoch)).permutation(count)
        mine = np.resize(order, self.total_size)[self.rank :: self.num_replicas][start:]
        return iter([(epoch, int(index)) for index in mine])


class EvalSampler(DistributedSampler):
    """(index, repeated) pairs of one rank in order; `repeated` marks what only fills up a rank's share.

    Every rank gets equally many (buffers are broadcast at each step, uneven ranks would wait for ever), and a
    data set that hides repeated samples from the metric scores the same on any number of processes.
    """

    def __init__(self, dataset: Sized, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, world_size, rank, shuffle=False)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[int, bool]]:
        count = len(self.dataset)  # type: ignore[arg-type]
        return iter([(i % count, i >= count) for i in range(self.rank, self.total_size, self.num_replicas)])


class ResumableLoader(DataLoader):
    """A DataLoader over an EpochSampler that continues in the middle of an epoch.

    Lightning stores `state_dict` in its checkpoints. The position is counted here and not taken from
    Lightning's epoch number: a run that stops in mid-epoch at `max_steps` is saved there as if the epoch were
    over. The `trainer`, where there is one, says how many batches are finished, so that a batch that was
    drawn but interrupted is drawn again, and how many make an epoch.
    """

    sampler: EpochSampler
    batch_size: int

    def __init__(
        self,
        dataset: Dataset,
        sampler: EpochSampler,
        batch_size: int,
        trainer: Trainer | None = None,
        **options: Any,
    ) -> None:
        # Without a generator of its own a loader draws from the global one, and a resumed run would differ.
        super().__init__(dataset, batch_size, sampler=sampler, generator=torch.Generator(), **options)
        self._trainer = trainer
        self._position = (0, 0)
        self._restored: tuple[int, int] | None = None
        self._epochs_ahead = 0  # of Lightning's epoch number; negative after such a stop

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator starts at the first batch: Lightning makes the iterator before it sets the epoch.
        lightning_epoch, start = self.sampler.epoch, 0
        if self._restored is not None:
            epoch, start = self._restored
            if start >= self._batches_per_epoch():
                epoch, start = epoch + 1, 0
            self._epochs_ahead = epoch - lightning_epoch
            self._restored = None
        epoch = lightning_epoch + self._epochs_ahead
        self._position = (epoch, start)
        self.sampler.window = (epoch, start * self.batch_size)
        try:
            for done, batch in enumerate(super().__iter__(), start + 1):
                self._position = (epoch, done)
                yield batch
        except UserError as error:  # a worker's error arrives with the worker's traceback as its message
            raise UserError(str(error).strip().rsplit("UserError: ", 1)[-1]) from None

    def state_dict(self) -> dict[str, int]:
        """Epoch, and batches of it that are finished."""
        if self._restored is not None:
            epoch, batches = self._restored
        else:
            epoch, batches = self._position
            current = self.sampler.epoch + self._epochs_ahead
            if epoch != current:
                epoch, batches = current, 0
            elif self._trainer is not None:
                finished = self._trainer.fit_loop.epoch_loop.batch_progress.current
                batches = min(batches, int(finished.processed))  # type: ignore[attr-defined]
        return {"epoch": epoch, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `batches` batches of `epoch`."""
        self._restored = (state["epoch"], state["batches"])

    def _batches_per_epoch(self) -> float:
        return len(self) if self._trainer is None else min(len(self), self._trainer.num_training_batches)
