"""FineTune: a language student learns a downstream task from its labels, scored by the task's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlkd.engine.bundle import load_bundle, read_card
from vlkd.errors import UserError
from vlkd.losses.precision import full
from vlkd.methods.base import Distiller, Schedule
from vlkd.models.language import SIZES, check_name, save_language_model
from vlkd.models.language_task import (
    KIND,
    Task,
    TaskModel,
    build_task_model,
    task_bundle,
    task_model_of,
    task_of,
)

FOLDER = "transformers"  # of a run: the model for every tool of that ecosystem


class FineTune(Distiller):
    """A BERT with transformers' head for the task of the data; the loss "task" is of its labels.

    Cross entropy of classes, choices and of a span's two ends; squared error of a similarity.

    Args:
        init: bundle or run folder of a student, transformers folder, zoo name or hub id, or a size (tiny,
        mini, small, base), which starts at random and takes the tokenizer of the data.
        dropout: of the BERT and before the head; null: what is stored with its weights, 0.1 of a size.
        warmup: part of the run in which the learning rate rises.
        lr: see Distiller.
        weight_decay: see Distiller.
        schedule: see Distiller.
    """

    def __init__(
        self,
        init: str | TaskModel = "small",
        dropout: float | None = None,
        warmup: float = 0.1,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        schedule: Schedule = "linear",
    ) -> None:
        super().__init__({"task": 1.0}, lr=lr, weight_decay=weight_decay, schedule=schedule)
        if dropout is not None and not 0 <= dropout < 1:
            raise UserError(f"model.dropout={dropout}: expected a rate in [0, 1), or null")
        if not 0 <= warmup < 1:
            raise UserError(f"model.warmup={warmup}: expected a part of the run, in [0, 1)")
        self.init, self.dropout, self.warmup = init, dropout, warmup
        # The head depends on the data's labels: setup builds the network.
        self.language: Any = None if isinstance(init, str) else init
        self._waiting: tuple[dict[str, Tensor], str] | None = None
        if isinstance(init, str):
            check_name(init)

    # --- data ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Build what is trained. Raises UserError for data without a task, and a model that does not fit."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "head", None) is None:
            raise UserError(
                f"{type(data).__name__}: has no task; FineTune takes the data modules of vlkd.data.downstream"
            )
        task = Task(data.head, tuple(data.label_names))
        if self.language is None:
            if data.tokenizer is None and self.init in SIZES:
                raise UserError(
                    f"data.tokenizer: missing; model.init={self.init} is a size alone: give a transformers "
                    "folder or tokenizer.json, or a trained model as model.init"
                )
            self.language = build_task_model(str(self.init), task, data.tokenizer, self.dropout).train()
        elif data.tokenizer is not None:
            self.language.check_tokenizer(data.tokenizer, "the data")
        if self.language.task != task:
            raise UserError(
                f"{self.language.name}: trained for {_shown(self.language.task)}, {data.task} asks for "
                f"{_shown(task)}; give the model as model.init to train another head"
            )
        if data.length > self.language.positions:
            raise UserError(
                f"data.length={data.length}: {self.language.name} has {self.language.positions} positions"
            )
        data.take_tokenizer(self.language.tokenizer)
        if self._waiting is not None:
            (tensors, source), self._waiting = self._waiting, None
            self.load_student(tensors, source)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As of nn.Module; before setup the weights are kept until there is a network to take them."""
        if self.language is None:
            self._waiting = (dict(state_dict), "checkpoint")
            return None
        return super().load_state_dict(state_dict, *args, **kwargs)

    def load_student(self, tensors: Mapping[str, Tensor], source: str = "bundle") -> None:
        """Take a bundle's weights, in setup if there is no network yet. Raises UserError for others."""
        if self.language is None:
            self._waiting = (dict(tensors), source)
            return
        path = Path(source)  # else it says that the weights are a checkpoint's
        card = read_card(path) if path.suffix == ".safetensors" and path.is_file() else {}
        # Checked first: the head of another task with as many classes fits.
        if card.get("kind") == KIND and task_of(card) != self.language.task:
            raise UserError(
                f"{source}: trained for {_shown(task_of(card))}, the data ask for "
                f"{_shown(self.language.task)}; give it as model.init to train another head"
            )
        self.language.load(tensors, source)

    # --- training ------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """As in the base, the warm-up being a part of the run."""
        steps = self.trainer.estimated_stepping_batches
        self.warmup_steps = int(self.warmup * steps) if steps < float("inf") else 0
        return super().configure_optimizers()

    def compute_losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """{"task"}: of the labels (B,), of a span's ends (B,2)."""
        answers, labels = full(self.language.answers(batch)), batch["labels"]
        if self.language.task.head == "regression":
            return {"task": F.mse_loss(answers[:, 0], labels)}
        if self.language.task.head == "spans":
            answers, labels = answers.flatten(0, 1), labels.flatten()
        return {"task": F.cross_entropy(answers, labels)}

    def describe(self, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """Size of the model and what it answers."""
        given = " x ".join(str(size) for size in batch["input_ids"].shape[1:])
        model = self.language
        row = {"part": "language", "given": f"{given} tokens", "width": model.width, "name": model.name}
        return [row, {"part": "task", "given": _shown(model.task)}]

    # --- scores --------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Room for the answers to all questions, as every process scores some of them."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self._answers = torch.zeros(len(data.val_set), *data.answer_shape)
        self._seen = torch.zeros(len(data.val_set), dtype=torch.int64)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Keep the answers, filled up where a batch is shorter than the longest."""
        answers = self.language.answers(batch).float().cpu()
        keep = ~self.repeated(batch_idx, len(answers))
        places = batch["indices"].cpu()[keep]
        self._answers[places, ..., : answers.shape[-1]] = answers[keep]
        self._seen[places] = 1

    def on_validation_epoch_end(self) -> None:
        """Log what the data make of the answers."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        answers, seen = (self.sum_over_processes(x).cpu() for x in (self._answers, self._seen))
        del self._answers, self._seen
        self.log_scores(data.scores(answers, seen > 0))

    @property
    def protocol(self) -> dict[str, Any]:
        """The task, and what the model started from."""
        found = super().protocol
        data = getattr(self._trainer, "datamodule", None)
        if self.language is not None:
            found |= {"init": self.language.name}
        return found | ({"task": data.task, "tokens": f"at most {data.length}"} if data else {})

    # --- folder and bundle ---------------------------------------------------------------------------------

    def on_fit_end(self) -> None:
        """Write the model into the run folder as transformers reads it."""
        folder = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero and (folder / "config.yaml").is_file():
            save_language_model(self.language, folder / FOLDER)

    def bundle(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The model with its head and tokenizer."""
        return task_bundle(self.language)

    @classmethod
    def from_bundle(cls, path: str | Path) -> Distiller:
        """The model of a bundle, ready to be scored on data of its task."""
        return cls(task_model_of(*load_bundle(path), str(path)))


def _shown(task: Task) -> str:
    return f"{task.head} ({', '.join(task.labels)})" if task.labels else task.head
