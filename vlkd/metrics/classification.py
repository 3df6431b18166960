"""Classification scores from counts per class: int64, so they add up over batches and processes exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlkd.errors import UserError

IGNORED = -1  # label of an image without a label
MANY, FEW = 100, 20  # training images: "many" has more than 100, "few" less than 20


def class_hits(logits: Tensor, labels: Tensor, num_classes: int, topk: Sequence[int] = (1, 5)) -> Tensor:
    """Counts (K,1+len(topk)) int64 by true class: images, then hits among the k highest for each k of `topk`.

    logits (B,K), labels (B,) with -1 for images that do not count. Of equal logits the class with the lower
    index ranks higher, as argmax has it; an image with a logit that is not a number is no hit.
    Raises UserError for other labels outside 0..K-1, and for shapes that do not fit.
    """
    if logits.ndim != 2 or logits.shape[1] != num_classes or labels.shape != logits.shape[:1]:
        raise UserError(
            f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}: expected (B,{num_classes}) and (B,)"
        )
    labels = labels.to(logits.device, torch.int64)
    wrong = labels[(labels < IGNORED) | (labels >= num_classes)]
    if len(wrong):
        raise UserError(
            f"label {int(wrong[0])}: expected 0..{num_classes - 1}, or {IGNORED} for an image without label"
        )
    known, row = labels != IGNORED, labels.clamp(min=0)
    own = logits.gather(1, row[:, None])
    lower = torch.arange(num_classes, device=logits.device) < row[:, None]
    rank = ((logits > own) | ((logits == own) & lower)).sum(1)
    rank = rank.where(~logits.isnan().any(1), num_classes)
    counts = torch.zeros(num_classes, 1 + len(topk), dtype=torch.int64, device=logits.device)
    # A k beyond the classes would count an image whose logits are not numbers.
    columns = torch.stack([known, *(known & (rank < min(k, num_classes)) for k in topk)], 1)
    return counts.index_add_(0, row, columns.long())


def accuracy(counts: Any, column: int = 1) -> float:
    """Fraction of images that are hits, nan if there are none; column 1 is the first k of `topk`, 2 ..."""
    table = _table(counts)
    return float(table[:, column].sum() / table[:, 0].sum())


def mean_per_class(counts: Any, column: int = 1) -> float:
    """Mean over the classes that occur of their own accuracy, nan if none occurs; column as for accuracy."""
    table = _table(counts)
    present = table[table[:, 0] > 0]
    return float((present[:, column] / present[:, 0]).mean())


def shot_groups(counts: Any, train_counts: Any, column: int = 1) -> dict[str, float]:
    """mean_per_class of the classes with many (> 100), medium (20..100), few (< 20) training images.

    train_counts (K,). nan for a group without classes. Raises UserError when it has another length.
    Source: ImageNet-LT (Liu et al. 2019, "Large-Scale Long-Tailed Recognition in an Open World").
    """
    table, train = _table(counts), torch.as_tensor(train_counts).cpu()
    if train.shape != table.shape[:1]:
        raise UserError(
            f"training counts {tuple(train.shape)}: expected one for each of {len(table)} classes"
        )
    groups = {"many": train > MANY, "medium": (train >= FEW) & (train <= MANY), "few": train < FEW}
    return {name: mean_per_class(table[chosen], column) for name, chosen in groups.items()}


def harmonic_mean(base: float, novel: float) -> float:
    """2 base novel / (base + novel); 0 when both are 0."""
    return 2 * base * novel / (base + novel) if base + novel else 0.0


def _table(counts: Any) -> Tensor:
    """Counts (K,1+T) as float64 on the CPU."""
    return torch.as_tensor(counts).cpu().double()
