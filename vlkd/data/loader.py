"""Loaders whose batches depend on (seed, epoch, position) only: resumable, and exact under DDP."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class EpochSampler(DistributedSampler):
    """(epoch, index) pairs of one rank, shuffled by (seed, epoch).

    `window` (epoch, start) sets the next pass's epoch and skips its first `start` pairs; `restrict` lets
    later passes use some of the items only.

    The epoch travels with the index, so that workers seed an augmentation by (seed, epoch, index) without
    shared state. A subclass of DistributedSampler because Lightning leaves those alone and tells them the
    epoch.
    """

    def __init__(self, dataset: Sized, seed: int = 0, world_size: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, world_size, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.window: tuple[int, int] | None = None
        self.indices: Tensor | None = None

    def restrict(self, indices: Tensor | None) -> None:
        """Use the items `indices` (M,) only; None for all. A pass that has begun is not affected."""
        self.indices = indices
        count = len(self.dataset) if indices is None else len(indices)  # type: ignore[arg-type]
        self.num_samples = -(-count // self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas

    def draw(self) -> tuple[int, NDArray[np.int64]]:
        """Epoch of the next pass, and its items (n,) for this rank in their order."""
        epoch, start = self.window or (self.epoch, 0)
        self.window = None
        count = len(self.dataset) if self.indices is None else len(self.indices)  # type: ignore[arg-type]
        order = np.random.default_rng((self.seed, epoch)).permutation(count)
        if self.indices is not None:
            order = self.indices.cpu().numpy()[order]
        return epoch, np.resize(order, self.total_size)[self.rank :: self.num_replicas][start:]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, mine = self.draw()
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


class Resumable:
    """Counts the batches of an epoch and continues in the middle of one; for loaders over an EpochSampler.

    Lightning stores `state_dict` in its checkpoints. The position is counted here and not taken from
    Lightning's epoch number: a run that stops in mid-epoch at `max_steps` is saved there as if the epoch were
    over. The trainer, where there is one, says how many batches are finished, so that a batch that was drawn
    but interrupted is drawn again, and how many make an epoch.

    A subclass's `__iter__` is a generator that calls `begin` first and `_finished` after each batch.
    """

    sampler: EpochSampler
    batch_size: int
    _trainer: Trainer | None

    def start(self, trainer: Trainer | None) -> None:
        """At the first batch of the first epoch, with all items."""
        self._trainer = trainer
        self._position = (0, 0)
        self._restored: tuple[int, int] | None = None
        self._epochs_ahead = 0  # of Lightning's epoch number; negative after a stop as above
        # What the running epoch uses, and what the next one will.
        self._running: Tensor | None = None
        self._chosen: Tensor | None = None

    def set_indices(self, indices: Tensor | None) -> None:
        """Use the items `indices` (M,) only, from the next epoch on; None for all."""
        self._chosen = None if indices is None else indices.cpu()
        self.sampler.restrict(self._chosen)

    def begin(self) -> int:
        """Sets the sampler's window; returns how many batches of the epoch are done."""
        # Called at the first batch: Lightning makes the iterator before it sets the epoch.
        lightning_epoch, start = self.sampler.epoch, 0
        if self._restored is not None:
            epoch, start = self._restored
            self.sampler.restrict(self._running)
            if start >= self._batches_per_epoch():
                epoch, start = epoch + 1, 0
            self._epochs_ahead = epoch - lightning_epoch
            self._restored = None
        if start == 0:
            self._running = self._chosen
            self.sampler.restrict(self._running)
        self._position = (lightning_epoch + self._epochs_ahead, start)
        self.sampler.window = (self._position[0], start * self.batch_size)
        return start

    def _finished(self, batches: int) -> None:
        self._position = (self._position[0], batches)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batches of it that are finished, and the items in use where they are not all."""
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
        state: dict[str, Any] = {"epoch": epoch, "batches": batches}
        if self._running is not None or self._chosen is not None:
            state["indices"] = [self._running, self._chosen]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after `batches` batches of `epoch`; with the same items where the state names none."""
        self._restored = (state["epoch"], state["batches"])
        self._running, self._chosen = state.get("indices", (self._chosen, self._chosen))
        self.sampler.restrict(self._running if state["batches"] else self._chosen)

    def _batches_per_epoch(self) -> float:
        batches = len(self)  # type: ignore[arg-type]
        return batches if self._trainer is None else min(batches, self._trainer.num_training_batches)


class ResumableLoader(Resumable, DataLoader):
    """A DataLoader over an EpochSampler that continues in the middle of an epoch."""

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
        self.start(trainer)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        start = self.begin()
        for done, batch in enumerate(super().__iter__(), start + 1):
            self._finished(done)
            yield batch


def shuffled_loader(
    dataset: Dataset, batch_size: int, seed: int, trainer: Trainer | None, **options: Any
) -> ResumableLoader:
    """Batches of what `dataset` has at (epoch, index), in an order given by (seed, epoch).

    The last batch of an epoch is left out where it is short, unless it is the only one. `options` as of
    DataLoader.
    """
    sampler = EpochSampler(dataset, seed, *place_of(trainer))  # type: ignore[arg-type]
    last = len(sampler) >= batch_size
    return ResumableLoader(dataset, sampler, batch_size, trainer, drop_last=last, **options)


def place_of(trainer: Trainer | None) -> tuple[int, int]:
    """How many processes there are, and which this one is."""
    return (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
