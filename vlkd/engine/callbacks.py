"""What happens around training: checkpoints, interruption, progress on a plain terminal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

LAST = "last.ckpt"


class Interrupted(BaseException):
    """Training was stopped by a signal and everything needed to go on is saved."""


class Stop:
    """Remembers the first stop signal; a second one interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Handles SIGINT and SIGTERM until the block ends."""
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


class LastCheckpoint(Checkpoint):
    """Keeps RUN/last.ckpt: at each epoch's end, before each validation, every few minutes, when stopped."""

    def __init__(self, folder: Path, stop: Stop, minutes: float = 10.0) -> None:
        self.folder = folder
        self.stop = stop
        self.seconds = 60 * minutes
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Between two optimiser steps there are half-gathered gradients, which no checkpoint holds.
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        stop = self._any_process(trainer, self.stop.signal is not None)
        if stop or self._any_process(trainer, time.monotonic() - self._saved_at > self.seconds):
            self._save(trainer)
        if stop:
            self._log_this_step(trainer)
            raise Interrupted

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.state.fn == "fit" and self._any_process(trainer, self.stop.signal is not None):
            raise Interrupted

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _log_this_step(self, trainer: Trainer) -> None:
        # Lightning hands a step's values to the loggers after this hook, which an interruption never reaches.
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if trainer.global_step % every == 0:
            values = {key: float(v) for key, v in trainer.callback_metrics.items() if key.startswith("loss/")}
            for logger in trainer.loggers:
                logger.log_metrics({"epoch": trainer.current_epoch, **values}, step=trainer.global_step - 1)

    def _save(self, trainer: Trainer) -> None:
        temporary = self.folder / f".{LAST}.tmp"
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.folder / LAST)
        self._saved_at = time.monotonic()

    def _any_process(self, trainer: Trainer, decision: bool) -> bool:
        if trainer.world_size == 1:
            return decision
        return trainer.strategy.reduce_boolean_decision(decision, all=False)


class PlainProgress(Callback):
    """One line every few seconds with loss, speed and time left, where no bar can be drawn (logs, pipes)."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds
        self._printed_at = 0.0
        self._began = (0.0, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = (time.monotonic(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or now - self._printed_at < self.seconds:
            return
        self._printed_at = now
        began, first = self._began
        steps, total = trainer.global_step, trainer.estimated_stepping_batches
        rate = (steps - first) / max(now - began, 1e-9)
        left = (
            f"{timedelta(seconds=round((total - steps) / rate))} left"
            if rate and total != float("inf")
            else ""
        )
        loss = trainer.callback_metrics.get("loss/total")
        shown = f"  loss {float(loss):.4f}" if loss is not None else ""
        print(
            f"epoch {trainer.current_epoch + 1}  step {steps}/{total}{shown}  {rate:.2f} steps/s  {left}",
            flush=True,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        scores = {
            key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("score/")
        }
        if scores:
            print(
                f"epoch {trainer.current_epoch + 1}  " + "  ".join(f"{k} {v:.4f}" for k, v in scores.items()),
                flush=True,
            )
