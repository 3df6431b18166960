"""Which images of an unlabelled pool are worth an epoch: confident ones, rare classes on easier terms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlkd.errors import UserError
from vlkd.losses.precision import full

Combine = Literal["logits", "probs"]
Mode = Literal["kd3", "dfnd", "random", "all"]


@dataclass
class SelectionOptions:
    """Which images of the pool are trained on.

    mode: "kd3", chosen anew every `every_n_epochs` by both networks; "dfnd", the `keep_count` that the
    teacher is most certain of, and "random", as many at random, both chosen once; "all". p_cutoff: greatest
    class threshold. combine: see `confidence`. floor: least share of the teacher. augmented: judge augmented
    images, as released; otherwise the teacher judges each image only once in a run.
    """

    mode: Mode = "kd3"
    p_cutoff: float = 0.95
    combine: Combine = "logits"
    floor: float = 0.0
    every_n_epochs: int = 1
    augmented: bool = True
    keep_count: int | None = None

    def __post_init__(self) -> None:
        if self.mode in ("dfnd", "random") and not self.keep_count:
            raise UserError(f"model.selection.keep_count: say how many images mode {self.mode} keeps")
        if not 0 <= self.p_cutoff <= 1 or not 0 <= self.floor <= 1 or self.every_n_epochs < 1:
            raise UserError(
                f"model.selection: p_cutoff {self.p_cutoff} and floor {self.floor} must lie in [0,1], "
                f"every_n_epochs {self.every_n_epochs} be at least 1"
            )


def alpha(epoch: int, total_epochs: int = 240, floor: float = 0.0) -> float:
    """The teacher's share in the combined prediction of `epoch` (counted from 1), at least `floor`.

    a(e) = 1 - exp(-5 ((e+1) / (2E/3) - 1)^2) before half of the E epochs, then 0: the teacher leads, later
    the student decides alone. Source: tangjialiang97/KD3@91e2d4c; its 120 and 160 are E/2 and 2E/3 of 240.
    """
    if epoch >= total_epochs / 2:
        return floor
    return max(floor, 1.0 - math.exp(-5.0 * ((epoch + 1) * 3 / (2 * total_epochs) - 1) ** 2))


def confidence(
    teacher_logits: Tensor, student_logits: Tensor, alpha: float, combine: Combine = "logits"
) -> tuple[Tensor, Tensor]:
    """Combined prediction of logits (N,K) and (N,K): largest probability (N,) and its class (N,).

    combine: what is averaged with the weights alpha and 1 - alpha, "logits" (as released) or "probs".
    Raises UserError when the logits differ in shape.
    """
    if teacher_logits.shape != student_logits.shape:
        raise UserError(
            f"teacher logits {tuple(teacher_logits.shape)}, student logits {tuple(student_logits.shape)}: "
            "expected the same (N,K); both networks need the same classes"
        )
    teacher, student = full(teacher_logits), full(student_logits)
    if combine == "probs":
        mixed = alpha * teacher.softmax(1) + (1 - alpha) * student.softmax(1)
    else:
        mixed = (alpha * teacher + (1 - alpha) * student).softmax(1)
    best = mixed.max(1)
    return best.values, best.indices


def class_thresholds(counts: Tensor, p_cutoff: float = 0.95) -> Tensor:
    """Least confidence per class (K,) from the predicted images per class (K,): p r / (2 - r), r = n / max n.

    Source: tangjialiang97/KD3@91e2d4c; FlexMatch's (arXiv 2110.08263) convex map over unfiltered counts.
    """
    share = counts / counts.max().clamp(min=1)
    return p_cutoff * share / (2 - share)


def confident(probabilities: Tensor, classes: Tensor, num_classes: int, p_cutoff: float = 0.95) -> Tensor:
    """Which images lie strictly above the threshold of their predicted class: (N,), (N,) -> (N,) bool."""
    counts = torch.bincount(classes, minlength=num_classes).to(probabilities.dtype)
    return probabilities > class_thresholds(counts, p_cutoff)[classes]


def select(
    teacher_logits: Tensor,
    student_logits: Tensor,
    alpha: float,
    p_cutoff: float = 0.95,
    combine: Combine = "logits",
) -> Tensor:
    """Ascending indices (M,) of the images to keep, from the logits (N,K) of both networks over the pool.

    Source: tangjialiang97/KD3@91e2d4c. Raises UserError when the logits differ in shape.
    """
    probabilities, classes = confidence(teacher_logits, student_logits, alpha, combine)
    return confident(probabilities, classes, teacher_logits.shape[1], p_cutoff).nonzero().flatten()


def most_confident(confidences: Tensor, count: int) -> Tensor:
    """Ascending indices of the `count` largest of confidences (N,); of equal ones the earlier."""
    return confidences.sort(descending=True, stable=True).indices[:count].sort().values
