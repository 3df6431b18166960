"""Proof that an interrupted and resumed run equals one that was never interrupted; used for every method."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vlkd.engine.cli import main


class InterruptAt(Callback):
    """Sends Ctrl-C to its own process after `step` steps, in training or in the validation that follows."""

    def __init__(self, step: int, during: Literal["training", "validation"] = "training") -> None:
        self.step, self.during = step, during

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self.during == "training" and trainer.global_step == self.step and stepped:
            os.kill(os.getpid(), signal.SIGINT)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self.during == "validation" and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def assert_resume_is_exact(
    config: Path, folder: Path, step: int, during: str = "training", overrides: Sequence[str] = ()
) -> None:
    """Trains `config` whole and in two pieces: the same weights, optimiser state and logged losses."""
    whole, pieces = folder / "whole", folder / "pieces"
    interrupt = (
        f'{{"class_path": "exactness.InterruptAt", "init_args": {{"step": {step}, "during": "{during}"}}}}'
    )
    common = [*overrides, "--trainer.log_every_n_steps=1"]
    assert main(["train", str(config), "--run", str(whole), *common]) == 0
    assert (
        main(["train", str(config), "--run", str(pieces), *common, f"--trainer.callbacks+={interrupt}"])
        == 130
    )
    stopped = torch.load(pieces / "last.ckpt", weights_only=True)
    assert stopped["global_step"] == step
    assert main(["train", "--resume", str(pieces)]) == 0

    expected, found = (torch.load(run / "last.ckpt", weights_only=True) for run in (whole, pieces))
    assert found["global_step"] == expected["global_step"] > step
    assert_equal(found["state_dict"], expected["state_dict"], "state_dict")
    assert_equal(found["optimizer_states"], expected["optimizer_states"], "optimizer_states")
    assert_equal(found["lr_schedulers"], expected["lr_schedulers"], "lr_schedulers")
    expected_losses, found_losses = losses(whole), losses(pieces)
    assert_equal(found_losses, expected_losses, "losses")


def losses(run: Path) -> dict[int, dict[str, str]]:
    """Step -> logged losses."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss/total"]]
    assert rows
    return {int(row["step"]): {k: v for k, v in row.items() if k.startswith("loss/")} for row in rows}


def assert_equal(found: Any, expected: Any, where: str) -> None:
    """Deep equality in which tensors must be equal to the last bit."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_equal(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}.{place}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where
