from __future__ import annotations

import numpy as np
import pytest
import torch

from vlkd.errors import UserError
from vlkd.metrics import PanopticMetric, panoptic_quality

CLASSES = 4


def brute_force(gt, pred, gt_categories, pred_categories, crowd):
    """The official rules, pair by pair."""
    iou, tp, fp, fn = np.zeros(CLASSES), *(np.zeros(CLASSES, dtype=int) for _ in range(3))
    matched_gt, matched_pred = set(), set()
    for g, category in gt_categories.items():
        for p in pred_categories:
            if g in crowd or pred_categories[p] != category:
                continue
            inter = ((gt == g) & (pred == p)).sum()
            union = (gt == g).sum() + (pred == p).sum() - inter - ((gt == 0) & (pred == p)).sum()
            if inter / union > 0.5:
                iou[category] += inter / union
                tp[category] += 1
                matched_gt.add(g)
                matched_pred.add(p)
    for g, category in gt_categories.items():
        fn[category] += g not in crowd and g not in matched_gt
    for p, category in pred_categories.items():
        inside = pred == p
        excuse = inside & (gt == 0)
        for g in crowd:
            if gt_categories[g] == category:
                excuse |= inside & (gt == g)
        fp[category] += p not in matched_pred and excuse.sum() / inside.sum() <= 0.5
    return iou, tp, fp, fn


def random_segments(rng, base=None):
    """Blocks of ids with void; near a copy of `base` when given, so that many pairs match."""
    ids = np.kron(rng.integers(0, 7, (4, 5)), np.ones((3, 3), dtype=int))
    if base is not None:
        ids = np.where(rng.random(ids.shape) < 0.75, base, ids)
    ids = np.where(ids == 0, 0, ids + 300)
    return ids, {int(i): int(i) % CLASSES for i in np.unique(ids) if i}


@pytest.mark.parametrize("seed", range(12))
def test_counts_equal_a_loop(seed):
    rng = np.random.default_rng(seed)
    gt, gt_categories = random_segments(rng)
    pred, pred_categories = random_segments(rng, np.where(gt, gt - 300, 0))
    crowd = set(list(gt_categories)[:2]) if seed % 2 else set()
    counts = panoptic_quality(gt, pred, gt_categories, pred_categories, CLASSES, crowd)
    iou, tp, fp, fn = brute_force(gt, pred, gt_categories, pred_categories, crowd)
    assert np.allclose(counts.iou, iou) and tp.sum() > 0
    assert np.array_equal(counts.tp, tp) and np.array_equal(counts.fp, fp) and np.array_equal(counts.fn, fn)


def test_quality_by_hand():
    gt = np.array([[1, 1, 1, 1, 2, 2, 0, 0]])
    pred = np.array([[5, 5, 5, 0, 6, 7, 8, 8]])
    counts = panoptic_quality(gt, pred, {1: 0, 2: 1}, {5: 0, 6: 1, 7: 1, 8: 2}, CLASSES)
    assert counts.iou.tolist() == [0.75, 0, 0, 0]
    assert counts.fp.tolist() == [0, 2, 0, 0]  # 8 lies on void and is excused, IoU 0.5 of 6 is not above 0.5
    assert counts.fn.tolist() == [0, 1, 0, 0]
    assert counts.quality() == pytest.approx({"PQ": 0.375, "SQ": 0.375, "RQ": 0.5})
    assert counts.quality([0]) == pytest.approx({"PQ": 0.75, "SQ": 0.75, "RQ": 1.0})
    assert np.isnan(counts.quality([3])["PQ"])


def test_metric_groups_and_accumulates():
    metric = PanopticMetric(isthing=[True, False], novel={1})
    gt, pred = torch.tensor([[1, 1, 2, 2]]), torch.tensor([[1, 1, 2, 0]])
    metric.update(gt, pred, {1: 0, 2: 1}, {1: 0, 2: 1})
    scores = metric.compute()
    assert scores["PQ_things"] == 1.0 and scores["PQ_seen"] == 1.0
    assert scores["PQ_stuff"] == 0.0 and scores["PQ_unseen"] == 0.0 and scores["PQ"] == 0.5
    metric.update(gt, gt, {1: 0, 2: 1}, {1: 0, 2: 1})
    assert metric.compute()["PQ_stuff"] == pytest.approx(1 / (1 + 0.5 + 0.5))


def test_wrong_input():
    ids = np.array([[1, 2]])
    with pytest.raises(UserError, match="differ in shape"):
        panoptic_quality(ids, ids[:, :1], {1: 0, 2: 0}, {1: 0}, 2)
    with pytest.raises(UserError, match=r"prediction: segment ids \[2\]"):
        panoptic_quality(ids, ids, {1: 0, 2: 0}, {1: 0}, 2)
    with pytest.raises(UserError, match="class 9"):
        panoptic_quality(ids, ids, {1: 0, 2: 9}, {1: 0, 2: 0}, 2)
