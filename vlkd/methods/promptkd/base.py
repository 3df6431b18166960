"""What both stages of PromptKD share: scores, the rate's course, which epoch's weights are kept."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from vlkd.errors import UserError
from vlkd.methods.base import Distiller, Optimizer
from vlkd.methods.promptkd.scores import SplitHits

Choose = Literal["last", "held_out"]


class PromptDistiller(Distiller):
    """A model that compares images with class vectors.

    Args:
        weights: factor of each loss by name.
        lr: rate at its peak.
        weight_decay: see Distiller.
        backbone_lr_scale: see Distiller.
        warmup_epochs: first epochs, at the constant rate `warmup_lr`.
        warmup_lr: that rate.
        optimizer: sgd with momentum 0.9, or adamw.
        choose: which epoch's weights are kept: of the last, or of the best on training images that the data
        module keeps back (data.holdout), whose labels are then read.
    """

    def __init__(
        self,
        weights: dict[str, float],
        lr: float,
        weight_decay: float,
        backbone_lr_scale: float,
        warmup_epochs: int,
        warmup_lr: float,
        optimizer: Optimizer,
        choose: Choose,
    ) -> None:
        super().__init__(
            weights,
            lr,
            weight_decay,
            backbone_lr_scale=backbone_lr_scale,
            optimizer=optimizer,
            nesterov=False,
        )
        if choose not in ("last", "held_out"):
            raise UserError(f"model.choose={choose}: expected last or held_out")
        if not weights or lr <= 0 or warmup_epochs < 0:
            raise UserError(
                f"model: weights {weights}, lr {lr}, warmup_epochs {warmup_epochs}; expected at least one "
                "loss, a rate above 0, and 0 epochs or more"
            )
        self.warmup_epochs, self.warmup_lr, self.choose = warmup_epochs, warmup_lr, choose
        self.names: tuple[str, ...] = ()
        self.novel: frozenset[int] = frozenset()
        self.recorded_protocol: dict[str, Any] | None = None
        self._seen = ""
        self._best: dict[str, Any] = {}

    # --- what a stage gives --------------------------------------------------------------------------------

    @abstractmethod
    def logits(self, images01: Tensor) -> Tensor:
        """(B,3,H,W) in [0,1] -> logits (B,K) over `names`; in validation."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """All that training changes, by name; the tensors themselves."""

    # --- data ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take class names and the novel ones from the data. Raises UserError where a run cannot be exact."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.names = tuple(data.names)
        self.novel = frozenset(getattr(data, "novel", ()))
        if stage != "fit":
            return
        if self.trainer.max_epochs is None or self.trainer.max_epochs < 1:
            raise UserError("trainer.max_epochs: give it; the rate follows the epochs")
        if self.trainer.precision not in ("32-true", "bf16-mixed", "16-mixed", "64-true"):
            raise UserError(
                f"trainer.precision={self.trainer.precision}: weights must stay in float32; choose bf16-mixed"
            )
        if self.choose == "held_out" and getattr(data, "held_out_dataset", None) is None:
            raise UserError("model.choose=held_out: no training images are kept back; set data.holdout=0.1")
        self._seen = _images(data, self.novel)

    @property
    def protocol(self) -> dict[str, Any]:
        """What a reader must know to compare the scores; of a bundle, what its card says."""
        if self.recorded_protocol:
            return self.recorded_protocol
        found = super().protocol
        if self.choose == "held_out":
            found["checkpoint"] = (
                f"epoch {self._best.get('epoch', 0) + 1} of {self.trainer.max_epochs}, the best on labelled "
                "images kept back from training"
            )
        if self.novel:
            found["accuracy_base, accuracy_novel"] = "among the classes of the image's own half"
        return {**found, "images of training": self._seen}

    # --- the rate ------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """The optimiser, its rate constant within an epoch."""
        optimizer = self.build_optimizer()
        epochs = self.trainer.max_epochs or 1
        factor = self.warmup_lr / self.lr
        course = LambdaLR(optimizer, lambda epoch: rate_factor(epoch, epochs, self.warmup_epochs, factor))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": course, "interval": "epoch"}}

    # --- scores --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start counting."""
        self.before_scoring()
        self._hits = SplitHits(len(self.names), self.novel)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Count images and hits."""
        labels = batch["labels"]
        repeated = self.repeated(batch_idx, len(labels)).to(labels.device)
        self._hits.update(self.logits(batch["images"]), labels.masked_fill(repeated, -1))

    def on_validation_epoch_end(self) -> None:
        """Log the accuracies over all processes."""
        self.log_scores(self._hits.scores(self.sum_over_processes))

    # --- which epoch ---------------------------------------------------------------------------------------

    def on_train_epoch_end(self) -> None:
        """Remember the best epoch where one is chosen; after the last, take its weights."""
        if self.choose == "last":
            return
        score = self._held_out_score()
        if score > self._best.get("score", -math.inf):
            copies = {name: value.detach().cpu().clone() for name, value in self.learned().items()}
            self._best = {"score": score, "epoch": self.current_epoch, "values": copies}
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self.take(self._best["values"])

    def take(self, values: Mapping[str, Tensor]) -> None:
        """Let `learned` have these values; they are then scored again."""
        with torch.no_grad():
            for name, value in self.learned().items():
                value.copy_(values[name])
        self.scored_at = -1

    def _held_out_score(self) -> float:
        """Accuracy on the images kept back; where there are novel classes, of the base half alone."""
        was_training = self.training
        self.eval()
        self.before_scoring()
        batches = self.trainer.datamodule.held_out_pass()  # type: ignore[attr-defined]
        found = score(self.logits, batches, SplitHits(len(self.names), self.novel), self.device)
        self.train(was_training)
        return found["accuracy_base" if self.novel else "accuracy"]

    def before_scoring(self) -> None:
        """Called before `logits` is used after training steps."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The best epoch so far travels along."""
        checkpoint["best"] = self._best

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Inverse of on_save_checkpoint."""
        self._best = checkpoint.get("best", {})


def rate_factor(epoch: int, epochs: int, warmup_epochs: int = 1, warmup_factor: float = 0.002) -> float:
    """Factor of the peak rate in `epoch` (from 0): constant, then (1 + cos(pi e / epochs)) / 2.

    e counts from the end of the warm-up, so the rate ends above zero. Source: zhengli97/PromptKD@ec244f7.
    """
    if epoch < warmup_epochs:
        return warmup_factor
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup_epochs) / epochs))


def check_names(given: Iterable[str], known: Iterable[str], what: str = "no such loss") -> None:
    """Raises UserError at the first name of a loss that is not known."""
    for name in given:
        if name not in known:
            raise UserError(f"model.weights.{name}: {what}; there are {', '.join(known)}")


@torch.no_grad()
def score(predict: Any, batches: Iterable[Any], hits: SplitHits, device: torch.device) -> dict[str, float]:
    """Scores of predict(images) -> logits over batches of images and labels."""
    for batch in batches:
        hits.update(predict(batch["images"].to(device)), batch["labels"].to(device))
    return hits.scores()


def _images(data: Any, novel: frozenset[int]) -> str:
    """Which images training sees, in words."""
    labels = getattr(data, "train_labels", None)
    train, val = getattr(data, "train_dataset", None), getattr(data, "val_dataset", None)
    if train is None or val is None:
        return "not known"
    same = len(train) == len(val) and train.fingerprint() == val.fingerprint()
    if same or getattr(data, "train_is_test", False):
        return f"{len(train)}, the test images themselves (transductive)"
    if not novel or labels is None:
        return f"{len(train)} of the training split"
    seen = {int(label) for label in labels.unique()} & novel
    return f"{len(train)} of {'base and novel classes (transductive)' if seen else 'base classes only'}"
