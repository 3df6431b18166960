from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from golden_cases import FOLDER

from vlkd.errors import UserError
from vlkd.metrics import STQMetric, stq

CLASSES, THINGS = 5, (1, 3)


def literal(videos, ignore, parity):
    """Pixel by pixel, as the formulas read."""
    cm = np.zeros((CLASSES + 1, CLASSES + 1))
    void = ignore if 0 <= ignore < CLASSES else CLASSES
    association, tubes = 0.0, 0
    for maps in videos:
        gts, preds, both = Counter(), Counter(), Counter()
        for gc, gi, pc, pi in zip(*(m.ravel().tolist() for m in maps), strict=True):
            if gc != ignore:
                cm[gc, void if pc == ignore else pc] += 1
            if parity and gc in THINGS and gi == 0:
                continue
            if gc in THINGS:
                gts[gc, gi] += 1
            if pc in THINGS:
                preds[pc, pi] += 1
            if gc in THINGS and pc in THINGS:
                both[(gc, gi), (pc, pi)] += 1
        for g, area in gts.items():
            inner = sum(n * n / (area + preds[p] - n) for (own, p), n in both.items() if own == g)
            association += inner / area
        tubes += len(gts)
    union = cm.sum(0) + cm.sum(1) - cm.diagonal()
    counted = [c for c in range(CLASSES + 1) if union[c] > 0 and (parity or c != void)]
    sq = sum(cm[c, c] / union[c] for c in counted) / len(counted)
    return {"STQ": np.sqrt(sq * association / tubes), "AQ": association / tubes, "SQ": sq}


def random_video(seed, ignore=255):
    rng = np.random.default_rng(seed)
    classes = np.kron(rng.integers(0, CLASSES, (4, 4, 3)), np.ones((1, 3, 4), dtype=int))
    classes[rng.random(classes.shape) < 0.1] = ignore
    instances = np.kron(rng.integers(0, 3, (4, 4, 3)), np.ones((1, 3, 4), dtype=int))
    follow = rng.random(classes.shape) < 0.7
    pred = np.where(follow, classes, rng.choice([*range(CLASSES), ignore], classes.shape))
    return classes, instances, pred.astype(np.int32), np.where(follow, instances, 7)


def test_golden_scores():
    data = np.load(FOLDER / "metric_stq_0.npz")
    kinds = ("gt_sem", "gt_ins", "pred_sem", "pred_ins")
    videos = [tuple(data[f"{kind}_{i}"] for kind in kinds) for i in range(3)]
    found = stq(videos, int(data["num_classes"]), data["things"].tolist(), int(data["ignore"]))
    assert found == pytest.approx({name: float(data[name.lower()]) for name in found}, abs=1e-12)
    assert set(found) == {"STQ", "AQ", "SQ"}


@pytest.mark.parametrize("parity", [True, False])
@pytest.mark.parametrize("ignore", [255, -1, 65535, 0])
def test_scores_equal_a_loop_over_pixels(ignore, parity):
    videos = [random_video(seed, ignore) for seed in range(3)]
    found = stq(videos, CLASSES, THINGS, ignore, parity)
    assert found == pytest.approx(literal(videos, ignore, parity), abs=1e-12)
    assert 0 < found["AQ"] < 1


def still(*rows):
    """Four maps of two equal frames from rows of pixels."""
    return tuple(np.array([[row], [row]]) for row in rows)


def test_predicted_void_is_one_more_class_in_parity_only():
    video = still([0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 255], [1, 1, 1, 1])
    assert stq([video], 2, [1])["SQ"] == pytest.approx((1 + 0.5) / 3)
    assert stq([video], 2, [1], parity=False)["SQ"] == pytest.approx((1 + 0.5) / 2)


def test_instance_0_is_a_crowd_in_parity_only():
    video = still([1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [5, 5, 5, 5])
    assert stq([video], 2, [1])["AQ"] == 1.0  # the crowd's pixels count neither in the truth nor in tube 5
    assert stq([video], 2, [1], parity=False)["AQ"] == pytest.approx(0.5)


def test_class_only_predicted_and_things_on_void_count():
    video = still([0, 0, 255, 255, 1, 1], [1] * 6, [0, 2, 1, 1, 1, 1], [1] * 6)
    for parity in (True, False):
        found = stq([video], 3, [1], parity=parity)
        assert found["SQ"] == pytest.approx((0.5 + 1 + 0) / 3)
        assert found["AQ"] == pytest.approx(2 / 4)


def test_change_of_class_breaks_a_track_and_instances_of_stuff_do_not_matter():
    gt, ids = np.full((2, 1, 4), 1), np.ones((2, 1, 4), dtype=int)
    pred = gt.copy()
    pred[1] = 2
    assert stq([(gt, ids, pred, ids)], 3, [1, 2])["AQ"] == pytest.approx(2 * 0.5 * 0.5)
    stuff = (gt, ids, gt, np.arange(8).reshape(2, 1, 4))
    assert stq([stuff], 3, [2]) == {"STQ": 0.0, "AQ": 0.0, "SQ": 1.0}
    assert np.isnan(stq([stuff], 3, [2], parity=False)["AQ"])


def test_equal_ids_of_two_videos_are_two_tubes():
    video = random_video(0)
    truth = (video[0], video[1], video[0], video[1])
    assert stq([truth, truth], CLASSES, THINGS)["AQ"] == pytest.approx(1.0)
    metric = STQMetric(CLASSES, THINGS)
    metric.update(*truth)
    once = int(metric.tubes)
    metric.update(*truth)
    assert int(metric.tubes) == 2 * once


def test_ids_may_be_large():
    gt_class, gt_id, pred_class, pred_id = random_video(1)
    far = (gt_class, gt_id * (2**31 - 1), pred_class, pred_id * (2**29 + 1))
    assert stq([far], CLASSES, THINGS) == stq([(gt_class, gt_id, pred_class, pred_id)], CLASSES, THINGS)


def test_merging_equals_one_pass():
    videos = [random_video(seed) for seed in range(4)]
    whole, *parts = (STQMetric(CLASSES, THINGS) for _ in range(3))
    for i, video in enumerate(videos):
        whole.update(*(torch.from_numpy(m) for m in video))
        parts[i % 2].update(*video)
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert torch.equal(parts[0].confusion, whole.confusion) and parts[0].tubes == whole.tubes
    assert parts[0].compute() == pytest.approx(stq(videos, CLASSES, THINGS), abs=1e-14)


def test_wrong_input():
    good = random_video(0)
    with pytest.raises(
        UserError, match=r"^video 1: gt_semantic \(4, 12, 12\) and pred_instance \(4, 12, 11\)"
    ):
        stq([good, (*good[:3], good[3][..., :11])], CLASSES, THINGS)
    with pytest.raises(UserError, match=r"^video 0: prediction has the class 4; expected 0..3"):
        stq([(good[0] % 4, *good[1:])], 4, THINGS)
    with pytest.raises(UserError, match=r"^video 1: ground truth has the instance -1"):
        stq([good, (good[0], good[1] - 1, *good[2:])], CLASSES, THINGS)
    with pytest.raises(UserError, match=r"things \[9\]"):
        stq([good], CLASSES, [1, 9])
    with pytest.raises(UserError, match="do not add up"):
        STQMetric(CLASSES, THINGS).merge(STQMetric(CLASSES, THINGS, parity=False))
