"""Long-tailed profiles."""

from __future__ import annotations

import pytest
import torch

from vlkd.data.images.long_tail import long_tail_counts, long_tail_indices
from vlkd.errors import UserError


def test_the_usual_profile_of_cifar10() -> None:
    # ldam's counts for CIFAR-10 with ratio 0.01: sum 12406, as papers on CIFAR-10-LT state.
    counts = long_tail_counts(5000, 10, 100)
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50] and sum(counts) == 12406
    assert long_tail_counts(500, 100, 1) == [500] * 100
    assert long_tail_counts(3, 4, 1000) == [3, 1, 1, 1]
    assert long_tail_counts(7, 1, 10) == [7]


@pytest.mark.parametrize("factor", [0.5, 0, -1, float("nan")])
def test_a_factor_below_one(factor: float) -> None:
    with pytest.raises(UserError, match=r"data\.imbalance_factor"):
        long_tail_counts(10, 2, factor)


def test_indices_have_the_counts_and_follow_the_seed() -> None:
    labels = torch.arange(400) % 4
    found = long_tail_indices(labels, 4, 10)
    assert torch.bincount(labels[found]).tolist() == long_tail_counts(100, 4, 10)
    assert torch.equal(found, found.unique())
    assert torch.equal(found, long_tail_indices(labels, 4, 10))
    assert not torch.equal(found, long_tail_indices(labels, 4, 10, seed=1))
    # A steeper tail keeps a part of what a flatter one keeps: the first of the same order.
    assert set(long_tail_indices(labels, 4, 50).tolist()) < set(found.tolist())


def test_a_class_with_few_images_keeps_all() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    found = labels[long_tail_indices(labels, 3, 4)]
    assert torch.bincount(found).tolist() == [50, 3, 12]
