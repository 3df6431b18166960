"""Accuracy over all classes and within the base and the novel half, from counts that add up."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from vlkd.metrics import accuracy, class_hits, harmonic_mean


class SplitHits:
    """Counts hits among all K classes, and among the classes of an image's own half.

    Base images are told apart among base classes only, novel ones among novel classes only: the protocol of
    base-to-novel generalisation (CoOp's splits; zhengli97/PromptKD@ec244f7). Without novel labels there is
    one accuracy.
    """

    def __init__(self, num_classes: int, novel: frozenset[int] = frozenset()) -> None:
        self.num_classes = num_classes
        self.novel = torch.tensor([k in novel for k in range(num_classes)])
        columns = 3  # images, first, among the first five
        self.whole = torch.zeros(num_classes, columns, dtype=torch.int64)
        self.half = torch.zeros(num_classes, columns, dtype=torch.int64)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (B,K) with labels (B,), -1 for images that do not count."""
        self.whole += class_hits(logits, labels, self.num_classes).cpu()
        if self.novel.any():
            novel = self.novel.to(logits.device)
            other = novel[labels.clamp(min=0)][:, None] != novel[None]
            own = logits.masked_fill(other, float("-inf"))
            self.half += class_hits(own, labels, self.num_classes).cpu()

    def scores(self, summed: Callable[[Tensor], Tensor] = lambda counts: counts) -> dict[str, float]:
        """accuracy, accuracy_top5; with novel classes accuracy_base, accuracy_novel, harmonic_mean.

        `summed` adds counts over processes. A score of which there are no images is left out.
        """
        whole, half = summed(self.whole).cpu(), summed(self.half).cpu()
        found = {"accuracy": accuracy(whole), "accuracy_top5": accuracy(whole, 2)}
        if self.novel.any():
            base, novel = accuracy(half[~self.novel]), accuracy(half[self.novel])
            mean = harmonic_mean(base, novel)
            found |= {"accuracy_base": base, "accuracy_novel": novel, "harmonic_mean": mean}
        return {name: value for name, value in found.items() if not math.isnan(value)}
