"""Exact resumption: k steps, resume, and the rest equal one run (place in the epoch, random states)."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Sampler

State = dict[str, Any]


class SkippingLoader(DataLoader):
    """A plain DataLoader that can start in the middle of an epoch without reading what lies before.

    The loaders of vlkd.data do this by themselves; this one is for a user's own data module.

    `__iter__` is a generator on purpose: Lightning calls `iter()` before it tells the sampler the epoch, and
    worker processes would fetch the wrong epoch's items.
    """

    done = 0  # batches handed out in this epoch
    skip = 0  # batches to pass over in the next epoch that begins
    epoch_state: State | None = None  # random state at the beginning of the epoch: it decides the shuffling

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        skip, self.skip = self.skip, 0
        self.epoch_state = random_state()
        self.done = skip
        source = super().__iter__() if skip == 0 else iter(self._tail(skip))
        for batch in source:
            self.done += 1
            yield batch

    def state_dict(self) -> State:
        return {"done": self.done}

    def load_state_dict(self, state: State) -> None:
        self.skip = int(state["done"])

    def _tail(self, skip: int) -> DataLoader:
        return DataLoader(
            self.dataset,
            batch_sampler=_Tail(self.batch_sampler, skip),  # type: ignore[arg-type]
            num_workers=self.num_workers,
            collate_fn=self.collate_fn,
            pin_memory=self.pin_memory,
            timeout=self.timeout,
            worker_init_fn=self.worker_init_fn,
            multiprocessing_context=self.multiprocessing_context,
            generator=self.generator,
            prefetch_factor=self.prefetch_factor,
        )


class _Tail(Sampler):
    def __init__(self, batches: Sampler, skip: int) -> None:
        self.batches = batches
        self.skip = skip

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.batches)
        for _ in range(self.skip):
            next(batches, None)
        yield from batches

    def __len__(self) -> int:
        return max(0, len(self.batches) - self.skip)  # type: ignore[arg-type]


def make_resumable(data: LightningDataModule) -> None:
    """Lets the data module's training loader, where it is a plain DataLoader, be a SkippingLoader."""
    original = data.train_dataloader

    @functools.wraps(original)
    def train_dataloader() -> Any:
        loader = original()
        if type(loader) is DataLoader:
            # Only methods are added; building anew would lose what the loader was given.
            loader.__class__ = SkippingLoader
        return loader

    data.train_dataloader = train_dataloader  # type: ignore[method-assign]


class ExactResume(Callback):
    """Saves and restores random states and the place in the epoch; validation leaves no trace in training."""

    def __init__(self) -> None:
        self._loaded: State | None = None
        self._after_skip: State | None = None
        self._before_validation: State | None = None
        self._trainer: Trainer | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer

    def state_dict(self) -> State:
        assert self._trainer is not None
        state: State = {"random": _of_all_processes(random_state()), "loader": None, "epoch_random": None}
        loader: Any = self._trainer.train_dataloader
        if not isinstance(loader, SkippingLoader):
            state["loader"] = loader.state_dict() if hasattr(loader, "state_dict") else None
        elif loader.done < self._trainer.num_training_batches:
            state["loader"] = loader.state_dict()
            state["epoch_random"] = _of_all_processes(loader.epoch_state)
        return state

    def load_state_dict(self, state: State) -> None:
        self._loaded = state

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state, self._loaded = self._loaded, None
        if state is None:
            return
        now = _of_this_process(state["random"], trainer)
        if state["epoch_random"]:
            set_random_state(_of_this_process(state["epoch_random"], trainer))
            self._after_skip = now
        else:
            set_random_state(now)
        # Lightning restores loaders too, but not where `configure_optimizers` asked for the number of steps,
        # and at an epoch's end in a run bounded by steps it would skip the whole next epoch.
        loader: Any = trainer.train_dataloader
        if state["loader"] is not None:
            loader.load_state_dict(state["loader"])
        elif isinstance(loader, SkippingLoader):
            loader.load_state_dict({"done": 0})

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._after_skip is not None:
            set_random_state(self._after_skip)
            self._after_skip = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before_validation = random_state()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before_validation is not None:
            set_random_state(self._before_validation)


def random_state() -> State:
    """States of python, numpy and torch as plain values and tensors, so that a safe load reads them back."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": [],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: State) -> None:
    """Puts back what `random_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([item.cpu() for item in state["cuda"]])


def _of_all_processes(state: State | None) -> list[State | None]:
    if not torch.distributed.is_initialized():
        return [state]
    states: list[State | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(states, state)
    return states


def _of_this_process(states: list[State], trainer: Trainer) -> State:
    return states[trainer.global_rank % len(states)]
