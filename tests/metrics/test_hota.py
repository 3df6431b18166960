from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from vlkd.errors import UserError
from vlkd.metrics import HOTAMetric, hota
from vlkd.metrics.video.burst import judged

CATEGORIES = (2, 5, 9)


def literal(videos, category):
    """Scores (8,) of one category as TrackEval has them: dense matrices, frame by frame, alpha by alpha."""
    alphas, sums = np.arange(0.05, 0.99, 0.05), np.zeros((3, 19))
    tp, truth, guess = np.zeros(19), 0, 0
    for gt, pred, gt_table, pred_table in videos:
        gs, ps = ([i for i, c in t.items() if c == category] for t in (gt_table, pred_table))
        masks = [[(f == i) for i in ids] for ids, m in ((gs, gt), (ps, pred)) for f in m]
        count = len(gt)
        potential, g_len, p_len, sims = np.zeros((len(gs), len(ps))), np.zeros(len(gs)), np.zeros(len(ps)), []
        for t in range(count):
            sim = np.array(
                [[(a & b).sum() / max((a | b).sum(), 1) for b in masks[count + t]] for a in masks[t]]
            )
            sim = sim.reshape(len(gs), len(ps))
            union = sim.sum(0)[None] + sim.sum(1)[:, None] - sim
            potential += np.divide(sim, union, out=np.zeros_like(sim), where=union > 0)
            g_len += [m.any() for m in masks[t]]
            p_len += [m.any() for m in masks[count + t]]
            sims.append(sim)
        alignment = potential / np.maximum(g_len[:, None] + p_len - potential, 1e-9)
        for a, alpha in enumerate(alphas):
            met = np.zeros_like(potential)
            for sim in sims:
                for i, j in zip(*linear_sum_assignment(-(alignment * sim)), strict=True):
                    met[i, j] += sim[i, j] >= alpha - np.finfo(float).eps
            tp[a] += met.sum()
            sums[0, a] += (met * met / np.maximum(1, g_len[:, None] + p_len - met)).sum()
            sums[1, a] += (met * met / np.maximum(1, g_len[:, None])).sum()
            sums[2, a] += (met * met / np.maximum(1, p_len)).sum()
        truth, guess = truth + g_len.sum(), guess + p_len.sum()
    ass_a, ass_re, ass_pr = sums / np.maximum(tp, 1)
    det_a, det_re, det_pr = tp / (truth + guess - tp), tp / truth, tp / guess
    return {
        "HOTA": np.sqrt(det_a * ass_a).mean(), "DetA": det_a.mean(), "AssA": ass_a.mean(),
        "DetRe": det_re.mean(), "DetPr": det_pr.mean(), "AssRe": ass_re.mean(), "AssPr": ass_pr.mean(),
        "OWTA": np.sqrt(det_re * ass_a).mean(),
    }  # fmt: skip


def random_video(seed, length=6):
    """Moving boxes, some missing in a frame; predictions with shifts and changes of id."""
    rng = np.random.default_rng(seed)
    gt, pred = np.zeros((2, length, 20, 24), dtype=np.int32)
    corners, switch = rng.integers(0, 14, (7, 2)), rng.integers(1, 9, 7)
    for t in range(length):
        for i, (y, x) in enumerate(corners):
            if rng.random() < 0.9:
                gt[t, y : y + 6, x + t : x + t + 7] = 40 + i
            if rng.random() < 0.9:
                dy, dx = rng.integers(0, 3, 2)
                pred[t, y + dy : y + dy + 6, x + t + dx : x + t + dx + 7] = 900 + i + 7 * (t >= switch[i])
    table = {40 + i: CATEGORIES[i % 3] for i in range(7)}
    return gt, pred, table, {900 + i: CATEGORIES[i % 7 % 3 if i != 3 else 1] for i in range(14)}


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_a_loop(seed):
    videos = [random_video(3 * seed + i, 3 + i) for i in range(3)]
    alone = [literal(videos, category) for category in CATEGORIES]
    found = hota(videos, CATEGORIES, {"first": [2]})
    for name in alone[0]:
        assert found[name] == pytest.approx(np.mean([scores[name] for scores in alone]), abs=1e-12), name
        assert found[f"{name}_first"] == pytest.approx(alone[0][name], abs=1e-12), name
    assert 0.1 < found["HOTA"] < 0.9 and found["OWTA"] > found["HOTA"]


def test_agnostic_equals_one_category():
    videos = [random_video(seed) for seed in range(2)]
    single = [(gt, pred, dict.fromkeys(a, 2), dict.fromkeys(b, 2)) for gt, pred, a, b in videos]
    found = hota(videos, CATEGORIES, agnostic=True)
    assert found == hota(single, [2])
    assert found["OWTA"] == pytest.approx(literal(single, 2)["OWTA"], abs=1e-12)
    assert found != hota(videos, CATEGORIES)


def test_scores_by_hand():
    gt = np.ones((4, 1, 3), dtype=int)
    pred = np.array([6, 6, 6, 7])[:, None, None] * gt
    found = hota([(gt, pred, {1: 2}, {6: 2, 7: 2})], CATEGORIES)
    assert found["DetA"] == 1.0
    assert found["AssA"] == pytest.approx((3 * 3 / 4 + 1 / 4) / 4)
    assert found["HOTA"] == found["OWTA"] == pytest.approx(np.sqrt(found["AssA"]))
    assert hota([(gt, gt, {1: 2}, {1: 2})], CATEGORIES)["HOTA"] == 1.0
    assert hota([(gt, gt, {1: 2}, {1: 5})], CATEGORIES)["HOTA"] == 0.0
    assert np.isnan(hota([(0 * gt, 0 * gt, {}, {})], CATEGORIES)["HOTA"])


def test_merging_equals_one_pass():
    videos = [random_video(seed) for seed in range(4)]
    parts = [HOTAMetric(CATEGORIES) for _ in range(2)]
    for i, (gt, pred, *tables) in enumerate(videos):
        parts[i % 2].update(torch.from_numpy(gt), torch.from_numpy(pred), *tables)
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    assert parts[0].compute() == pytest.approx(hota(videos, CATEGORIES), abs=1e-14)


def test_wrong_input():
    gt, pred, gt_table, pred_table = good = random_video(0)
    with pytest.raises(UserError, match=r"^video 1: ground truth \(6, 20, 24\) and prediction \(5, 20, 24\)"):
        hota([good, (gt, pred[:5], gt_table, pred_table)], CATEGORIES)
    with pytest.raises(UserError, match=r"^video 0: ground truth: segment ids \[40"):
        hota([(gt, pred, {}, pred_table)], CATEGORIES)
    with pytest.raises(UserError, match=r"^video 0: prediction: categories \[9\]"):
        hota([(gt, pred, dict.fromkeys(gt_table, 2), pred_table)], CATEGORIES[:2])
    with pytest.raises(UserError, match="do not add up"):
        HOTAMetric(CATEGORIES).merge(HOTAMetric(CATEGORIES, agnostic=True))


def literally_judged(gt, pred, gt_table, pred_table, negative, not_exhaustive):
    """BURST's preprocessing, frame by frame and category by category."""
    kept = pred.copy()
    for t in range(len(gt)):
        for category in CATEGORIES:
            truths = [i for i in np.unique(gt[t]) if gt_table.get(i) == category]
            guesses = [i for i in np.unique(pred[t]) if pred_table.get(i) == category]
            masks = [(gt[t] == i, [pred[t] == j for j in guesses]) for i in truths]
            iou = np.array([[(a & b).sum() / (a | b).sum() for b in others] for a, others in masks])
            iou = iou.reshape(len(truths), len(guesses))
            iou[iou < 0.5 - np.finfo(float).eps] = 0
            pairs = zip(*linear_sum_assignment(-iou), strict=True)
            free = set(range(len(guesses))) - {j for i, j in pairs if iou[i, j] > 0}
            if category in not_exhaustive or (not truths and category not in negative):
                for j in free:
                    kept[t][pred[t] == guesses[j]] = 0
    return kept


@pytest.mark.parametrize("seed", range(6))
def test_burst_drops_what_cannot_be_judged(seed):
    gt, pred, gt_table, pred_table = random_video(seed)
    gt[2:4][np.isin(gt[2:4], [i for i, c in gt_table.items() if c == 5])] = 0
    lists = ((), ()) if seed % 3 == 0 else ((5,), (2,)) if seed % 3 == 1 else ((9,), (9,))
    found = judged(gt, pred, gt_table, pred_table, *lists)
    expected = literally_judged(gt, pred, gt_table, pred_table, *lists)
    np.testing.assert_array_equal(found, expected)
    assert (found != pred).any()


def test_means_over_the_truth_alone():
    gt = np.ones((2, 1, 4), dtype=int)
    pred = np.array([[[6, 6, 6, 7]]] * 2)
    whole = hota([(gt, pred, {1: 2}, {6: 2, 7: 5})], CATEGORIES)
    metric = HOTAMetric(CATEGORIES, of_truth=True)
    metric.update(gt, pred, {1: 2}, {6: 2, 7: 5})
    assert metric.compute()["HOTA"] == pytest.approx(2 * whole["HOTA"])
