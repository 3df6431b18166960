"""The dry run: one batch goes through the losses and back before the first step, without leaving a trace."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from vlkd.engine.checks.untouched import untouched
from vlkd.engine.run_folder import write_text
from vlkd.engine.tables import Table
from vlkd.methods.base import Distiller

FILE = "dry_run.md"


class DryRunDone(BaseException):
    """The dry run was all that was asked for."""


class DryRun(Callback):
    """Runs the first batch of a run dry: prints what it finds and writes RUN/dry_run.md.

    The batch is the one that the first step then takes, so the loader is not asked for any more.

    Args:
        folder: of the run.
        only: raise DryRunDone afterwards.
    """

    def __init__(self, folder: Path, only: bool = False) -> None:
        self.folder = folder
        self.only = only

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step or batch_idx or trainer.current_epoch:
            return
        assert isinstance(pl_module, Distiller)
        if isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            with trainer.precision_plugin.train_step_context():
                tables, warnings = run_dry(pl_module, batch)
            if trainer.is_global_zero:
                self._report(tables, warnings)
        elif trainer.is_global_zero:
            print(f"no dry run: not possible under {type(trainer.strategy).__name__}", flush=True)
        if self.only:
            raise DryRunDone

    def _report(self, tables: list[Table], warnings: list[str]) -> None:
        for table in tables:
            table.show()
        for warning in warnings:
            print(f"warning: {warning}", flush=True)
        parts = ["# Dry run\n", *(table.markdown() for table in tables), *(f"- {w}\n" for w in warnings)]
        write_text(self.folder / FILE, "\n".join(parts))
        print(f"dry run: {self.folder / FILE}", flush=True)


def run_dry(method: Distiller, batch: Any) -> tuple[list[Table], list[str]]:
    """Tables of parts, features and losses for a batch, and what looks wrong. The method stays as it is."""
    held = [method.held(name) for name in method.held_names()]
    with untouched(method, *held):
        # On the instance, where it hides the class's own: a dry run belongs in no log.
        vars(method).update(log=_no_log, log_dict=_no_log)
        losses = method.compute_losses(copy.deepcopy(batch))
        reached = _reached(method, method.weighted_sum(losses))
        values = {name: float(value.detach()) for name, value in losses.items()}
        with torch.no_grad():
            features = method.describe(copy.deepcopy(batch))
    tables = [_parts(method, reached)]
    if features:
        tables.append(Table.of("Features of one batch", features))
    rows = [
        [name, value, method.weights[name], value * method.weights[name]] for name, value in values.items()
    ]
    tables.append(Table("Losses of one batch", ["loss", "value", "weight", "weighted"], rows))
    return tables, _warnings(method, reached, values)


def _no_log(*args: Any, **kwargs: Any) -> None:
    """Stands for `log` and `log_dict`."""


def _reached(method: Distiller, total: Tensor) -> set[int]:
    """Ids of the trainable parameters that get a gradient."""
    trainable = [parameter for parameter in method.parameters() if parameter.requires_grad]
    if not trainable or not total.requires_grad:
        return set()
    # Not backward(): nothing is added to .grad, and processes do not wait for one another.
    gradients = torch.autograd.grad(total, trainable, allow_unused=True)
    return {id(p) for p, gradient in zip(trainable, gradients, strict=True) if gradient is not None}


def _parts(method: Distiller, reached: set[int]) -> Table:
    table = Table("Parts", ["part", "parameters", "trainable", "with gradient", "buffers"])
    for name, module in parts(method).items():
        trainable = [p for p in module.parameters() if p.requires_grad]
        row = [
            _count(module.parameters()),
            _count(trainable),
            _count([p for p in trainable if id(p) in reached]),
            _count(module.buffers()),
        ]
        table.rows.append([name, *row])
    own = list(method.parameters(recurse=False))
    if own:
        trainable = [p for p in own if p.requires_grad]
        table.rows.append(
            ["(own)", _count(own), _count(trainable), _count([p for p in trainable if id(p) in reached]), 0]
        )
    return table


def parts(method: Distiller) -> dict[str, nn.Module]:
    """The method's modules by name, lists of modules opened once; then the frozen ones it holds."""
    found: dict[str, nn.Module] = {}
    for name, module in method.named_children():
        if isinstance(module, nn.ModuleDict | nn.ModuleList):
            found |= {f"{name}.{inner}": part for inner, part in module.named_children()}
        else:
            found[name] = module
    seen = {id(module) for module in found.values()}
    for name in method.held_names():
        module = method.held(name)
        if id(module) not in seen:
            found[f"{name} (held, frozen)"] = module
            seen.add(id(module))
    return found


def _count(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in tensors}.values())


def _warnings(method: Distiller, reached: set[int], losses: dict[str, float]) -> list[str]:
    missed = [n for n, p in method.named_parameters() if p.requires_grad and id(p) not in reached]
    found = []
    if missed:
        more = f" and {len(missed) - 8} more" if len(missed) > 8 else ""
        found.append(f"trainable, but without gradient: {', '.join(missed[:8])}{more}")
    if bad := [name for name, value in losses.items() if not math.isfinite(value)]:
        found.append(f"not a finite number: loss {', '.join(bad)}")
    return found
