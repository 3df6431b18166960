"""Distiller, what every method shares: teachers outside the checkpoint, named losses, optimiser, bundle."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data.distributed import DistributedSampler

from vlkd.errors import UserError, plain_errors

Module = TypeVar("Module", bound=nn.Module)
Schedule = Literal["cosine", "poly", "linear", "step", "constant"]
Optimizer = Literal["adamw", "sgd"]


class Distiller(LightningModule):
    """Base of all methods: a subclass gives `compute_losses`, `validation_step`, `bundle`.

    Args:
        weights: factor of each loss by name; the names must be exactly those that `compute_losses` returns.
        lr: peak learning rate.
        weight_decay: with AdamW of weight matrices only (norms, biases and other vectors have none), with SGD
        of everything, as the recipes of each have it.
        warmup_steps: optimiser steps of linear warm-up.
        backbone_lr_scale: factor of `lr` for what `parameter_groups` calls "backbone".
        schedule: course of the learning rate after the warm-up: down to zero (cosine, poly, linear), a tenth
        after each milestone (step), or constant.
        optimizer: adamw, or sgd with momentum 0.9.
        nesterov: Nesterov's form of the momentum.
        milestones: of the schedule "step", as fractions of the run.
    """

    def __init__(
        self,
        weights: dict[str, float],
        lr: float = 1e-4,
        weight_decay: float = 0.05,
        warmup_steps: int = 0,
        backbone_lr_scale: float = 1.0,
        schedule: Schedule = "cosine",
        optimizer: Optimizer = "adamw",
        nesterov: bool = True,
        milestones: Sequence[float] = (0.625, 0.75, 0.875),
    ) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.backbone_lr_scale = backbone_lr_scale
        self.schedule = schedule
        self.optimizer = optimizer
        self.nesterov = nesterov
        self.milestones = tuple(milestones)
        self.scored_at = -1  # optimiser step of the weights that were scored last
        self._held: dict[str, nn.Module] = {}

    # --- what a method gives -------------------------------------------------------------------------------

    def compute_losses(self, batch: Any) -> dict[str, Tensor]:
        """The named losses of one batch, scalars, unweighted."""
        raise NotImplementedError

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Card and tensors of the student, as vlkd.engine.bundle writes them; no teacher among them."""
        raise NotImplementedError

    @property
    def protocol(self) -> dict[str, Any]:
        """What a reader must know to compare the scores, stored with them. Extend, do not replace."""
        return {"checkpoint": "last step, not chosen by any score"}

    def parameter_groups(self) -> dict[str, Iterable[nn.Parameter]]:
        """Trainable parameters by group; the group "backbone" learns at `lr * backbone_lr_scale`."""
        return {"all": self.parameters()}

    @classmethod
    def check_before_teacher(cls, arguments: Mapping[str, Any]) -> None:
        """Raises UserError for what is wrong in a config's arguments whatever the teacher will be.

        Called before a first stage trains the teacher, so that nobody waits for it in vain.
        """

    # --- what the run checks before it trains -------------------------------------------------------------

    def teacher_record(self) -> dict[str, Any] | None:
        """{"name", "scores", "data", "validation"} of the teacher's card (see `recorded`), or None."""
        return None

    def score_teacher(self, loader: Iterable[Any]) -> dict[str, float]:
        """The teacher's scores on validation batches, named as in its card; empty where it has none."""
        return {}

    def describe(self, batch: Any) -> list[dict[str, Any]]:
        """Rows for the dry run's table of features: part, widths, grids; values are shown as they are."""
        return []

    # --- teachers ------------------------------------------------------------------------------------------

    def hold(self, name: str, module: Module) -> Module:
        """Keeps a frozen module outside the module tree: not saved, not trained, always in eval mode.

        It follows the method's device at the start of fit, validate and test; read it with `held(name)`.
        """
        module.eval().requires_grad_(False)
        self._held[name] = module
        return module

    def held(self, name: str) -> Any:
        """The module given to `hold` under that name."""
        return self._held[name]

    def held_names(self) -> list[str]:
        """Names of what was given to `hold`."""
        return list(self._held)

    def _place_held(self) -> None:
        for module in self._held.values():
            module.to(self.device).eval()

    def on_fit_start(self) -> None:
        self._place_held()

    def on_validation_start(self) -> None:
        self._place_held()

    def on_test_start(self) -> None:
        self._place_held()

    # --- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Weighted sum of the losses; logs `loss/<name>` and `loss/total`."""
        losses = self.compute_losses(batch)
        total = self.weighted_sum(losses)
        size = batch_size(batch)
        values = {f"loss/{name}": value.detach() for name, value in losses.items()}
        self.log_dict({**values, "loss/total": total.detach()}, batch_size=size, sync_dist=True)
        return total

    def weighted_sum(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum of weight times loss. Raises UserError naming a loss without weight and the reverse."""
        for name in losses:
            if name not in self.weights:
                raise UserError(f"model.weights.{name}: missing; the method has the losses {sorted(losses)}")
        for name in self.weights:
            if name not in losses:
                raise UserError(f"model.weights.{name}: no such loss; the method has {sorted(losses)}")
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()

    def log_scores(self, scores: Mapping[str, float | Tensor]) -> None:
        """Logs `score/<name>` once for the validation epoch; call it in `on_validation_epoch_end`.

        The scores must come from counts summed over all processes (see `sum_over_processes`).
        """
        self.scored_at = self.global_step
        for name, value in scores.items():
            self.log(
                f"score/{name}",
                torch.as_tensor(value, dtype=torch.float32),
                prog_bar=True,
                rank_zero_only=True,
            )

    def sum_over_processes(self, counts: Tensor) -> Tensor:
        """Counts, for example a confusion matrix (K,K), summed over the processes of a distributed run."""
        if not torch.distributed.is_initialized():
            return counts
        total = counts.to(self.device, copy=True)
        torch.distributed.all_reduce(total)
        return total

    def repeated(self, batch_idx: int, size: int, loader: Any = None) -> Tensor:
        """Which of the `size` items of a batch of `loader` (validation's) repeat an earlier one, (B,) bool.

        Distributed samplers repeat items until each process has the same number; scores must not count them.
        """
        loader = self.trainer.val_dataloaders if loader is None else loader
        sampler = getattr(loader, "sampler", None)
        if not isinstance(sampler, DistributedSampler):
            return torch.zeros(size, dtype=torch.bool)
        first = batch_idx * (loader.batch_size or size)
        place = (first + torch.arange(size)) * sampler.num_replicas + sampler.rank
        return place >= len(sampler.dataset)  # type: ignore[arg-type]

    def build_optimizer(self) -> torch.optim.Optimizer:
        """The optimiser over `parameter_groups` at the peak rate."""
        groups = []
        for name, parameters in self.parameter_groups().items():
            rate = self.lr * (self.backbone_lr_scale if name == "backbone" else 1.0)
            trainable = [parameter for parameter in parameters if parameter.requires_grad]
            decays = [p for p in trainable if p.ndim > 1 or self.optimizer == "sgd"]
            others = [p for p in trainable if p.ndim <= 1 and self.optimizer != "sgd"]
            for decay, members in ((self.weight_decay, decays), (0.0, others)):
                if members:
                    groups.append({"params": members, "lr": rate, "weight_decay": decay})
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=self.nesterov)
        return torch.optim.AdamW(groups, lr=self.lr)

    def configure_optimizers(self) -> Any:
        """`build_optimizer`, learning rate by step."""
        optimizer = self.build_optimizer()
        if self.schedule == "constant" and not self.warmup_steps:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError(
                f"model.schedule={self.schedule}: needs the length of the run; set trainer.max_epochs or "
                "trainer.max_steps (max_time alone does not tell), or schedule=constant without warm-up"
            )
        course = LambdaLR(
            optimizer,
            lambda step: learning_rate_factor(step, steps, self.warmup_steps, self.schedule, self.milestones),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": course, "interval": "step"}}

    # --- the student, back from its bundle -----------------------------------------------------------------

    @classmethod
    def from_bundle(cls, path: str | Path) -> Distiller:
        """The method as its bundle's card describes it, with the student's weights, ready to be scored.

        Raises UserError when the card holds no config or the tensors do not fit.
        """
        from jsonargparse import ArgumentParser

        from vlkd.engine.bundle import load_bundle

        card, tensors = load_bundle(path)
        described = cls.described(card)
        if not described:
            raise UserError(
                f"{path}: the card holds no config of the method; score it with a config and --ckpt"
            )
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(cls, "model", fail_untyped=False, required=True)
        with plain_errors():
            method: Distiller = parser.instantiate_classes(parser.parse_object({"model": described})).model
        method.load_student(tensors, str(path))
        return method

    @classmethod
    def described(cls, card: Mapping[str, Any]) -> dict[str, Any] | None:
        """The "model" part of the config in a bundle's card, as the method is to be built from it."""
        return card.get("config", {}).get("model")

    def load_student(self, tensors: Mapping[str, Tensor], source: str = "bundle") -> None:
        """Copies the tensors that this module owns under the same names; others are left to the subclass.

        Raises UserError when a parameter of the bundle's parts is missing or has another shape.
        """
        own = self.state_dict()
        parts = {name.split(".", 1)[0] for name in tensors if name in own}
        if not parts:
            raise UserError(
                f"{source}: holds no tensor of {type(self).__name__}; it belongs to another method"
            )
        for name, tensor in own.items():
            if name.split(".", 1)[0] not in parts:
                continue
            if name not in tensors:
                raise UserError(f"{source}: tensor {name} is missing; it does not fit {type(self).__name__}")
            if tensors[name].shape != tensor.shape:
                raise UserError(
                    f"{source}: tensor {name} is {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
                )
            tensor.copy_(tensors[name])


def learning_rate_factor(
    step: int, steps: float, warmup: int, schedule: Schedule, milestones: Sequence[float] = ()
) -> float:
    """Factor of the peak rate at `step` of `steps`: warm-up, then the schedule (poly has power 0.9)."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return float(0.1 ** sum(step >= milestone * steps for milestone in milestones))
    progress = min(1.0, (step - warmup) / max(1.0, steps - warmup))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return float((1 - progress) ** (1.0 if schedule == "linear" else 0.9))


def recorded(card: Mapping[str, Any]) -> dict[str, Any]:
    """What the teacher gate needs of a teacher's card: name, scores and what they were measured on."""
    keys = ("scores", "data", "validation")
    return {"name": card.get("name", "teacher"), **{key: card[key] for key in keys if key in card}}


def batch_size(batch: Any) -> int:
    """Items of a batch: the length of `images`, else of the first value or of the batch itself."""
    if isinstance(batch, Mapping):
        batch = batch["images"] if "images" in batch else next(iter(batch.values()))
    return len(batch)
