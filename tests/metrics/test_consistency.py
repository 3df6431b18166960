from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from golden_cases import FOLDER

from vlkd.errors import UserError
from vlkd.metrics import ConsistencyMetric, correct_consistency, fwiou, miou, video_consistency


def literal(gt_videos, pred_videos, n, include_last, correct):
    """Every window by itself, as the formula reads."""
    found = []
    for gt, pred in zip(gt_videos, pred_videos, strict=True):
        for i in range(len(gt) - n + include_last):
            steady = (gt[i : i + n] == gt[i]).all(0)
            kept = (pred[i : i + n] == (gt[i : i + n] if correct else pred[i])).all(0)
            found.append((steady & kept).sum() / steady.sum() if steady.any() else np.nan)
    return np.nanmean(found)


def random_videos(seed, lengths=(9, 4, 3, 12)):
    """Label maps that seldom change, predictions that mostly follow."""
    rng = np.random.default_rng(seed)
    gt_videos, pred_videos = [], []
    for length in lengths:
        gt = rng.integers(0, 4, (length, 5, 6)).astype(np.uint8)
        for t in range(1, length):
            gt[t] = np.where(rng.random((5, 6)) < 0.85, gt[t - 1], gt[t])
        gt_videos.append(gt)
        pred_videos.append(np.where(rng.random(gt.shape) < 0.9, gt, 3).astype(np.int64))
    return gt_videos, pred_videos


def golden():
    data = np.load(FOLDER / "metric_vc_0.npz")
    return data, *([data[f"{kind}_{i}"] for i in range(3)] for kind in ("gt", "pred"))


@pytest.mark.parametrize("n", [8, 16])
def test_golden_scores(n):
    data, gt, pred = golden()
    assert video_consistency(gt, pred, n) == pytest.approx(float(data[f"vc{n}"]), abs=1e-12)
    metric = ConsistencyMetric([n])
    for pair in zip(gt, pred, strict=True):
        metric.update(*pair)
    assert int(metric.counted) == int(data[f"vc{n}_windows"])


@pytest.mark.parametrize("include_last", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_scores_equal_a_loop_over_windows(n, include_last):
    gt, pred = random_videos(n)
    found = video_consistency(gt, pred, n, include_last)
    assert found == pytest.approx(literal(gt, pred, n, include_last, correct=False), abs=1e-12)
    found = correct_consistency(gt, pred, n, include_last)
    assert found == pytest.approx(literal(gt, pred, n, include_last, correct=True), abs=1e-12)


def test_labels_are_compared_with_themselves_only():
    gt, _ = random_videos(0)
    still = [np.full_like(video, 3) for video in gt]
    assert video_consistency(gt, still, 2) == 1.0
    assert 0 < correct_consistency(gt, still, 2) < 0.5
    assert correct_consistency(gt, gt, 2) == 1.0


def test_the_correct_form_leaves_void_out():
    gt = np.array([[[1, 1, 255, 255]]] * 3)
    pred = np.array([[[1, 2, 1, 1]], [[1, 2, 1, 2]], [[1, 2, 1, 1]]])
    assert correct_consistency([gt], [pred], 2) == 0.25
    assert correct_consistency([gt], [pred], 2, void=255) == 0.5
    assert np.isnan(correct_consistency([gt[..., 2:]], [pred[..., 2:]], 2, void=255))
    metric = ConsistencyMetric([2], void=255)
    metric.update(gt, pred)
    assert metric.compute()["VC2"] == video_consistency([gt], [pred], 2) == 0.75


def test_only_the_last_window_is_left_out():
    gt = np.zeros((3, 2, 2), dtype=int)
    pred = gt.copy()
    pred[2] = 1
    assert video_consistency([gt], [pred], 2) == 1.0
    assert video_consistency([gt], [pred], 2, include_last=True) == 0.5
    assert np.isnan(video_consistency([gt], [pred], 3))
    assert video_consistency([gt], [pred], 3, include_last=True) == 0.0


def test_windows_without_a_steady_pixel_do_not_count():
    changing = np.arange(4)[:, None, None] * np.ones((4, 1, 1), dtype=int)
    half = np.array([0, 1, 1, 1])[:, None, None]
    assert np.isnan(video_consistency([changing], [changing], 2))
    assert video_consistency([changing, half], [changing, half], 2) == 1.0


def test_merging_equals_one_pass():
    gt, pred = random_videos(5)
    whole, *parts = (ConsistencyMetric([2, 3]) for _ in range(3))
    for i, pair in enumerate(zip(gt, pred, strict=True)):
        whole.update(*(torch.from_numpy(labels) for labels in pair))
        parts[i % 2].update(*pair)
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert parts[0].compute() == pytest.approx(whole.compute(), abs=1e-12)
    assert set(whole.compute()) == {"VC2", "VC2_correct", "VC3", "VC3_correct"}
    assert whole.compute()["VC3"] == pytest.approx(video_consistency(gt, pred, 3), abs=1e-12)


def test_fwiou_is_one_number_under_both_conventions():
    cm = np.array([[6, 2, 1], [1, 3, 0], [0, 0, 0]])  # class 2 is predicted, never true
    truth, iou = cm.sum(1), np.array([6 / 10, 3 / 6, 0])
    for counted in (truth > 0, truth + cm.sum(0) > 0):
        assert fwiou(cm) == pytest.approx((truth * iou)[counted].sum() / truth[counted].sum())
    assert miou(cm) != miou(cm, convention="union")


def test_wrong_input():
    video = np.zeros((4, 2, 3), dtype=int)
    with pytest.raises(UserError, match=r"^video 1: ground truth \(4, 2, 3\) and prediction \(4, 2, 2\)"):
        video_consistency([video, video], [video, video[..., :2]], 2)
    with pytest.raises(UserError, match=r"^video 0: prediction is float64"):
        video_consistency([video], [video.astype(float)], 2)
    with pytest.raises(UserError, match=r"^video 0: ground truth is int64 \(2, 3\)"):
        video_consistency([video[0]], [video[0]], 2)
    with pytest.raises(UserError, match="different numbers of videos"):
        video_consistency([video, video], [video], 2)
    with pytest.raises(UserError, match=r"windows=\[0\]"):
        video_consistency([video], [video], 0)
    with pytest.raises(UserError, match="do not add up"):
        ConsistencyMetric([2]).merge(ConsistencyMetric([3]))
