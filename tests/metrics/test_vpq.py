from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from golden_cases import FOLDER

from vlkd.errors import UserError
from vlkd.metrics import VPQMetric, panoptic_quality, vpq

ISTHING = (True, False, True, False)


def literal(videos, k):
    """Counts (4 x K) of all windows of k frames, segment by segment, as the rules read."""
    iou, tp, fp, fn = np.zeros((4, len(ISTHING)))
    for gt, pred, gt_categories, pred_categories, *crowds in videos:
        crowd = crowds[0] if crowds else set()
        for i in range(len(gt) - k + 1):
            g_map, p_map = gt[i : i + k], pred[i : i + k]
            g_ids, p_ids = (set(np.unique(m).tolist()) - {0} for m in (g_map, p_map))
            matched = set()
            for g in g_ids - set(crowd):
                for p in p_ids:
                    if gt_categories[g] != pred_categories[p]:
                        continue
                    inter = ((g_map == g) & (p_map == p)).sum()
                    void = ((g_map == 0) & (p_map == p)).sum()
                    value = inter / ((g_map == g).sum() + (p_map == p).sum() - inter - void)
                    if value > 0.5:
                        iou[gt_categories[g]] += value
                        tp[gt_categories[g]] += 1
                        matched |= {("g", g), ("p", p)}
                fn[gt_categories[g]] += ("g", g) not in matched
            for p in p_ids:
                own = [g for g in crowd if gt_categories.get(g) == pred_categories[p]]
                excuse = (np.isin(g_map, [0, *own]) & (p_map == p)).sum()
                fp[pred_categories[p]] += ("p", p) not in matched and excuse / (p_map == p).sum() <= 0.5
    return iou, tp, fp, fn


def random_video(seed, length=9, crowd=False):
    rng = np.random.default_rng(seed)
    gt = np.kron(rng.integers(0, 7, (4, 5)), np.ones((3, 3), dtype=int))[None].repeat(length, 0)
    for t in range(1, length):
        gt[t] = np.where(rng.random(gt[t].shape) < 0.05, gt[t], np.roll(gt[t - 1], 1, axis=rng.integers(2)))
    pred = np.where(rng.random(gt.shape) < 0.8, gt, rng.integers(0, 8, gt.shape))
    gt, pred = (np.where(ids, ids + shift, 0) for ids, shift in ((gt, 300), (pred, 70000)))
    tables = [{int(i): int(i) % 4 for i in np.unique(ids) if i} for ids in (gt, pred)]
    tables[1] = {i: (i - 70000 + 300) % 4 for i in tables[1]}
    return (gt.astype(np.int32), pred, *tables) + (({301, 304},) if crowd else ())


def test_golden_scores():
    data = np.load(FOLDER / "metric_vpq_0.npz")
    tables = [dict(data[f"{kind}_id_category"].tolist()) for kind in ("gt", "pred")]
    videos = [(data[f"gt_{i}"], data[f"pred_{i}"], *tables) for i in range(3)]
    expected = data["vpq_all_thing_stuff"]
    found = vpq(videos, data["windows"].tolist(), data["isthing"])
    for row, k in zip(expected, data["windows"].tolist(), strict=True):
        assert [found["windows"][k][name] for name in ("all", "thing", "stuff")] == pytest.approx(
            row, abs=1e-9
        )
    assert [found[name] for name in ("all", "thing", "stuff")] == pytest.approx(expected.mean(0), abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_counts_equal_a_loop_over_segments(seed):
    videos = [random_video(2 * seed + i, length, seed % 2 == 1) for i, length in enumerate((9, 3))]
    windows = (1, 2, 5)
    metric = VPQMetric(ISTHING, windows)
    for video in videos:
        metric.update(*video)
    for i, k in enumerate(windows):
        iou, tp, fp, fn = literal(videos, k)
        assert metric.iou[i].numpy() == pytest.approx(iou, abs=1e-12) and tp.sum() > 0
        for name, counts in (("tp", tp), ("fp", fp), ("fn", fn)):
            assert np.array_equal(getattr(metric, name)[i].numpy(), counts), name


def test_one_frame_windows_are_panoptic_quality():
    gt, pred, gt_categories, pred_categories = random_video(3, 1)
    pq = panoptic_quality(gt[0], pred[0], gt_categories, pred_categories, 4).quality()["PQ"]
    found = vpq([(gt, pred, gt_categories, pred_categories)], [1], ISTHING)
    assert found["all"] == found["windows"][1]["all"] == pytest.approx(100 * pq)


def test_scores_by_hand():
    gt = np.array([[[1, 1, 1, 1, 2, 2]], [[1, 1, 1, 1, 2, 2]]])
    pred = np.array([[[5, 5, 5, 0, 6, 6]], [[7, 7, 7, 7, 6, 0]]])
    found = vpq([(gt, pred, {1: 0, 2: 1}, {5: 0, 6: 1, 7: 0})], [1, 2], {0: True, 1: False})
    # In the second frame IoU(2, 6) is 1/2, not above 0.5: a miss and an error.
    assert found["windows"][1] == pytest.approx({"all": 68.75, "thing": 87.5, "stuff": 50.0})
    # Over both frames IoU(1, 5) is 3/8 and IoU(1, 7) is 4/8: a change of id costs the match.
    assert found["windows"][2] == pytest.approx({"all": 37.5, "thing": 0.0, "stuff": 75.0})
    assert found["thing"] == pytest.approx(87.5 / 2)


def test_base_and_novel():
    videos = [random_video(1), random_video(2)]
    found = vpq(videos, [1, 4], ISTHING, novel={2})
    alone = vpq(videos, [1, 4], ISTHING, base=[0, 1, 3], novel=[2])
    assert found == alone
    iou, tp, fp, fn = literal(videos, 4)
    quality = 100 * iou / (tp + fp / 2 + fn / 2)
    assert found["windows"][4]["novel"] == pytest.approx(quality[2])
    assert found["windows"][4]["base"] == pytest.approx(quality[[0, 1, 3]].mean())
    assert found["novel"] == pytest.approx(np.mean([found["windows"][k]["novel"] for k in (1, 4)]))
    assert "base" not in vpq(videos, [1], ISTHING)


def test_windows_longer_than_every_video_have_no_score():
    found = vpq([random_video(1, 3)], [1, 4], ISTHING)
    assert np.isnan(found["windows"][4]["all"]) and np.isnan(found["all"])
    assert 0 < found["windows"][1]["all"] < 100


def test_merging_equals_one_pass():
    videos = [random_video(seed, 4 + seed) for seed in range(4)]
    whole, *parts = (VPQMetric(ISTHING, [1, 3], novel=[1]) for _ in range(3))
    for i, (gt, pred, *tables) in enumerate(videos):
        whole.update(torch.from_numpy(gt), torch.from_numpy(pred), *tables)
        parts[i % 2].update(gt, pred, *tables)
    parts[0].merge(pickle.loads(pickle.dumps(parts[1])))
    for name in ("tp", "fp", "fn"):
        assert torch.equal(getattr(parts[0], name), getattr(whole, name))
    torch.testing.assert_close(parts[0].iou, whole.iou, rtol=1e-14, atol=0)
    assert parts[0].compute()["all"] == pytest.approx(vpq(videos, [1, 3], ISTHING)["all"], abs=1e-10)


def test_a_table_may_name_ids_that_never_appear():
    gt, pred, gt_categories, pred_categories = random_video(0)
    more = (gt, pred, gt_categories | {9: 1}, pred_categories | {9: 1})
    assert vpq([more], [2], ISTHING) == vpq([(gt, pred, gt_categories, pred_categories)], [2], ISTHING)


def test_ids_may_be_large():
    gt, pred, *tables = random_video(0)
    ids = [{i: i * 2**40 for i in table} for table in tables]
    far = [np.where(m, m.astype(np.int64) * 2**40, 0) for m in (gt, pred)]
    moved = [{ids[i][id]: c for id, c in tables[i].items()} for i in (0, 1)]
    assert vpq([(*far, *moved)], [1, 3], ISTHING) == vpq([(gt, pred, *tables)], [1, 3], ISTHING)


def test_wrong_input():
    good = random_video(0)
    gt, pred, gt_categories, pred_categories = good
    with pytest.raises(UserError, match=r"^video 1: ground truth \(9, 12, 15\) and prediction \(8, 12, 15\)"):
        vpq([good, (gt, pred[:8], gt_categories, pred_categories)], [1], ISTHING)
    with pytest.raises(UserError, match=r"^video 1: prediction: segment ids \[7000\d\] have no category"):
        vpq([good, (gt, pred, gt_categories, dict(list(pred_categories.items())[1:]))], [1], ISTHING)
    with pytest.raises(UserError, match=r"^video 0: ground truth: categories \[9\] are not among the 4"):
        vpq([(gt, pred, gt_categories | {301: 9}, pred_categories)], [1], ISTHING)
    with pytest.raises(UserError, match=r"classes \[2\] are base and novel"):
        vpq([good], [1], ISTHING, base=[0, 2], novel=[2])
    with pytest.raises(UserError, match=r"novel classes \[7\]"):
        vpq([good], [1], ISTHING, novel=[7])
    with pytest.raises(UserError, match=r"windows=\[\]"):
        vpq([good], [], ISTHING)
    with pytest.raises(UserError, match="do not add up"):
        VPQMetric(ISTHING, [1]).merge(VPQMetric(ISTHING, [2]))
