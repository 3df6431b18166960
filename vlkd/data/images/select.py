"""Which images of a labelled set are used: some of each class, halves of the classes, what is held out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vlkd.errors import UserError

Classes = Literal["all", "base", "novel"]
CLASSES = ("all", "base", "novel")
_HOLDOUT = 0x401D  # keeps this choice apart from the others of the same seed


def first_of_each(labels: Tensor, shuffled: Tensor, counts: Tensor) -> Tensor:
    """Ascending indices (M,) of the first counts (K,) images of each class in the order `shuffled` (N,)."""
    order = shuffled[labels[shuffled].argsort(stable=True)]
    of_class = labels[order]
    rank = torch.arange(len(order)) - torch.searchsorted(of_class, of_class)
    return order[rank < counts[of_class]].sort().values


def need_shots(shots: int | None) -> None:
    """Raises UserError for shots below 1."""
    if shots is not None and shots < 1:
        raise UserError(f"data.shots={shots}: expected at least 1, or null for all images")


def few_shot_indices(labels: Tensor, shots: int, seed: int = 0) -> Tensor:
    """Ascending indices (M,) of `shots` images of each class, all of them where a class has fewer (as CoOp).

    The same seed gives the same images, and more shots add to them; they are not CoOp's own choice, which
    hangs on the state of Python's generator. Raises UserError for shots below 1.
    """
    need_shots(shots)
    drawn = np.random.default_rng(seed).random(len(labels))
    shuffled = torch.from_numpy(drawn.argsort(kind="stable"))
    return first_of_each(labels, shuffled, torch.full_like(torch.bincount(labels), shots))


def need_holdout(fraction: float) -> None:
    """Raises UserError for a part outside [0, 1)."""
    if not 0 <= fraction < 1:
        raise UserError(f"data.holdout={fraction}: expected a part of each class, at least 0 and below 1")


def holdout_indices(labels: Tensor, fraction: float, seed: int = 0) -> Tensor:
    """Ascending indices (M,) of the part of each class that is kept back, a fixed random choice.

    The part is rounded; of a class with two images or more it is at least one and never all of them, of a
    class with one it is none. Images without a label (-1) stay.

    Raises UserError for a part outside [0, 1).
    """
    need_holdout(fraction)
    labelled = (labels >= 0).nonzero().flatten()
    if not fraction or not len(labelled):
        return labelled[:0]
    inside = labels[labelled]
    sizes = torch.bincount(inside)
    counts = (sizes.double() * fraction).round().long().clamp(min=1).minimum(sizes - 1)
    shuffled = torch.from_numpy(np.random.default_rng((seed, _HOLDOUT)).permutation(len(inside)))
    return labelled[first_of_each(inside, shuffled, counts)]


def need_classes(key: str, classes: str) -> None:
    """Raises UserError for a word other than all, base and novel."""
    if classes not in CLASSES:
        raise UserError(f"{key}={classes}: expected one of {', '.join(CLASSES)}")


def class_range(count: int, classes: Classes) -> range:
    """Labels of "all" of `count` classes, of the first ceil(count/2) ("base") or of the others ("novel").

    Raises UserError for another word.
    """
    need_classes("classes", classes)
    middle = (count + 1) // 2
    return range(middle if classes == "novel" else 0, middle if classes == "base" else count)


def class_indices(labels: Tensor, chosen: Iterable[int]) -> Tensor:
    """Ascending indices (M,) of the images whose label is one of `chosen`."""
    return torch.isin(labels, torch.tensor(sorted(chosen), dtype=labels.dtype)).nonzero().flatten()
