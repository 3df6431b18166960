from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vlkd.errors import UserError
from vlkd.metrics import SemanticMetric, confusion_matrix, fwiou, macc, miou, pacc, per_class_iou

GOLDEN = Path(__file__).parents[1] / "golden" / "metric_vc_0.npz"


def brute_force(gt, pred, count, ignore):
    matrix = np.zeros((count, count + 1), dtype=np.int64)
    for g, p in zip(gt.ravel().tolist(), pred.ravel().tolist(), strict=True):
        if g != ignore:
            matrix[g, count if p == ignore else p] += 1
    return matrix


def random_maps(count=5, ignore=255, seed=0, dtype=np.uint8):
    rng = np.random.default_rng(seed)
    values = np.array([*range(count), ignore])
    return rng.choice(values, (13, 17)).astype(dtype), rng.choice(values, (13, 17)).astype(dtype)


def test_golden_scores():
    data = np.load(GOLDEN)
    maps = [
        np.concatenate([data[f"{kind}_{video}"].ravel() for video in range(3)]).astype(np.int64)
        for kind in ("gt", "pred")
    ]
    cm = confusion_matrix(*(np.where(labels == 0, 255, labels - 1) for labels in maps), 4)
    assert np.array_equal(cm, data["confusion"])
    assert miou(cm) == pytest.approx(float(data["miou"]), abs=1e-9)
    assert fwiou(cm) == pytest.approx(float(data["fwiou"]), abs=1e-9)
    with_zero = confusion_matrix(*maps, 5, ignore=0)
    assert np.array_equal(with_zero[1:, 1:], cm) and with_zero[0].sum() == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_confusion_matrix_equals_a_loop(dtype, as_tensor):
    gt, pred = random_maps(dtype=dtype)
    expected = brute_force(gt, pred, 5, 255)
    if as_tensor:
        gt, pred = torch.from_numpy(gt), torch.from_numpy(pred)
    square = confusion_matrix(gt, pred, 5)
    full = confusion_matrix(gt, pred, 5, void_column=True)
    assert type(square) is (torch.Tensor if as_tensor else np.ndarray)
    assert square.shape == (5, 5) and "int64" in str(square.dtype)
    assert np.array_equal(np.asarray(full), expected)
    assert np.array_equal(np.asarray(square), expected[:, :5])


@pytest.mark.parametrize(
    ("count", "ignore", "dtype"),
    [(3, -1, np.int64), (3, 0, np.uint8), (300, 65535, np.uint16), (300, 65535, np.int64)],
)
def test_confusion_matrix_with_other_ignored_labels(count, ignore, dtype):
    gt, pred = random_maps(count, ignore, dtype=dtype)
    expected = brute_force(gt, pred, count, ignore)
    assert np.array_equal(confusion_matrix(gt, pred, count, ignore, void_column=True), expected)


def test_confusion_matrix_refuses_wrong_input():
    good = np.zeros((2, 2), dtype=np.int64)
    with pytest.raises(UserError, match="ground truth has the value 7"):
        confusion_matrix(np.array([[0, 7]]), np.array([[0, 0]]), 3)
    with pytest.raises(UserError, match="prediction has the value 3"):
        confusion_matrix(np.array([[0, 1]]), np.array([[0, 3]]), 3)
    with pytest.raises(UserError, match="prediction has the value -1"):
        confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, -1]), 3)
    with pytest.raises(UserError, match="ground truth has the value 900"):
        confusion_matrix(np.array([0, 900]), np.array([0, 0]), 847, ignore=65535)
    with pytest.raises(UserError, match="value -1"):
        confusion_matrix(np.array([0, 1]), np.array([0, -1]), 847, ignore=65535)
    with pytest.raises(UserError, match="differ in shape"):
        confusion_matrix(good, good[:1], 3)
    with pytest.raises(UserError, match="65535"):
        confusion_matrix(good, good, 847)
    with pytest.raises(UserError, match="confusion matrix is"):
        miou(np.zeros((3, 5)))


def test_empty_maps_count_nothing():
    empty = np.zeros((0, 4), dtype=np.int64)
    assert confusion_matrix(empty, empty, 3).sum() == 0


CM = np.array([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).copy()
CM[0, 2] = 2  # class 2 is predicted, never true; class 3 never occurs


def test_scores_by_hand():
    first, second = 6 / 11, 3 / 6
    assert per_class_iou(CM)[:3] == pytest.approx([first, second, 0.0])
    assert np.isnan(per_class_iou(CM)[3])
    assert miou(CM) == pytest.approx((first + second) / 2)
    assert miou(CM, convention="union") == pytest.approx((first + second + 0) / 3)
    assert miou(CM, classes=[1, 3]) == pytest.approx(second)
    assert np.isnan(miou(CM, classes=[3]))
    assert fwiou(CM) == pytest.approx((10 * first + 4 * second) / 14)
    assert fwiou(CM, [1]) == pytest.approx(second)
    assert macc(CM) == pytest.approx((0.6 + 0.75) / 2)
    assert pacc(CM) == pytest.approx(9 / 14)
    assert pacc(torch.from_numpy(CM), [0]) == pytest.approx(0.6)


def test_void_predictions_are_misses_in_scores():
    gt, pred = np.array([0, 0, 0, 0]), np.array([0, 0, 0, 255])
    assert miou(confusion_matrix(gt, pred, 2, void_column=True)) == pytest.approx(0.75)
    assert miou(confusion_matrix(gt, pred, 2)) == pytest.approx(1.0)


def test_metric_accumulates_and_splits_classes():
    metric = SemanticMetric(3, novel={2})
    gt = torch.tensor([[0, 0, 1], [2, 2, 255]])
    pred = torch.tensor([[0, 1, 1], [2, 0, 0]])
    metric.update(gt, pred)
    metric.update(gt, pred)
    cm = confusion_matrix(gt, pred, 3) * 2
    assert torch.equal(metric.confusion[:, :3], cm)
    scores = metric.compute()
    assert scores["mIoU"] == pytest.approx(miou(cm))
    assert scores["mIoU_seen"] == pytest.approx(miou(cm, [0, 1]))
    assert scores["mIoU_unseen"] == pytest.approx(0.5)
    assert {"fwIoU", "mACC", "pACC", "fwIoU_seen", "mACC_unseen", "mIoU_union"} <= set(scores)
    metric.reset()
    assert metric.confusion.sum() == 0
    plain = SemanticMetric(3)
    plain.update(gt, pred)
    assert "mIoU_seen" not in plain.compute()
