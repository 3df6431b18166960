"""How fast a run trains, measured while it does."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vlkd.methods.base import batch_size


class Speed(Callback):
    """Images a second in training (loading included, validation not) and minutes in all, over resumptions."""

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0  # of training
        self.total = 0.0  # seconds of training and validation
        self._mark = 0.0  # since when training seconds are not yet counted; zero: not counting
        self._last = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images, self.seconds, self.total = state["images"], state["seconds"], state["total"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.monotonic()
        self._mark = 0.0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Counting begins behind the dry run, so that the first batch's loading is not part of the speed.
        self._mark = self._mark or time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.seconds += now - self._mark
        self.images += batch_size(batch) * trainer.world_size
        self._mark = now
        self._tick(now)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._mark = now = time.monotonic()
        self._tick(now)

    def measured(self) -> dict[str, float | None]:
        """{"images_per_second", "minutes"}; no speed where nothing was trained."""
        rate = self.images / self.seconds if self.images and self.seconds else None
        return {"images_per_second": rate, "minutes": self.total / 60}

    def _tick(self, now: float) -> None:
        self.total += now - self._last
        self._last = now
