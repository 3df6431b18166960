"""Long-tailed training sets cut out of balanced ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlkd.data.images.select import first_of_each
from vlkd.errors import UserError


def long_tail_counts(largest: int, classes: int, imbalance_factor: float) -> list[int]:
    """Images of each class, n_c = n_0 IF^(-c/(K-1)) rounded down, at least one.

    The exponential profile of Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin
    Loss" (their imb_factor is 1/IF). Raises UserError for a factor below 1.
    """
    if not imbalance_factor >= 1:
        raise UserError(
            f"data.imbalance_factor={imbalance_factor}: expected 1 (balanced) or more: the images of the "
            "largest class for each one of the smallest"
        )
    place = np.arange(classes) / max(1, classes - 1)
    # The small addend keeps 5000 / 100 = 49.999... at 50.
    return [max(1, int(n + 1e-6)) for n in largest * imbalance_factor**-place]


def long_tail_indices(labels: Tensor, classes: int, imbalance_factor: float, seed: int = 0) -> Tensor:
    """Ascending indices (M,) of a long-tailed part of the labels (N,): the first n_c of a seeded order.

    A class that has fewer than n_c images keeps all. Raises UserError as long_tail_counts.
    """
    largest = int(torch.bincount(labels, minlength=classes).max())
    counts = torch.tensor(long_tail_counts(largest, classes, imbalance_factor))
    shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    return first_of_each(labels, shuffled, counts)
