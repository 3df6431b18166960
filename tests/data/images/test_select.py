"""Some images of each class, halves of the classes, what is held out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from vlkd.data.images.select import (
    class_indices,
    class_range,
    few_shot_indices,
    first_of_each,
    holdout_indices,
    need_classes,
)
from vlkd.errors import UserError

LABELS = torch.from_numpy(np.random.default_rng(3).permutation([0] * 40 + [1] * 3 + [2] * 20 + [3, 4, 4]))


def test_first_of_each_follows_the_order_given() -> None:
    labels, order = torch.tensor([0, 1, 0, 0, 1]), torch.tensor([3, 4, 2, 1, 0])
    assert first_of_each(labels, order, torch.tensor([2, 1])).tolist() == [2, 3, 4]
    assert first_of_each(labels, order, torch.tensor([0, 9])).tolist() == [1, 4]


def test_few_shots_follow_the_seed() -> None:
    found = few_shot_indices(LABELS, 4, seed=1)
    assert Counter(LABELS[found].tolist()) == {0: 4, 1: 3, 2: 4, 3: 1, 4: 2}
    assert torch.equal(found, found.unique()) and torch.equal(found, few_shot_indices(LABELS, 4, seed=1))
    assert not torch.equal(found, few_shot_indices(LABELS, 4, seed=2))
    assert set(found.tolist()) < set(few_shot_indices(LABELS, 8, seed=1).tolist())
    with pytest.raises(UserError, match=r"data\.shots=0: expected at least 1"):
        few_shot_indices(LABELS, 0)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (0.01, {0: 1, 1: 1, 2: 1, 4: 1}),
        (0.3, {0: 12, 1: 1, 2: 6, 4: 1}),
        (0.99, {0: 39, 1: 2, 2: 19, 4: 1}),
    ],
)
def test_of_each_class_a_part_is_held_out_and_one_image_stays(part: float, expected: dict[int, int]) -> None:
    found = holdout_indices(LABELS, part, seed=1)
    assert Counter(LABELS[found].tolist()) == expected
    assert torch.equal(found, found.unique()) and torch.equal(found, holdout_indices(LABELS, part, seed=1))
    assert not torch.equal(found, holdout_indices(LABELS, part, seed=2))


def test_nothing_is_held_out_of_nothing() -> None:
    assert holdout_indices(LABELS, 0.0).tolist() == []
    assert holdout_indices(torch.tensor([-1, -1]), 0.5).tolist() == []
    # An image without a label stays, wherever it is.
    assert holdout_indices(torch.tensor([-1, 0, -1, 0]), 0.5).tolist() in ([1], [3])


@pytest.mark.parametrize("part", [-0.1, 1.0, float("nan")])
def test_a_part_is_below_one(part: float) -> None:
    with pytest.raises(UserError, match=rf"data\.holdout={part}: expected a part .* below 1"):
        holdout_indices(LABELS, part)


def test_halves_of_the_classes() -> None:
    assert class_range(47, "base") == range(24) and class_range(47, "novel") == range(24, 47)
    assert class_range(10, "base") == range(5) and class_range(10, "all") == range(10)
    with pytest.raises(UserError, match="classes=new: expected one of all, base, novel"):
        class_range(10, "new")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"data\.classes=old: expected"):
        need_classes("data.classes", "old")


def test_images_of_some_classes() -> None:
    assert LABELS[class_indices(LABELS, range(1, 2))].tolist() == [1, 1, 1]
    found = class_indices(LABELS, frozenset({4, 0, 9}))
    assert found.tolist() == [k for k, label in enumerate(LABELS.tolist()) if label in (0, 4)]
    assert class_indices(LABELS, []).tolist() == []
