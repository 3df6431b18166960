"""A toy method whose teacher is the bundle of another toy run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from toy_method import Toy, ToyData

from vlkd.engine.bundle import load_bundle
from vlkd.methods.base import recorded

CONFIG = """
teacher:
  model: {class_path: toy_method.Toy, init_args: {weights: {ce: 1.0, kd: 0.0}, width: 16, lr: 5e-2}}
  data: {init_args: {batch_size: 6}}
  trainer: {max_epochs: 2}
model: {class_path: toy_stages.Taught, init_args: {weights: {ce: 1.0, kd: 0.5}, lr: 1e-2}}
data: {class_path: toy_method.ToyData}
trainer: {max_epochs: 3, accelerator: cpu, log_every_n_steps: 1, enable_model_summary: false}
"""


class Taught(Toy):
    """Toy that learns from a bundle of Toy; `teacher` has no default, so no config goes without it."""

    def __init__(self, weights: dict[str, float], teacher: str | None, **kwargs: Any) -> None:
        super().__init__(weights, **kwargs)
        self.card: dict[str, Any] = {}
        if teacher is not None:
            self.card, tensors = load_bundle(teacher)
            learnt = Toy(weights, width=len(tensors["student.0.bias"])).student
            learnt.load_state_dict({k.removeprefix("student."): v for k, v in tensors.items()})
            self.hold("teacher", learnt)

    def teacher_record(self) -> dict[str, Any]:
        return recorded(self.card)

    def score_teacher(self, loader: Any) -> dict[str, float]:
        hits = [self.held("teacher")(b["images"]).argmax(1) == b["labels"] for b in loader]
        return {"accuracy": float(torch.cat(hits).float().mean())}

    def bundle(self) -> tuple[dict[str, Any], Any]:
        card, tensors = super().bundle()
        return {**card, "method": "taught"}, tensors

    @classmethod
    def described(cls, card: Mapping[str, Any]) -> dict[str, Any] | None:
        model = super().described(card) or {}
        return {**model, "init_args": {**model["init_args"], "teacher": None}}


class Prudent(Taught):
    """Another method with a teacher."""


class SeededData(ToyData):
    """Toy data with a seed of their own."""

    def __init__(self, seed: int = 0, batch_size: int = 4, workers: int = 0) -> None:
        super().__init__(batch_size, workers=workers)
        self.seed = seed
