import math

import numpy as np
import pytest
import torch

from vlkd.errors import UserError
from vlkd.metrics import accuracy, class_hits, harmonic_mean, mean_per_class, shot_groups


def by_hand(logits, labels, count, topk):
    table = np.zeros((count, 1 + len(topk)), np.int64)
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        if label < 0:
            continue
        order = sorted(range(count), key=lambda c: (-row[c], c))
        table[label] += [1, *(label in order[:k] for k in topk)]
    return table


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("topk", [(1, 5), (1,), (2, 3, 40)])
def test_counts_equal_a_loop_with_ties_and_unlabelled(dtype, topk):
    torch.manual_seed(0)
    logits = torch.randint(-3, 3, (200, 9)).to(dtype)  # few values, so many ties
    labels = torch.randint(-1, 9, (200,))
    counts = class_hits(logits, labels, 9, topk)
    assert counts.dtype == torch.int64
    assert np.array_equal(counts, by_hand(logits, labels, 9, topk))


def test_top1_is_argmax_and_batches_add_up():
    torch.manual_seed(1)
    logits, labels = torch.randn(64, 7), torch.randint(0, 7, (64,))
    counts = class_hits(logits, labels, 7)
    assert accuracy(counts) == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    halves = class_hits(logits[:30], labels[:30], 7) + class_hits(logits[30:], labels[30:], 7)
    assert torch.equal(halves, counts)
    assert accuracy(counts, 2) == pytest.approx(
        (logits.topk(5).indices == labels[:, None]).any(1).double().mean().item()
    )


def test_a_diverged_network_scores_nothing():
    logits = torch.full((4, 3), float("nan"))
    logits[3] = torch.tensor([0.0, 1.0, 2.0])
    counts = class_hits(logits, torch.tensor([0, 1, 2, 2]), 3)
    assert counts.tolist() == [[1, 0, 0], [1, 0, 0], [2, 1, 1]]
    one = class_hits(torch.tensor([[1.0, float("nan"), 0.0]]), torch.tensor([0]), 3)
    assert one[0].tolist() == [1, 0, 0]


def test_equal_logits_are_no_free_hits():
    counts = class_hits(torch.zeros(10, 10), torch.arange(10), 10)
    assert accuracy(counts) == pytest.approx(0.1) and accuracy(counts, 2) == pytest.approx(0.5)


def test_means():
    counts = np.array([[10, 9, 10], [2, 1, 2], [0, 0, 0]])
    assert accuracy(counts) == pytest.approx(10 / 12)
    assert mean_per_class(counts) == pytest.approx((0.9 + 0.5) / 2)
    assert mean_per_class(torch.from_numpy(counts), 2) == 1
    nothing = class_hits(torch.zeros(2, 3), torch.tensor([-1, -1]), 3)
    assert nothing.sum() == 0 and math.isnan(accuracy(nothing)) and math.isnan(mean_per_class(nothing))


def test_shot_groups_at_the_borders():
    counts = np.array([[10, 10], [10, 5], [10, 3], [10, 1], [0, 0]])
    found = shot_groups(counts, np.array([101, 100, 20, 19, 5]))
    assert found == pytest.approx({"many": 1.0, "medium": 0.4, "few": 0.1})
    assert math.isnan(shot_groups(counts, torch.full((5,), 500))["few"])
    with pytest.raises(UserError, match="each of 5 classes"):
        shot_groups(counts, [1, 2])


def test_harmonic_mean():
    assert harmonic_mean(0.8, 0.4) == pytest.approx(2 / (1 / 0.8 + 1 / 0.4))
    assert harmonic_mean(0.0, 0.0) == harmonic_mean(1.0, 0.0) == 0.0


def test_wrong_input_is_one_line():
    logits = torch.zeros(2, 3)
    for labels, says in (([0, 3], "label 3: expected 0..2"), ([-2, 0], "label -2"), ([0], "expected")):
        with pytest.raises(UserError, match=says) as error:
            class_hits(logits, torch.tensor(labels), 3)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"\(B,4\)"):
        class_hits(logits, torch.tensor([0, 1]), 4)
